# SPDX-License-Identifier: Apache-2.0
"""What the lab works out from a fleet, before anything is made."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from reconciler.errors import UsageError
from reconciler.lab import LabError
from reconciler.lab.topology import CLIENT, ROUTER, Route, topology
from reconciler.model import Algorithm, Endpoint, Fleet, Mode, Node, Pool, Role, Service

from .conftest import ONE_ARM, TWO_ARMS, fleet_of, interface


def segments(fleet: Fleet) -> dict[str, set[str]]:
    """Which hosts share each segment."""
    found: dict[str, set[str]] = {}
    for link in topology(fleet, "lb1").links:
        found.setdefault(link.segment, set()).add(link.host)
    return found


def test_endpoints_and_the_client_are_put_where_their_subnet_is():
    fleet = fleet_of("20.0.0.1", ["10.2.0.11", "10.2.0.12"], *TWO_ARMS)
    assert sorted(map(sorted, segments(fleet).values())) == [
        ["10.2.0.11", "10.2.0.12", "lb1"], ["client", "lb1"],
    ]  # fmt: skip
    lab = topology(fleet)
    assert lab.client[0] == IPv4Address("10.1.0.253")
    assert set(lab.routes) == {
        Route(CLIENT, IPv4Network("20.0.0.1/32"), IPv4Address("10.1.0.1")),
        Route("10.2.0.11", IPv4Network("0.0.0.0/0"), IPv4Address("10.2.0.1")),
        Route("10.2.0.12", IPv4Network("0.0.0.0/0"), IPv4Address("10.2.0.1")),
    }


def test_endpoints_beside_the_client_reach_each_of_its_addresses_through_the_balancer():
    lab = topology(fleet_of("10.3.0.100", ["10.3.0.11"], *ONE_ARM))
    to_clients = {route.to for route in lab.routes if route.host == "10.3.0.11"} - {IPv4Network("0.0.0.0/0")}
    assert to_clients == {IPv4Network(client) for client in lab.client}
    assert {route.via for route in lab.routes} == {IPv4Address("10.3.0.1")}


def test_interfaces_of_several_balancers_meet_in_the_segments_of_their_subnets():
    first = Node("lb1", (interface("front", "10.1.0.1/24"), interface("back", "10.2.0.1/24")))
    second = Node("lb2", (interface("both", "10.1.0.2/24", "10.2.0.2/24"),))
    third = Node("lb3", (interface("other", "10.9.0.1/24"),))
    fleet = replace(fleet_of("20.0.0.1", ["10.2.0.11"]), nodes=(first, second, third))
    assert sorted(map(sorted, segments(fleet).values())) == [["10.2.0.11", "client", "lb1", "lb2"], ["lb3"]]


def test_an_endpoint_in_no_subnet_is_an_error_that_names_both():
    with pytest.raises(LabError, match=r"10\.7\.0\.11 is in no subnet of lb1 .*10\.1\.0\.0/24, 10\.2\.0\.0/24"):
        topology(fleet_of("20.0.0.1", ["10.7.0.11"], *TWO_ARMS))


def test_an_interface_without_addresses_is_an_error():
    with pytest.raises(LabError, match="back of lb1 has no address"):
        topology(fleet_of("20.0.0.1", ["10.1.0.11"], interface("front", "10.1.0.1/24"), interface("back")))


def test_an_unknown_balancer_is_an_error():
    with pytest.raises(UsageError, match="no Node is named 'lb9'"):
        topology(fleet_of("20.0.0.1", ["10.2.0.11"], *TWO_ARMS), "lb9")


def test_a_node_can_not_take_the_name_of_a_host_of_the_lab():
    fleet = replace(fleet_of("20.0.0.1", []), nodes=(Node(CLIENT, TWO_ARMS),))
    with pytest.raises(LabError, match="can't be named client"):
        topology(fleet)


def test_servers_listen_where_requests_arrive():
    own, plain = Endpoint(IPv4Address("10.2.0.11"), 9000), Endpoint(IPv4Address("10.2.0.12"))
    base = fleet_of("20.0.0.1", [], *TWO_ARMS)
    asked = replace(base.services[0], ports=(80, 81))
    translated = Service("api", (IPv4Address("20.0.0.2"),), asked.protocol, (443,), "web", target_port=8443)
    fleet = replace(base, services=(asked, translated), pools=(Pool("web", (own, plain)),))
    spare = IPv4Address("10.2.0.14")
    assert topology(fleet, spares=[spare]).endpoints == {
        own.address: (9000,), plain.address: (80, 81, 8443), spare: (80, 81, 8443, 9000),
    }  # fmt: skip


def test_the_client_takes_only_addresses_that_nobody_has():
    small = interface("front", "10.1.0.1/29")
    lab = topology(fleet_of("10.1.0.5", ["10.1.0.4"], small))
    assert lab.client == (IPv4Address("10.1.0.3"), IPv4Address("10.1.0.2"))
    with pytest.raises(LabError, match=r"10\.1\.0\.0/29 has no address left"):
        topology(fleet_of("10.1.0.5", ["10.1.0.4", "10.1.0.3", "10.1.0.2"], small))


# --- endpoints that reply directly ---------------------------------------------------------------------------
def direct_fleet(*endpoints, nodes=(), mode=Mode.DSR_L3, interfaces=ONE_ARM):
    fleet = fleet_of("20.0.0.1", list(endpoints), *interfaces, mode=mode, algorithm=Algorithm.MAGLEV)
    return replace(fleet, nodes=(*fleet.nodes, *nodes))


def test_endpoints_beside_the_client_that_reply_directly_need_no_routes():
    lab = topology(direct_fleet("10.3.0.11", mode=Mode.DSR_L2), "lb1")
    assert set(lab.routes) == {Route(CLIENT, IPv4Network("20.0.0.1/32"), IPv4Address("10.3.0.1"))}
    assert ROUTER not in lab.hosts


def test_endpoints_elsewhere_that_reply_directly_have_a_router():
    lab = topology(direct_fleet("10.7.0.11", "10.8.0.11"), "lb1")
    everything = IPv4Network("0.0.0.0/0")
    assert [link.addresses[0].with_prefixlen for link in lab.links if link.host == ROUTER] == [
        "10.3.0.254/24", "10.7.0.254/24", "10.8.0.254/24",
    ]  # fmt: skip
    assert set(lab.routes) == {
        Route(CLIENT, IPv4Network("20.0.0.1/32"), IPv4Address("10.3.0.1")),
        *(Route(host, everything, IPv4Address("10.3.0.254")) for host in (CLIENT, "lb1")),
        Route("10.7.0.11", everything, IPv4Address("10.7.0.254")),
        Route("10.8.0.11", everything, IPv4Address("10.8.0.254")),
    }


def test_endpoints_on_another_arm_reply_directly_through_a_router_of_both():
    lab = topology(direct_fleet("10.2.0.11", mode=Mode.DSR_L2, interfaces=TWO_ARMS), "lb1")
    assert {link.segment for link in lab.links if link.host == ROUTER} == set(lab.segments)
    assert Route("10.2.0.11", IPv4Network("0.0.0.0/0"), IPv4Address("10.2.0.254")) in lab.routes


def test_nodes_say_names_of_devices_networks_mtus_and_the_router():
    web = Node("web1", (replace(interface("ens3", "10.7.0.11/16"), mtu_bytes=9000),), role=Role.ENDPOINT)
    router = Node("gate", (interface("eth0", "10.3.0.99/24"),), role=Role.ROUTER)
    lab = topology(direct_fleet("10.7.0.11", nodes=(web, router)), "lb1")
    link = lab.link("10.7.0.11")
    assert (link.device, link.addresses[0].with_prefixlen, link.mtu_bytes) == ("ens3", "10.7.0.11/16", 9000)
    assert lab.endpoint_nodes == {IPv4Address("10.7.0.11"): "web1"}
    assert [link.addresses[0].with_prefixlen for link in lab.links if link.host == ROUTER] == [
        "10.3.0.99/24", "10.7.255.254/16",
    ]  # fmt: skip
    assert lab.segments == {lab.link("lb1").segment: 1500, link.segment: 9000}
    assert lab.balancers == ("lb1",) and set(lab.hosts) == {"lb1", "10.7.0.11", CLIENT, ROUTER}


def test_an_endpoint_that_serves_in_another_mode_too_replies_through_the_balancer():
    fleet = direct_fleet("10.3.0.11", mode=Mode.DSR_L2)
    nat = Service("nat", (IPv4Address("20.0.0.2"),), fleet.services[0].protocol, (80,), "web")
    lab = topology(replace(fleet, services=(*fleet.services, nat)), "lb1")
    assert Route("10.3.0.11", IPv4Network("0.0.0.0/0"), IPv4Address("10.3.0.1")) in lab.routes


def test_spares_reply_as_the_endpoints_do():
    spare = IPv4Address("10.3.0.14")
    lab = topology(direct_fleet("10.3.0.11", mode=Mode.DSR_L2), "lb1", spares=[spare])
    assert not [route for route in lab.routes if route.host == str(spare)]
