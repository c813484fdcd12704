# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, pool, service
from tests.config.rules.parts import TWO_BALANCERS, endpoint, web

FRONT = "{name: front, addresses: [10.1.0.1/24]}"

CASES = {
    "dsr-port": (
        web("dsr-l3", endpoints="{address: 10.2.0.11, port: 8080}"),
        web("dsr-l3", endpoints="{address: 10.2.0.11, port: 80}, {address: 10.2.0.12}", more="targetPort: 80"),
    ),
    "dsr-l2-segment": (
        web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.3.0.11}") + node(),
        web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.1.0.11}") + node(),
    ),
    "dsr-least-connections": (
        web("dsr-l2", more="algorithm: least-connections"),
        web("fullnat", more="algorithm: least-connections"),
    ),
    "dsr-round-robin": (
        web("dsr-l3", more="algorithm: round-robin"),
        web("dsr-l3"),
    ),
    "dsr-endpoint-unmanaged": (
        web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.2.0.12}") + endpoint("ep1", "10.2.0.11"),
        web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.2.0.12}") + endpoint("ep1", "10.2.0.11")
        + endpoint("ep2", "10.2.0.12"),
    ),
    "tunnel-mtu": (
        web("dsr-l3") + node(interfaces=f"{FRONT}, {{name: back, addresses: [10.2.0.1/24], mtu: 1519}}"),
        web("dsr-l3") + node(interfaces=f"{FRONT}, {{name: back, addresses: [10.2.0.1/24], mtu: 1520}}"),
    ),
}  # fmt: skip


def found(write, text):
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


@pytest.mark.parametrize("mode", ["dsr-l2", "dsr-l3"])
@pytest.mark.parametrize(
    ("ports", "more", "endpoints"),
    [
        ("[80]", "targetPort: 8080", "{address: 10.2.0.11}"),
        ("[80, 81]", "targetPort: 80", "{address: 10.2.0.11}"),
        ("[80, 81]", "", "{address: 10.2.0.11, port: 80}"),
    ],
)
def test_dsr_translates_no_port(write, mode, ports, more, endpoints):
    assert [rule for rule, _ in found(write, web(mode, ports=ports, more=more, endpoints=endpoints))] == ["dsr-port"]


def test_many_endpoints_with_a_wrong_port_are_one_finding(write):
    endpoints = ", ".join(f"{{address: 10.2.0.{i}, port: 8080}}" for i in range(11, 31))
    text = web("dsr-l3", endpoints=endpoints) + service("b", ports="[81]", more="mode: dsr-l3")
    ((rule, message),) = found(write, text)
    assert rule == "dsr-port"
    assert message.endswith("port 8080 (and 19 more endpoints)")


def test_icmp_has_no_port_to_translate(write):
    text = service().replace("ports: [80]", "protocol: icmp, mode: dsr-l3")
    assert found(write, text + pool(endpoints="{address: 10.2.0.11, port: 8080}")) == []


def test_every_balancer_must_share_a_network_with_the_endpoint(write):
    text = web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.3.0.11}, {address: 10.4.0.11}")
    balancers = node(interfaces="{name: a, addresses: [10.2.0.1/24, 10.3.0.1/24, 10.4.0.1/24]}")
    assert found(write, text + balancers) == []
    second = node("lb2", interfaces="{name: a, addresses: [10.2.0.2/24]}")
    ((rule, message),) = found(write, text + balancers + second)
    assert rule == "dsr-l2-segment"
    assert message == "dsr-l2 can't reach 10.3.0.11: it is in no network of Node 'lb2' (and 1 more endpoint)"


@pytest.mark.parametrize(
    "interfaces",
    [
        "{name: eth0}",                                                    # no address at all
        "{name: eth0, addresses: [10.1.0.1/24]}, {name: eth1}",            # an interface without any
        "{name: eth0, addresses: ['2001:db8::1/64']}",                     # none of the family
    ],
)  # fmt: skip
def test_networks_that_are_not_declared_are_not_judged(write, interfaces):
    assert found(write, web("dsr-l2", endpoints="{address: 10.3.0.11}") + node(interfaces=interfaces)) == []


def test_ipv6_segments_count_too(write):
    text = web("dsr-l2", vip="'2001:db8:20::1'", endpoints="{address: '2001:db8:2::11'}, {address: '2001:db8:3::11'}")
    ((rule, message),) = found(write, text + node(interfaces="{name: eth0, addresses: ['2001:db8:2::1/64']}"))
    assert rule == "dsr-l2-segment"
    assert message == "dsr-l2 can't reach 2001:db8:3::11: it is in no network of Node 'lb1'"


def test_other_modes_need_no_common_segment(write):
    interfaces = "{name: eth0, addresses: [10.1.0.1/24], gateway: 10.1.0.254}"
    text = web("fullnat", endpoints="{address: 10.3.0.11}")
    assert found(write, text + node(interfaces=interfaces, more="snatAddresses: [10.1.0.2]")) == []


def test_a_fleet_without_endpoint_nodes_is_prepared_by_others(write):
    assert found(write, web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.2.0.12}")) == []


def test_endpoint_in_a_broken_document_may_be_the_one(write):
    broken = endpoint("ep2", "10.2.0.12").replace("addresses", "adresses")
    text = web("dsr-l2", endpoints="{address: 10.2.0.11}, {address: 10.2.0.12}") + endpoint("ep1", "10.2.0.11")
    assert [rule for rule, _ in found(write, text + broken)] == ["unknown-key"]


@pytest.mark.parametrize(
    ("address", "back", "needed"),
    [
        ("10.2.0.11", "addresses: [10.2.0.1/24]", 1520),
        ("10.9.0.11", "addresses: [10.2.0.1/24], gateway: 10.2.0.254", 1520),
        ("2001:db8::11", "addresses: ['2001:db8::1/64']", 1540),
        ("2001:db8:9::11", "addresses: ['2001:db8::1/64'], gateway: 'fe80::1'", 1540),
    ],
)
def test_tunnel_needs_room_for_its_outer_header(write, address, back, needed):
    front = "{name: front, addresses: [10.1.0.1/24, '2001:db8:1::1/64']}"
    text = web("dsr-l3", endpoints=f"{{address: '{address}'}}")
    for mtu, expected in ((needed - 1, ["tunnel-mtu"]), (needed, [])):
        interfaces = f"{front}, {{name: back, {back}, mtu: {mtu}}}"
        rules = found(write, text + node(interfaces=interfaces))
        assert [rule for rule, _ in rules] == expected
        assert all(f" become {needed} in the tunnel" in message for _, message in rules)


def test_tunnel_on_a_stick_shares_the_interface_with_the_clients(write):
    text = web("dsr-l3", endpoints="{address: 10.9.0.11}")
    stick = "{name: eth0, addresses: [10.1.0.1/24], gateway: 10.1.0.254, mtu: %d}"
    assert [rule for rule, _ in found(write, text + node(interfaces=stick % 1519))] == ["tunnel-mtu"]
    assert found(write, text + node(interfaces=stick % 1520)) == []


def test_smaller_packets_of_clients_fit_into_the_tunnel(write):
    front = "{name: front, addresses: [10.1.0.1/24], mtu: 1480}"
    interfaces = f"{front}, {{name: back, addresses: [10.2.0.1/24]}}"
    assert found(write, web("dsr-l3") + node(interfaces=interfaces)) == []


def test_endpoint_must_take_what_the_tunnel_brings(write):
    interfaces = f"{FRONT}, {{name: back, addresses: [10.2.0.1/24], mtu: 9000}}"
    text = web("dsr-l3", endpoints="{address: 10.2.0.11}, {address: 10.2.0.12}") + node(interfaces=interfaces)
    good = endpoint("ep1", "10.2.0.11", mtu=1520)
    ((rule, message),) = found(write, text + good + endpoint("ep2", "10.2.0.12"))
    assert rule == "tunnel-mtu"
    assert message == "packets of up to 1520 bytes come out of the network, but eth0 of Node 'ep2' takes 1500"
    assert found(write, text + good + endpoint("ep2", "10.2.0.12", mtu=9000)) == []


def test_an_interface_is_told_of_once(write):
    text = web("dsr-l3") + service("b", ports="[81]", pool="b", more="mode: dsr-l3") + pool(
        "b", endpoints="{address: 10.2.0.12}"
    )
    assert [rule for rule, _ in found(write, text + TWO_BALANCERS)] == ["tunnel-mtu", "tunnel-mtu"]
