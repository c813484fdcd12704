# SPDX-License-Identifier: Apache-2.0
"""Sources of fullnat: what brings replies to an address is there before a packet leaves from it, and goes after."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.live import read_live
from reconciler.model import Announce, Mode
from reconciler.plan import plan
from reconciler.reconcile import carry_out
from reconciler.view import view
from tests.strategies import fake_source

VIP, SOURCE, SECOND = "20.20.20.1", "10.2.0.201", "10.2.0.202"


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def translated(fleet, *sources):
    (node,), (service,) = fleet.nodes, fleet.services
    node = replace(node, snat_addresses=tuple(map(ip_address, sources)), announce=Announce())
    return replace(fleet, nodes=(node,), services=(replace(service, mode=Mode.FULLNAT),))


def plan_for(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    return plan(desired, read_live(kernel, desired.resources))


def brought(kernel, fleet, directory):
    """The changes that lead there, in their order; afterwards nothing is left to do."""
    planned = plan_for(kernel, fleet)
    result = carry_out(planned, kernel, directory, lambda change, error: None)
    result.raise_if_failed()
    assert plan_for(kernel, fleet).changes == ()
    return [f"{change.action.value} {change.key}" for change in result.done]


def about(changes, *addresses):
    return [change for change in changes if "snat" in change or any(address in change for address in addresses)]


def test_a_new_source_stands_before_it_is_used(web_fleet, tmp_path):
    kernel = FakeKernel()
    changes = brought(kernel, translated(web_fleet, SOURCE), tmp_path)
    assert about(changes, SOURCE, VIP) == [
        f"create vip {SOURCE}", f"create loopback {SOURCE}", f"create announcement {SOURCE} table 251",
        "create snat balancer", f"create service {VIP}:80/tcp", f"create vip {VIP}", f"create loopback {VIP}",
        f"create announcement {VIP} table 251",
    ]  # fmt: skip
    changes = brought(kernel, translated(web_fleet, SOURCE, SECOND), tmp_path)
    assert changes == [
        f"create vip {SECOND}", f"create loopback {SECOND}", f"create announcement {SECOND} table 251",
        "update snat balancer",
    ]  # fmt: skip


def test_a_source_goes_after_it_is_used(web_fleet, tmp_path):
    kernel = FakeKernel()
    brought(kernel, translated(web_fleet, SOURCE, SECOND), tmp_path)
    changes = brought(kernel, translated(web_fleet, SOURCE), tmp_path)
    assert changes == [
        "update snat balancer",
        f"delete announcement {SECOND} table 251", f"delete loopback {SECOND}", f"delete vip {SECOND}",
    ]  # fmt: skip
    fleet = translated(web_fleet, SOURCE)
    nat = replace(fleet, services=(replace(fleet.services[0], mode=Mode.NAT),))
    changes = brought(kernel, nat, tmp_path)
    assert about(changes, SOURCE) == [
        "delete snat balancer", f"delete announcement {SOURCE} table 251", f"delete loopback {SOURCE}",
        f"delete vip {SOURCE}",
    ]  # fmt: skip


def test_neighbours_are_told_of_new_sources(web_fleet, tmp_path):
    """They may know another MAC, of the balancer that had the address before."""
    kernel = FakeKernel()
    brought(kernel, translated(web_fleet, SOURCE), tmp_path)
    assert [set(told) for told in kernel.announced] == [{VIP, SOURCE}]
    brought(kernel, translated(web_fleet, SOURCE, SECOND), tmp_path)
    assert kernel.announced[1:] == [[SECOND]]


def test_a_source_that_is_somebody_elses_is_not_used(web_fleet, tmp_path):
    kernel = FakeKernel()
    brought(kernel, translated(web_fleet, SOURCE), tmp_path)
    kernel.foreign_vips = {SECOND: "address on eth9"}
    kernel.writes.clear()
    planned = plan_for(kernel, translated(web_fleet, SOURCE, SECOND))
    assert {str(key) for key in planned.blocked} == {f"loopback {SECOND}"}
    assert "snat balancer" in {str(held.change.key) for held in planned.held}
    carry_out(planned, kernel, tmp_path, lambda change, error: None)
    assert kernel.writes == []
