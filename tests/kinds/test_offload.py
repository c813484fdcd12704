# SPDX-License-Identifier: Apache-2.0
"""Offloads that change packets before a program sees them: off before it comes, on again after it has left."""

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.concerns import concerns_of
from reconciler.errors import ApplyError, KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.faulty import FaultyKernel
from reconciler.kernel.objects import GRO, GRO_HW, LRO, PROBER_DEVICE, RX_VLAN, OffloadState
from reconciler.kinds.attachment import Attachment
from reconciler.kinds.offload import MERGING, Offload, OffloadKind, offload_key
from reconciler.kinds.vlan import Vlan
from reconciler.live import read_live
from reconciler.model import Interface, Role, XdpMode
from reconciler.plan import fingerprint, plan
from reconciler.reconcile import desired_of, plan_node
from reconciler.render.style import Style
from reconciler.render.text import change_lines
from reconciler.resource import Change, Context, Desired, Reason
from reconciler.snapshot import live_from_json, live_to_json
from reconciler.view import view
from tests.strategies import fake_source

NATIVE = Interface("front", XdpMode.NATIVE), Interface("back", XdpMode.NATIVE)
GENERIC = Interface("front", XdpMode.GENERIC), Interface("back", XdpMode.NATIVE)
VLAN = Interface("front", XdpMode.NATIVE), Interface("front.7", trunk="front"), Interface("front.8", trunk="front")
MERGES, STRIPS, BELOW = ("front", LRO), ("front", RX_VLAN), ("port", GRO)
KEY, ON = offload_key(*MERGES), OffloadState(True)
FIXED, FORCED = OffloadState(True, is_free=False), OffloadState(True, is_asked_for=False)


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def fleet(web_fleet):
    """The fleet on a node with these interfaces."""

    def make(faces, **changes):
        return replace(web_fleet, nodes=(replace(web_fleet.nodes[0], interfaces=faces, **changes),))

    return make


def node(kind=FakeKernel, **about):
    """One on which `front` is a bridge with a port."""
    about = {"interfaces": ("front", "back", "port")} | about
    return kind(vlans={"front.7": ("front", 7), "front.8": ("front", 8)}, masters={"port": "front"}, **about)


def planned(kernel, fleet):
    return plan_node(desired_of(fleet, None, kernel) if fleet else Desired(), kernel, Path("/nonexistent"))


def bring(kernel, fleet):
    kernel.writes.clear()
    apply(planned(kernel, fleet), kernel).raise_if_failed()
    assert planned(kernel, fleet).changes == ()
    return kernel.writes


def is_on(kernel, offload):
    return kernel.offload_states[offload].is_on


@pytest.mark.parametrize(("faces", "offload", "user"), [
    (GENERIC, MERGES, ("attach", "front")), (GENERIC, ("front", GRO_HW), ("attach", "front")),
    (GENERIC, BELOW, ("attach", "front")), (VLAN, STRIPS, ("update", "trunks")),
])  # fmt: skip
def test_it_is_off_before_what_needs_that_comes_and_on_after_it_went(fleet, faces, offload, user):
    kernel = node(offload_states={offload: ON})
    names = [(name, what[0] if name == "update" else what) for name, what in bring(kernel, fleet(faces))]
    assert names.index(("write_offload", (*offload, False))) < names.index(user)
    assert not is_on(kernel, offload) and kernel.former_on == {offload}
    gone = bring(kernel, None)
    assert gone.index(("detach", "front")) < gone.index(("write_offload", (*offload, True)))
    assert is_on(kernel, offload) and kernel.former_on == set()


@pytest.mark.parametrize(("faces", "wanted"), [
    (NATIVE, set()),
    (GENERIC, {("front", name) for name in MERGING}),
    (VLAN, {STRIPS}),
])  # fmt: skip
def test_only_what_needs_it_asks_for_it(fleet, faces, wanted):
    desired = compile_node(view(fleet(faces), None, "")).resources.values()
    assert {(r.interface, r.name) for r in desired if isinstance(r, Offload)} == wanted


def test_who_runs_no_program_that_sends_asks_for_none(fleet):
    for role in (Role.ENDPOINT, Role.ROUTER):
        seen = replace(view(fleet(VLAN), None, ""), decapsulates=role is Role.ENDPOINT)
        desired = compile_node(replace(seen, node=replace(seen.node, role=role))).resources.values()
        assert not [r for r in desired if isinstance(r, Offload)]
    assert not {k for k in Attachment("front", "generic", "p", sends=False).needs if k.kind == Offload.kind}
    assert not {k for k in Attachment(PROBER_DEVICE, "generic", "p").needs if k.kind == Offload.kind}


def test_needs_say_the_order():
    assert set(Attachment("front", "generic", "p").needs) >= {offload_key("front", name) for name in MERGING}
    assert not {k for k in Attachment("front", "native", "p").needs if k.kind == Offload.kind}
    assert offload_key(*STRIPS) in Vlan("front.7", "front").needs


def test_what_was_off_before_stays_off_afterwards(fleet):
    kernel = node()
    assert "write_offload" not in dict(bring(kernel, fleet(GENERIC)))
    assert "write_offload" not in dict(bring(kernel, None))


def test_it_is_on_again_once_nobody_needs_it_off(fleet):
    kernel = node(offload_states={MERGES: ON, STRIPS: ON})
    bring(kernel, fleet(GENERIC))
    assert is_on(kernel, STRIPS) and not is_on(kernel, MERGES)
    bring(kernel, fleet(VLAN))
    assert is_on(kernel, MERGES) and not is_on(kernel, STRIPS)
    bring(kernel, fleet(VLAN[:2]))
    assert not is_on(kernel, STRIPS), "another VLAN needs it"
    bring(kernel, fleet(NATIVE))
    assert is_on(kernel, STRIPS)


def test_drift_is_found_named_and_mended(fleet):
    kernel = node()
    bring(kernel, fleet(GENERIC))
    kernel.offload_states[MERGES] = ON
    desired = desired_of(fleet(GENERIC), None, kernel)
    applied = {key: fingerprint(r) for key, r in desired.resources.items()}
    (change,) = plan(desired, read_live(kernel, desired.resources), applied).changes
    assert next(iter(change_lines(change, "", Style()))).split("  ")[1:3] == [f"~ {KEY}", "state on -> off"]
    assert change.reason is Reason.DRIFT
    assert bring(kernel, fleet(GENERIC)) == [("write_offload", (*MERGES, False))]


@pytest.mark.parametrize(
    ("upper", "below"), [("front", ["port"]), ("front.7", ["front", "port"]), ("up", ["front", "port"]), ("back", [])]
)
def test_the_kernel_merges_below_an_interface_and_not_at_it(upper, below):
    """A bridge, a VLAN of it, and a bond of which it is a port."""
    kernel = node(interfaces=("front", "back", "port", "up"))
    kernel.masters["front"] = "up"
    kernel.offload_states = {(name, GRO): ON for name in ("front", "back", "port", "up", "front.7")}
    before = dict(kernel.offload_states)
    kind, off = OffloadKind(kernel), Offload(upper, GRO)
    (held,) = kind.read({off.key: off}).resources
    assert held.state == (f"on, by {', '.join(below)}" if below else "off")
    turned = Change(off.key, held, off)
    assert kind.write([turned]) == [None]
    assert kernel.former_on == {(name, GRO) for name in below}
    assert {name for (name, _), state in kernel.offload_states.items() if not state.is_on} == set(below)
    assert kind.read({off.key: off}).resources == (off,)
    assert kind.write([turned.inverse()]) == [None]
    assert (kernel.former_on, kernel.offload_states) == (set(), before)
    assert kind.write([turned]) == [None]
    gone = kind.read({}).resources
    assert [each.id for each in gone] == [f"{name} {GRO}" for name in below]
    assert not any(kind.write([Change(each.key, each, None) for each in gone]))
    assert (kernel.former_on, kernel.offload_states) == (set(), before)


def test_the_plan_says_which_may_cost_packets(fleet):
    def effect(name):
        return Offload("front", name, "on").effect(Offload("front", name), Context())

    assert effect(GRO) == ""
    assert all("start the interface anew" in effect(name) for name in (LRO, GRO_HW, RX_VLAN))


@pytest.mark.parametrize("state", [FIXED, FORCED])
def test_a_trunk_whose_driver_takes_tags_off_for_good_blocks_with_the_way_out(fleet, state):
    kernel = node(offload_states={STRIPS: state})
    found = planned(kernel, fleet(VLAN))
    assert "front takes the tags off before XDP sees them" in found.blocked[offload_key(*STRIPS)]
    assert "another interface" in found.blocked[offload_key(*STRIPS)]
    apply(found, kernel)
    assert kernel.vips == set() and "write_offload" not in dict(kernel.writes)


@pytest.mark.parametrize(("state", "warns"), [(FIXED, True), (FORCED, True), (ON, False)])
def test_a_driver_that_merges_for_good_is_warned_of_and_serves(fleet, state, warns):
    kernel = node(offload_states={MERGES: state})
    bring(kernel, fleet(GENERIC))
    assert kernel.vips
    found = [c for c in concerns_of(kernel, desired_of(fleet(GENERIC), None, kernel)) if c.key == KEY]
    assert bool(found) is warns
    assert all("uploads to VIPs stall" in concern.text for concern in found)
    bring(kernel, None)
    assert kernel.offload_states[MERGES] == state


def test_a_driver_that_does_not_heed_it_fails_and_leaves_no_note(fleet, monkeypatch):
    kernel = node(offload_states={STRIPS: ON})
    write = kernel.write_offload

    def stubborn(interface, name, is_on):
        write(interface, name, is_on)
        kernel.offload_states[interface, name] = OffloadState(True, is_asked_for=is_on)

    monkeypatch.setattr(kernel, "write_offload", stubborn)
    with pytest.raises(ApplyError, match="front takes the tags off before XDP sees them"):
        bring(kernel, fleet(VLAN))
    assert kernel.former_on == set() and kernel.vips == set()
    assert kernel.offload_states[STRIPS] == ON


@pytest.mark.parametrize(("offload", "faces"), [(MERGES, GENERIC), (STRIPS, VLAN)])
def test_a_failure_later_on_takes_it_back(fleet, offload, faces, monkeypatch):
    kernel = node(offload_states={offload: ON})
    monkeypatch.setattr(kernel, "add_local_vips", lambda vips: [OSError("refused") for _ in vips])
    assert apply(planned(kernel, fleet(faces)), kernel).failed
    assert is_on(kernel, offload) and kernel.former_on == set()


def test_a_refused_write_leaves_no_note_and_the_next_one_arrives(fleet):
    kernel = node(FaultyKernel, offload_states={MERGES: ON})
    fails = iter([True] * 3)
    write = kernel.write_offload

    def flaky(*words):
        if next(fails, False):
            raise KernelError("no")
        write(*words)

    kernel.write_offload = flaky
    result = apply(planned(kernel, fleet(GENERIC)), kernel)
    assert KEY in result.failed and kernel.vips == set()
    assert kernel.former_on == set() and is_on(kernel, MERGES)
    bring(kernel, fleet(GENERIC))
    assert kernel.former_on == {MERGES}


def test_one_whose_interface_is_gone_is_forgotten(fleet):
    kernel = node(offload_states={STRIPS: ON, ("side", LRO): ON}, interfaces=("front", "back", "port", "side"))
    bring(kernel, fleet((*NATIVE, Interface("side", XdpMode.GENERIC))))
    assert kernel.former_on == {("side", LRO)}
    kernel.interfaces = ("front", "back", "port")
    kernel.attached.pop("side")
    (change,) = [c for c in planned(kernel, fleet(NATIVE)).changes if c.key.kind == Offload.kind]
    assert change.before.describe() == change.before.former() == {"state": "gone"}
    bring(kernel, fleet(NATIVE))
    assert kernel.former_on == set()


def test_an_interface_that_is_missing_is_all_that_is_said(fleet):
    kernel = FakeKernel(interfaces=("back",))
    found = planned(kernel, fleet(GENERIC))
    assert [str(key) for key in found.blocked] == ["interface front"]


def test_a_snapshot_has_it(fleet):
    kernel = node(offload_states={MERGES: ON, STRIPS: FIXED})
    desired = desired_of(fleet(GENERIC), None, kernel)
    live = read_live(kernel, desired.resources)
    assert live.resources[KEY].state == "on"
    assert live_from_json(live_to_json(live)).resources[KEY] == live.resources[KEY]
