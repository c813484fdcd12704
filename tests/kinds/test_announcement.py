# SPDX-License-Identifier: Apache-2.0
"""A VIP is announced last, and only with all that it needs; its route is the first thing to go."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import AttachedProgram, Route
from reconciler.kinds.announcement import Announcement
from reconciler.live import read_live
from reconciler.model import Announce
from reconciler.plan import plan
from reconciler.resource import Key
from reconciler.view import view
from tests.strategies import fake_source

VIP, OTHER = "20.20.20.1", "20.20.20.2"


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


DEFAULT = Announce()


def told(fleet, announce=DEFAULT, vips=(VIP,)):
    (node,), (service,) = fleet.nodes, fleet.services
    service = replace(service, vips=tuple(map(ip_address, vips)))
    return replace(fleet, nodes=(replace(node, announce=announce),), services=(service,))


def plan_for(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    return plan(desired, read_live(kernel, desired.resources))


def bring(kernel, fleet):
    """The writes that it takes; afterwards nothing is left to do."""
    kernel.writes.clear()
    apply(plan_for(kernel, fleet), kernel).raise_if_failed()
    assert plan_for(kernel, fleet).changes == ()
    return list(kernel.writes)


def route(vip=VIP, table=251, metric=100):
    return Route(f"{vip}/32", "", "lo", table, metric)


def test_the_route_comes_last_and_goes_first(web_fleet):
    kernel = FakeKernel()
    writes = bring(kernel, told(web_fleet))
    assert writes[-1] == ("add_route", route())
    assert [name for name, _ in writes[:-1]].count("add_route") == 0
    desired = compile_node(view(replace(told(web_fleet), services=()), None, ""))
    kernel.writes.clear()
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    gone = [name for name, _ in kernel.writes if name in ("delete", "detach") or name.startswith("remove")]
    assert gone[:2] == ["remove_route", "remove_vip"]
    assert kernel.announcements == set()


def test_nobody_is_told_without_the_setting(web_fleet):
    kernel = FakeKernel()
    bring(kernel, told(web_fleet, announce=None))
    assert kernel.announcements == set()


def test_one_vip_of_several_is_withdrawn_alone(web_fleet):
    kernel = FakeKernel()
    bring(kernel, told(web_fleet, vips=(VIP, OTHER)))
    writes = bring(kernel, told(web_fleet))
    assert kernel.announcements == {route()}
    assert writes[0] == ("remove_route", route(OTHER))


def test_another_table_or_metric_is_there_before_the_former_one_goes(web_fleet):
    kernel = FakeKernel()
    bring(kernel, told(web_fleet))
    for former, announce in ((route(), Announce(100)), (route(table=100), Announce(100, 500))):
        new = route(table=announce.table, metric=announce.metric)
        assert bring(kernel, told(web_fleet, announce)) == [("add_route", new), ("remove_route", former)]


def test_a_change_of_metric_that_was_cut_off_is_ended(web_fleet):
    kernel = FakeKernel()
    bring(kernel, told(web_fleet))
    for metric in (50, 500):
        kernel.announcements.add(route(metric=metric))
        bring(kernel, told(web_fleet))
        assert kernel.announcements == {route()}


def test_a_lost_route_is_drift(web_fleet):
    kernel = FakeKernel()
    bring(kernel, told(web_fleet))
    kernel.announcements.clear()
    assert bring(kernel, told(web_fleet)) == [("add_route", route())]


def test_what_is_missing_is_named(web_fleet):
    """Somebody else's program on an interface: the VIP is not announced, and the plan says what it waits for."""
    stranger = AttachedProgram("front", "native", 7, "other", "somebody else", is_loaded=False, has_our_maps=False)
    kernel = FakeKernel(foreign_programs={"front": stranger})
    planned = plan_for(kernel, told(web_fleet))
    (held,) = [held for held in planned.held if held.change.key.kind == Announcement.kind]
    assert str(held) == "waits for xdp front"
    apply(planned, kernel)
    assert kernel.announcements == set()


@pytest.mark.parametrize("failing", ["attach", "add_local_vips", "update"])
def test_what_fails_is_not_announced(web_fleet, monkeypatch, failing):
    kernel = FakeKernel()

    def refuse(*args):
        if failing == "attach":
            raise KernelError("refused")
        return [KernelError("refused") for _ in args[-1]]

    monkeypatch.setattr(kernel, failing, refuse)
    result = apply(plan_for(kernel, told(web_fleet)), kernel)
    assert result.failed
    assert Key(Announcement.kind, f"{VIP} table 251") in result.lost
    assert ("add_route", route()) not in kernel.writes


def test_a_vip_that_reads_back_otherwise_is_not_announced(web_fleet, monkeypatch):
    kernel = FakeKernel()
    monkeypatch.setattr(kernel, "local_vips", lambda _=None: [])
    result = apply(plan_for(kernel, told(web_fleet)), kernel)
    assert Key("loopback", VIP) in result.failed
    assert ("add_route", route()) not in kernel.writes


def test_a_route_that_can_not_be_withdrawn_keeps_the_vip(web_fleet, monkeypatch):
    """Else routers would go on sending packets to a VIP that nobody answers for."""
    kernel = FakeKernel()
    bring(kernel, told(web_fleet))
    monkeypatch.setattr(kernel, "remove_routes", lambda routes: [KernelError("refused") for _ in routes])
    desired = compile_node(view(replace(told(web_fleet), services=()), None, ""))
    apply(plan(desired, read_live(kernel, desired.resources)), kernel)
    assert {vip.address for vip in kernel.vips} == {VIP}
    assert kernel.attached
