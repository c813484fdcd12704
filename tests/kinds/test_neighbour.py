# SPDX-License-Identifier: Apache-2.0
"""Which neighbours a node keeps fresh, and whose are left alone."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel import objects
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.neighbour import Neighbour
from reconciler.kinds.routers import Routers
from reconciler.live import read_live
from reconciler.model import Endpoint, EndpointState, Interface
from reconciler.plan import plan
from reconciler.view import view
from tests.strategies import fake_source

FRONT = Interface("front", addresses=(ip_interface("10.1.0.1/24"),), gateway=None)
BACK = Interface("back", addresses=(ip_interface("10.2.0.254/24"), ip_interface("2001:db8:2::1/64")))


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def on(fleet, *interfaces):
    (node,) = fleet.nodes
    return replace(fleet, nodes=(replace(node, interfaces=interfaces),))


def with_endpoints(fleet, *endpoints):
    (pool,) = fleet.pools
    return replace(fleet, pools=(replace(pool, endpoints=endpoints),))


def neighbours(fleet):
    resources = compile_node(view(fleet, None, "")).resources.values()
    return {(str(n.address), n.interface) for n in resources if isinstance(n, Neighbour)}


def bring(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    planned = plan(desired, read_live(kernel, desired.resources))
    apply(planned, kernel).raise_if_failed()
    return [change.key.id for change in planned.changes if change.key.kind == Neighbour.kind]


def test_endpoints_on_declared_networks_are_neighbours(web_fleet):
    fleet = with_endpoints(
        web_fleet,
        Endpoint(IPv4Address("10.2.0.11")), Endpoint(IPv4Address("10.2.0.11"), 8080),
        Endpoint(IPv4Address("10.2.0.12"), state=EndpointState.DRAINING),
        Endpoint(IPv4Address("10.2.0.13"), state=EndpointState.DISABLED),
        Endpoint(IPv4Address("10.2.0.254")),  # the balancer itself
        Endpoint(IPv4Address("10.2.1.11")), Endpoint(IPv4Address("10.1.0.9")),
    )  # fmt: skip
    assert neighbours(on(fleet, FRONT, BACK)) == {
        ("10.2.0.11", "back"), ("10.2.0.12", "back"), ("10.1.0.9", "front"),
    }  # fmt: skip
    assert neighbours(on(fleet, Interface("front"), Interface("back"))) == set()


def test_a_node_without_services_keeps_none(web_fleet):
    assert neighbours(replace(on(web_fleet, FRONT, BACK), services=())) == set()


def test_a_change_of_endpoints_adds_and_removes_their_entries(web_fleet):
    kernel = FakeKernel()
    assert bring(kernel, on(web_fleet, FRONT, BACK)) == ["10.2.0.1 back", "10.2.0.2 back"]
    assert kernel.kept == {objects.Neighbour("10.2.0.1", "back"), objects.Neighbour("10.2.0.2", "back")}
    fewer = with_endpoints(web_fleet, Endpoint(IPv4Address("10.2.0.2")))
    assert bring(kernel, on(fewer, FRONT, BACK)) == ["10.2.0.1 back"]
    assert kernel.kept == {objects.Neighbour("10.2.0.2", "back")}


def test_what_others_take_care_of_needs_no_entry_and_stays(web_fleet):
    static = objects.Neighbour("10.2.0.1", "back")
    kernel = FakeKernel(others_neighbours={static})
    assert bring(kernel, on(web_fleet, FRONT, BACK)) == ["10.2.0.2 back"]
    assert bring(kernel, on(with_endpoints(web_fleet), FRONT, BACK)) == ["10.2.0.2 back"]
    assert kernel.others_neighbours == {static}
    kernel.others_neighbours.clear()
    assert bring(kernel, on(web_fleet, FRONT, BACK)) == ["10.2.0.1 back", "10.2.0.2 back"]


def test_a_kernel_that_can_keep_none_is_asked_for_none(web_fleet):
    kernel = FakeKernel(can_keep=False)
    assert bring(kernel, on(web_fleet, FRONT, BACK)) == []
    assert not kernel.kept


def test_an_ipv6_neighbour_reads_back_as_it_was_written():
    kernel = FakeKernel(kept={objects.Neighbour("2001:db8:2::11", "back")})
    (found,) = read_live(kernel, kinds=(Neighbour.kind,)).resources.values()
    assert found == Neighbour(ip_address("2001:db8:2::11"), "back")


# --- routers -------------------------------------------------------------------------------------------------
ROUTER, OTHER = objects.Neighbour("10.1.0.254", "front"), objects.Neighbour("fe80::1", "back")


def bring_all(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    planned = plan(desired, read_live(kernel, desired.resources))
    apply(planned, kernel).raise_if_failed()
    assert plan(desired, read_live(kernel, desired.resources)).changes == ()
    return {str(change.key) for change in planned.changes if change.key.kind in (Routers.kind, Neighbour.kind)}


def test_the_routers_of_the_nodes_routes_are_kept_and_followed(web_fleet):
    kernel = FakeKernel()
    assert bring_all(kernel, web_fleet) == set()
    kernel.others_hops = {ROUTER}
    assert bring_all(kernel, web_fleet) == {"routers all"}
    assert kernel.kept == {ROUTER}
    kernel.others_hops = {ROUTER, OTHER}
    assert bring_all(kernel, web_fleet) == {"routers all"}
    assert kernel.kept == {ROUTER, OTHER}
    kernel.others_hops = {OTHER}
    assert bring_all(kernel, web_fleet) == {"neighbour 10.1.0.254 front"}
    assert kernel.kept == {OTHER}
    assert bring_all(kernel, replace(web_fleet, services=())) == {"routers all"}
    assert kernel.kept == set()


def test_which_router_is_not_kept_is_said(web_fleet):
    kernel = FakeKernel(others_hops={ROUTER, OTHER})
    bring_all(kernel, web_fleet)
    kernel.kept.remove(OTHER)
    found = read_live(kernel, {Routers().key: Routers()}).resources[Routers().key]
    assert found.describe() == {"kept": "all but fe80::1 back"}


def test_an_endpoint_that_is_a_router_stays_kept_when_it_is_one_of_them_only(web_fleet):
    endpoint = objects.Neighbour("10.2.0.1", "back")
    fleet = on(web_fleet, FRONT, BACK)
    kernel = FakeKernel(others_hops={endpoint})
    bring_all(kernel, fleet)
    kernel.writes.clear()
    fewer = with_endpoints(fleet, Endpoint(IPv4Address("10.2.0.2")))
    assert bring_all(kernel, fewer) == set()
    assert endpoint in kernel.kept
    assert not [write for write in kernel.writes if "neighbour" in write[0]]
    kernel.others_hops.clear()
    assert bring_all(kernel, fewer) == {"neighbour 10.2.0.1 back"}


def test_a_router_that_others_take_care_of_needs_no_entry(web_fleet):
    kernel = FakeKernel(others_hops={ROUTER}, others_neighbours={ROUTER})
    assert bring_all(kernel, web_fleet) == set()
    assert kernel.kept == set()
    assert bring_all(FakeKernel(others_hops={ROUTER}, can_keep=False), web_fleet) == set()


def test_an_entry_that_would_not_last_is_mended(web_fleet):
    kernel = FakeKernel(kept={replace(ROUTER, is_lasting=False), objects.Neighbour("10.2.0.1", "back", False)})
    kernel.others_hops = {ROUTER}
    fleet = with_endpoints(on(web_fleet, FRONT, BACK), Endpoint(IPv4Address("10.2.0.1")))
    assert bring_all(kernel, fleet) == {"neighbour 10.2.0.1 back", "routers all"}
    assert all(neighbour.is_lasting for neighbour in kernel.kept)
