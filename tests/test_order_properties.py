# SPDX-License-Identifier: Apache-2.0
"""Old goes last: no VIP is announced without what makes it work, nothing goes whose replacement isn't there, nothing
is published for what is blocked, and a first apply that fails leaves the node as it was."""

import copy
import random
from dataclasses import fields, replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler import plan as planning
from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.dataplane.layout import MAPS
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.faulty import FaultyKernel
from reconciler.kinds.announcement import Announcement
from reconciler.kinds.attachment import Attachment
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.sysctl import Sysctl
from reconciler.live import read_live
from reconciler.model import Mode
from reconciler.resource import Key
from reconciler.view import view
from tests.strategies import fake_source, fleets

INTERFACES = ("front", "back", "side")
ROUNDS = 40


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@st.composite
def moved_fleets(draw):
    """A fleet whose node may have its first interface elsewhere, and VIPs that may have moved."""
    fleet = draw(fleets())
    (node,) = fleet.nodes
    first, *others = node.interfaces
    name, shift = draw(st.sampled_from(("front", "side"))), draw(st.sampled_from((0, 100)))
    services = tuple(replace(s, vips=tuple(vip + shift for vip in s.vips)) for s in fleet.services)
    return replace(fleet, services=services, nodes=(replace(node, interfaces=(replace(first, name=name), *others)),))


def desired_of(fleet):
    return compile_node(view(fleet, None, "host"))


def plan_for(kernel, desired):
    return planning.plan(desired, read_live(kernel, desired.resources))


def bring_to(kernel, fleet):
    desired = desired_of(fleet)
    apply(plan_for(kernel, desired), kernel).raise_if_failed()


def announced(kernel):
    return {vip.address for vip in kernel.vips}


def state(kernel):
    """Everything that packets and other programs can see; neither what was counted nor the numbers of programs."""
    seen = {f.name: copy.deepcopy(getattr(kernel, f.name)) for f in fields(FakeKernel)}
    del seen["writes"], seen["on_write"]
    return seen


def wanted(desired, cls):
    return [resource for resource in desired.resources.values() if isinstance(resource, cls)]


def sources_in(live):
    return {source for resource in live.values() if resource.key.kind == "snat" for source in resource.sources}


def of_family(sources, address):
    return {source for source in sources if ip_address(source).version == ip_address(address).version}


def is_fullnat(live, address):
    return any(row.kind == "service" and str(row.vip) == address and row.mode == Mode.FULLNAT for row in live.values())


class Watcher:
    """Looks at each state between two writes on the way to `desired`."""

    def __init__(self, kernel, desired):
        self.kernel, self.desired = kernel, desired
        self.before = announced(kernel)
        self.sources = sources_in(read_live(kernel).resources)
        kernel.on_write = self

    def __call__(self):
        method, what = self.kernel.writes[-1]
        live = read_live(self.kernel).resources
        served = {str(key.vip) for key in live.values() if key.kind == "service"}
        used = sources_in(live)
        served |= sources_in(self.desired.resources) | self.sources  # they come first and go last
        routed = {str(key.address) for key in live.values() if key.kind == "announcement"}
        assert used <= announced(self.kernel)
        if method == "update" and what[0] == "snat":
            told = {str(row.address) for row in wanted(self.desired, Announcement)}
            assert used & told <= routed
        assert routed <= announced(self.kernel)
        if method == "add_route" and what in self.kernel.announcements:
            self.assert_it_works(live, ip_network(what.to).version)
        for address in announced(self.kernel):
            assert Key("vip", address) in live
            assert address in served
            assert self.kernel.program
        if method == "add_vip" and what.address not in self.before:
            if is_fullnat(live, what.address):
                goal = sources_in(self.desired.resources)
                assert of_family(used, what.address) == of_family(goal, what.address)
            self.assert_it_works(live, ip_address(what.address).version)
        now = announced(self.kernel)
        goal = {vip.id for vip in wanted(self.desired, LoopbackVip)}
        if self.before - now - goal:
            assert goal <= now
        if method == "detach" and what not in {face.interface for face in wanted(self.desired, Attachment)}:
            self.assert_attached()
        self.before = now

    def assert_attached(self):
        for face in wanted(self.desired, Attachment):
            assert self.kernel.attached[face.interface].name == face.program

    def assert_it_works(self, live, version):
        self.assert_attached()
        for setting in wanted(self.desired, Sysctl):
            if version == 6 or not setting.name.startswith("net/ipv6/"):
                assert self.kernel.sysctls[setting.name] == setting.value
        assert all(live.get(key) == r for key, r in self.desired.resources.items() if key.kind in ("gateway", "vlan"))


@given(moved_fleets(), moved_fleets(), st.integers(0, 2**32), st.sampled_from((0.0, 0.1, 0.3)))
@settings(max_examples=60, deadline=None)
def test_a_vip_is_announced_only_with_what_makes_it_work_and_nothing_old_goes_first(start, goal, seed, share):
    chance = random.Random(seed)
    kernel = FaultyKernel(interfaces=INTERFACES)
    bring_to(kernel, start)
    desired = desired_of(goal)
    Watcher(kernel, desired)
    kernel.fails = lambda: chance.random() < share
    for _ in range(ROUNDS):
        result = apply(plan_for(kernel, desired), kernel)
        if not result.lost and not result.stuck:
            break
        if not any(key.kind == "loopback" for key in result.stuck):
            continue
    assert announced(kernel) == {vip.id for vip in wanted(desired, LoopbackVip)}


@given(moved_fleets(), moved_fleets(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_what_is_blocked_is_not_published_and_all_that_worked_stays(start, goal, seed):
    chance = random.Random(seed)
    kernel = FakeKernel(interfaces=INTERFACES)
    bring_to(kernel, start)
    was, vips, attached = read_live(kernel).resources, announced(kernel), set(kernel.attached)
    desired = desired_of(goal)
    new = sorted({vip.id for vip in wanted(desired, LoopbackVip)} - vips)
    in_the_way = {vip: "address on eth9" for vip in new if chance.random() < 0.5}
    kernel.foreign_vips = in_the_way
    gone = [face for face in INTERFACES if face not in attached and chance.random() < 0.5]
    links = kernel.links()
    kernel.links = lambda: [link for link in links if link.name not in gone]
    planned = plan_for(kernel, desired)
    missing = {face.interface for face in wanted(desired, Attachment)} & set(gone)
    assert bool(planned.blocked) == bool(in_the_way or missing)
    kernel.writes.clear()
    Watcher(kernel, desired)
    result = apply(planned, kernel)
    assert not result.failed
    live = read_live(kernel).resources
    held_back = new if missing else in_the_way
    published = {str(r.vip) for r in live.values() if r.kind == "service"} | {k.id for k in live if k.kind == "vip"}
    assert published.isdisjoint(held_back)
    assert announced(kernel).isdisjoint(held_back)
    if held_back:
        assert vips <= announced(kernel)
        assert {k for k in was if k.kind in ("service", "vip", "neighbour")} - live.keys() == set()
    if held_back or missing:
        # Services that nobody wants any more go, unless one that is new can't come.
        assert vips & {vip.id for vip in wanted(desired, LoopbackVip)} <= announced(kernel)
        assert attached <= set(kernel.attached)
        assert {k for k in was if k.kind == "gateway"} - live.keys() == set()
    if planned.blocked:
        with pytest.raises(Exception, match=r"in the way|there is no interface"):
            result.raise_if_failed()


FAILING = ("add_local_vips", "attach", "load_program", "services", "vips", "gateways", "ring_names", "endpoints")


@pytest.mark.parametrize("failing", FAILING)
@given(fleet=fleets())
@settings(max_examples=8, deadline=None)
def test_a_first_apply_that_fails_leaves_the_node_as_it_was(failing, fleet):
    kernel = FakeKernel()
    if failing == "attach":
        attach = kernel.attach
        kernel.attach = lambda interface, *how: attach(interface, *how) if interface == "back" else refuse()
    elif failing == "load_program":
        kernel.load_program = lambda *how: refuse()
    elif failing == "add_local_vips":
        kernel.add_local_vips = lambda vips: [KernelError("refused")] * len(vips)
    else:
        update = kernel.update
        assert failing in MAPS
        kernel.update = lambda name, rows: (
            [KernelError("refused")] * len(rows) if name.startswith(failing) else update(name, rows)
        )
    before = state(kernel)
    result = apply(plan_for(kernel, desired_of(fleet)), kernel)
    if not result.failed:
        return
    assert not result.stuck
    if fleet.services and not announced(kernel):
        assert result.done == []
        assert state(kernel) == before


def refuse():
    raise KernelError("refused")


def test_a_first_apply_whose_settings_can_not_all_be_written_restores_those_that_were(web_fleet):
    kernel = FakeKernel()
    write, before = kernel.write_sysctl, state(kernel)
    kernel.write_sysctl = lambda name, value: refuse() if name == LAST and value == "2" else write(name, value)
    result = apply(plan_for(kernel, desired_of(web_fleet)), kernel)
    assert Key("sysctl", LAST) in result.failed
    assert state(kernel) == before


LAST = "net/ipv4/conf/front/rp_filter"
