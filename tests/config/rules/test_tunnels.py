# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, service
from tests.config.rules.parts import web

WIDE = "{name: eth0, mtu: 9000}"
BACK = "{name: back, addresses: [10.2.0.1/24], mtu: 1540}"
FRONT = "{name: front, addresses: ['2001:db8:1::1/64', 'fe80::1/64']}"

CASES = {
    "tunnel-source-missing": (
        web("dsr-l3") + node(interfaces=WIDE),
        web("dsr-l3") + node(interfaces=WIDE, more="tunnelSource: {ipv4: 10.200.0.0/24}"),
    ),
    "tunnel-source-taken": (
        web("dsr-l3") + node(interfaces=WIDE, more="tunnelSource: {ipv4: 10.2.0.0/24}"),
        web("dsr-l3") + node(interfaces=WIDE, more="tunnelSource: {ipv4: 10.2.1.0/24}"),
    ),
}


def found(write, text):
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


@pytest.mark.parametrize(
    ("endpoints", "missing"),
    [
        ("{address: 10.2.0.11}", []),
        ("{address: '2001:db8:2::11'}", ["IPv6"]),
        ("{address: 10.2.0.11}, {address: '2001:db8:2::11'}", ["IPv6"]),
    ],
)
def test_a_source_of_each_family_of_endpoints_is_needed(write, endpoints, missing):
    text = web("dsr-l3", endpoints=endpoints) + node(interfaces=BACK)
    assert [message.split(" endpoints ")[0] for _, message in found(write, text)] == [
        f"tunnels to the {family}" for family in missing
    ]


def test_an_address_of_a_single_link_is_no_source(write):
    text = web("dsr-l3", vip="'2001:db8:20::1'", endpoints="{address: '2001:db8:2::11'}")
    back = BACK.replace("10.2.0.1/24", "'fe80::2/64'")
    ((rule, message),) = found(write, text + node(interfaces=back))
    assert rule == "tunnel-source-missing"
    assert message.endswith(": Node 'lb1' declares no IPv6 address")
    assert found(write, text + node(interfaces=f"{FRONT}, {back}")) == []


def test_a_node_is_told_once_of_all_its_services(write):
    text = web("dsr-l3") + service("b", ports="[81]", more="mode: dsr-l3") + node(interfaces=WIDE)
    assert [rule for rule, _ in found(write, text)] == ["tunnel-source-missing"]


def test_modes_without_tunnels_need_no_source(write):
    assert found(write, web("dsr-l2") + node(interfaces=WIDE)) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ipv4: 20.20.20.1", "the tunnel source 20.20.20.1 is a VIP"),
        ("ipv4: 20.20.0.0/16", "the tunnel source 20.20.0.0/16 holds 20.20.20.1, a VIP"),
        ("ipv6: '2001:db8:2::/64'",
         "the tunnel source 2001:db8:2::/64 holds 2001:db8:2::11, the address of an endpoint"),
    ],
)
def test_a_source_is_nobodys_own_address(write, source, message):
    text = web("dsr-l3", endpoints="{address: '2001:db8:2::11'}") + node(
        interfaces=f"{FRONT}, {BACK}", more=f"tunnelSource: {{{source}}}"
    )
    assert found(write, text) == [("tunnel-source-taken", message)]


@pytest.mark.parametrize("source", ["0.0.0.0/0", "127.0.0.1", "64.0.0.0/2", "224.0.0.0/24", "192.0.0.0/2"])
def test_a_source_is_unicast(write, source):
    text = web("dsr-l3") + node(interfaces=WIDE, more=f"tunnelSource: {{ipv4: {source}}}")
    assert "address-not-unicast" in [rule for rule, _ in found(write, text)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ipv4: '2001:db8::1'", "expected an IPv4 address or network, like 10.31.0.1 or 10.200.0.0/24"),
        ("ipv6: 10.200.0.0/24", "expected an IPv6 address or network, like 2001:db8::1 or 2001:db8:f::/64"),
        ("ipv4: lb1", "expected an IPv4 address or network"),
        ("ipv4: 10.200.0.0/33", "expected a network like 10.0.0.0/8"),
        ("ipv4: 10.200.0.1/24", "'10.200.0.1/24' is an address in the network 10.200.0.0/24, not the network"),
    ],
)
def test_a_source_is_an_address_or_a_network_of_its_family(write, source, message):
    ((rule, said),) = found(write, node(interfaces=WIDE, more=f"tunnelSource: {{{source}}}"))
    assert rule == "wrong-format"
    assert said.startswith(message)
