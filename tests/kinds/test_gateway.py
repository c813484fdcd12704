# SPDX-License-Identifier: Apache-2.0
"""Rows of gateways follow the manifests, and interfaces that come and go."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.dataplane.layout import GATEWAYS
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.gateway import Gateway
from reconciler.live import read_live
from reconciler.model import Interface
from reconciler.plan import plan
from reconciler.resource import Key
from reconciler.view import view
from tests.strategies import fake_source


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def with_gateways(fleet, **gateways):
    (node,) = fleet.nodes
    faces = tuple(
        Interface(name, gateway=gateways.get(name) and ip_address(gateways[name])) for name in ("front", "back")
    )
    return replace(fleet, nodes=(replace(node, interfaces=faces),))


def planned(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    return plan(desired, read_live(kernel, desired.resources))


def bring(kernel, fleet):
    apply(planned(kernel, fleet), kernel).raise_if_failed()
    assert planned(kernel, fleet).changes == ()
    return {(r.interface, str(r.address)) for r in read_live(kernel).resources.values() if isinstance(r, Gateway)}


def test_a_gateway_comes_changes_and_goes(web_fleet):
    kernel = FakeKernel()
    assert bring(kernel, with_gateways(web_fleet)) == set()
    assert bring(kernel, with_gateways(web_fleet, front="10.1.0.254")) == {("front", "10.1.0.254")}
    both = with_gateways(web_fleet, front="2001:db8:1::fe", back="10.2.0.254")
    assert bring(kernel, both) == {("front", "2001:db8:1::fe"), ("back", "10.2.0.254")}
    assert bring(kernel, with_gateways(web_fleet, back="10.2.0.254")) == {("back", "10.2.0.254")}
    assert bring(kernel, with_gateways(web_fleet)) == set()


def test_the_row_of_an_interface_that_is_gone_is_removed_and_a_new_one_gets_its_own(web_fleet):
    fleet = with_gateways(web_fleet, front="10.1.0.254")
    kernel = FakeKernel()
    bring(kernel, fleet)
    kernel.interfaces = ("lost", "other", "front", "back")  # `front` has another number now
    kernel.maps[GATEWAYS.name] = {bytes([9, 0, 0, 0]): row for row in kernel.maps[GATEWAYS.name].values()}
    assert {change.key.id for change in planned(kernel, fleet).changes if change.key.kind == "gateway"} == {
        "front", "interface 9",
    }  # fmt: skip
    assert Key("gateway", "interface 9") not in planned(kernel, fleet).effects(), "no packet comes in by it"
    assert bring(kernel, fleet) == {("front", "10.1.0.254")}
    assert len(kernel.maps[GATEWAYS.name]) == 1


def test_the_program_knows_gateways_where_an_interface_has_one(web_fleet):
    assert "GATEWAY" not in view(with_gateways(web_fleet), None, "").features
    fleet = with_gateways(web_fleet, back="10.2.0.254")
    assert "GATEWAY" in view(fleet, None, "").features
    assert "GATEWAY" not in view(replace(fleet, services=()), None, "").features


def test_a_gateway_is_a_neighbour_that_is_kept_fresh(web_fleet):
    kernel = FakeKernel()
    bring(kernel, with_gateways(web_fleet, front="10.1.0.254"))
    assert [(n.address, n.interface) for n in kernel.kept] == [("10.1.0.254", "front")]


def test_a_link_local_gateway_reads_back_as_what_the_manifest_says(web_fleet):
    kernel = FakeKernel()
    assert bring(kernel, with_gateways(web_fleet, front="fe80::6", back="fe80::6")) == {
        ("front", "fe80::6"), ("back", "fe80::6"),
    }  # fmt: skip
    assert {(route.via, route.interface) for route in kernel.routes()} == {("fe80::6", "front"), ("fe80::6", "back")}
    assert {(n.address, n.interface) for n in kernel.kept} == {("fe80::6", "front"), ("fe80::6", "back")}
    rows = dict(kernel.maps[GATEWAYS.name])
    assert bring(kernel, with_gateways(web_fleet, front="fe80::7", back="10.2.0.254")) == {
        ("front", "fe80::7"), ("back", "10.2.0.254"),
    }  # fmt: skip
    assert [route.via for route in kernel.routes()] == ["fe80::7"]
    (index,) = [link.index for link in kernel.links() if link.name == "front"]
    key = bytes([index, 0, 0, 0])
    assert kernel.maps[GATEWAYS.name][key] == rows[key]  # the same stand-in
    assert bring(kernel, with_gateways(web_fleet)) == set()
    assert kernel.routes() == []


def test_a_link_local_gateway_never_lacks_the_route_that_it_stands_on(web_fleet):
    kernel = FakeKernel()
    bring(kernel, with_gateways(web_fleet, front="10.1.0.254"))

    def check():
        rows = [value for value in kernel.maps.get(GATEWAYS.name, {}).values() if value.startswith(b"\1\0")]
        assert len(rows) <= len(kernel.routes())

    kernel.on_write = check
    bring(kernel, with_gateways(web_fleet, front="fe80::6"))
    bring(kernel, with_gateways(web_fleet, front="10.1.0.254"))
    bring(kernel, with_gateways(web_fleet, front="fe80::6"))
    bring(kernel, with_gateways(web_fleet))


def test_a_lost_route_of_a_link_local_gateway_is_mended(web_fleet):
    fleet = with_gateways(web_fleet, front="fe80::6")
    kernel = FakeKernel()
    bring(kernel, fleet)
    kernel.held_routes.clear()
    assert {str(change.key) for change in planned(kernel, fleet).changes} == {"gateway-route front", "gateway front"}
    assert bring(kernel, fleet) == {("front", "fe80::6")}


def test_a_route_that_is_left_alone_is_removed(web_fleet):
    kernel = FakeKernel()
    bring(kernel, with_gateways(web_fleet, front="fe80::6"))
    kernel.maps[GATEWAYS.name].clear()
    bring(kernel, with_gateways(web_fleet))
    assert kernel.routes() == []
