# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, pool, service
from tests.config.rules.parts import TWO_BALANCERS, labelled, web

BACK6 = "{name: back, addresses: ['2001:db8:2::1/64']}"

CASES = {
    "address-not-unicast": (
        web(vip="224.0.0.1"),
        web(vip="223.255.255.255", endpoints="{address: 128.0.0.1}, {address: 1.0.0.0}"),
    ),
    "network-address": (
        web(endpoints="{address: 10.2.0.255}") + node(),
        web(vip="10.3.0.255", endpoints="{address: 10.2.0.254}") + node(),
    ),
    "vip-is-endpoint": (
        web(vip="10.2.0.11"),
        web(vip="10.2.0.12"),
    ),
    "vip-is-node-address": (
        web(vip="10.1.0.1") + node(),
        web(vip="10.1.0.2") + node(),
    ),
    "endpoint-is-balancer": (
        web(endpoints="{address: 10.2.0.11}, {address: 10.2.0.1}") + node(),
        web(endpoints="{address: 10.2.0.11}, {address: 10.2.0.2}") + node(),
    ),
    "vip-on-several-balancers": (
        web("dsr-l2", vip="10.1.0.100") + TWO_BALANCERS,
        web("dsr-l2", vip="10.1.1.100") + TWO_BALANCERS,
    ),
    "duplicate-address": (
        node("lb1") + node("lb2", interfaces="{name: eth0, addresses: [10.3.0.1/24, 10.2.0.1/24]}"),
        node("lb1") + node("lb2", interfaces="{name: eth0, addresses: [10.3.0.1/24, 10.2.0.2/24]}"),
    ),
}


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


@pytest.mark.parametrize("address", ["0.0.0.0", "0.255.255.255", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
                                     "255.255.255.255", "::", "::1", "ff02::1", "fe80::1", "::ffff:10.2.0.11",
                                     "::10.2.0.11"])  # fmt: skip
def test_no_machine_has_such_an_address(write, address):
    family = "2001:db8::1" if ":" in address else "20.20.20.1"
    loaded = load(write({"all.yaml": web(vip=f"'{family}'", endpoints=f"{{address: '{address}'}}")}))
    assert rules_of(loaded) == ["address-not-unicast"]


@pytest.mark.parametrize("address", ["1.0.0.0", "126.255.255.255", "128.0.0.1", "192.168.0.1", "223.255.255.255",
                                     "2001:db8::11", "fd00::11"])  # fmt: skip
def test_a_machine_may_have_such_an_address(write, address):
    family = "2001:db8::1" if ":" in address else "20.20.20.1"
    assert load(write({"all.yaml": web(vip=f"'{family}'", endpoints=f"{{address: '{address}'}}")})).diagnostics == ()


def test_ipv6_address_is_not_the_ipv4_address_of_the_same_number(write):
    """10.2.0.11 is the number 0xa02000b, which stands for ::a02:b in IPv6 too, but those are refused."""
    text = web(vip="10.2.0.11", endpoints="{address: 10.2.0.12}")
    text += service("v6", vip="'2001:db8::1'", pool="v6") + pool("v6", endpoints="{address: '::a02:b'}")
    assert rules_of(load(write({"all.yaml": text}))) == ["address-not-unicast"]


def test_source_addresses_and_addresses_of_endpoints_are_unicast_too(write):
    text = node(more="snatAddresses: [127.0.0.5]") + node("ep1", more="role: endpoint, address: 224.0.0.1",
                                                          interfaces="")  # fmt: skip
    assert rules_of(load(write({"all.yaml": text + web() + pool("x", endpoints="{address: 224.0.0.1}")}))) == [
        "address-not-unicast", "address-not-unicast", "pool-unused", "address-not-unicast",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("vip", "message"),
    [
        ("10.1.0.1", "is the address of interface front of Node 'lb1'"),
        ("10.1.0.254", "is the gateway of interface front of Node 'lb1'"),
        ("10.9.0.5", "is a source address of Node 'lb1'"),
        ("10.9.0.6", "is the address of Node 'ep1'"),
    ],
)
def test_vip_is_nobodys_own_address(write, vip, message):
    interfaces = "{name: front, addresses: [10.1.0.1/24], gateway: 10.1.0.254}, {name: back, addresses: [10.2.0.1/24]}"
    nodes = node(interfaces=interfaces, more="snatAddresses: [10.9.0.5]")
    nodes += node("ep1", interfaces="", more="role: endpoint, address: 10.9.0.6")
    loaded = load(write({"all.yaml": web(vip=vip, endpoints="{address: 10.2.0.11}") + nodes}))
    (found,) = [d for d in loaded.diagnostics if d.rule == "vip-is-node-address"]
    assert message in found.message


def test_vip_on_the_loopback_of_an_endpoint_is_lbctls_work(write):
    interfaces = "{name: lo, addresses: [20.20.20.1/32]}, {name: eth0, addresses: [10.2.0.11/24]}"
    loaded = load(write({"all.yaml": web("dsr-l2") + node("ep1", interfaces=interfaces, more="role: endpoint")}))
    assert rules_of(loaded) == ["vip-is-node-address"]
    assert loaded.diagnostics[0].hint == "remove it there: lbctl gives endpoints the VIPs that they need"


def test_endpoint_may_be_a_balancer_that_does_not_send_to_it(write):
    nodes = TWO_BALANCERS.split("---\n")[1:]
    nodes = ["---\n" + labelled(text, f"site: s{i}") for i, text in enumerate(nodes)]
    text = web(more="nodeSelector: {site: s0}", endpoints="{address: 10.2.0.2}") + "".join(nodes)
    assert load(write({"all.yaml": text})).diagnostics == ()


def test_vip_in_a_network_of_its_only_balancer_is_fine(write):
    assert load(write({"all.yaml": web(vip="10.1.0.100") + node()})).diagnostics == ()


def test_a_shared_vip_is_told_of_once(write):
    text = web("dsr-l2", vip="10.1.0.100") + service("more", vip="10.1.0.100", ports="[81]", more="mode: dsr-l2")
    assert rules_of(load(write({"all.yaml": text + TWO_BALANCERS}))) == ["vip-on-several-balancers"]


def test_link_local_addresses_may_be_everywhere(write):
    interfaces = "{{name: eth0, addresses: ['fe80::1/64', '2001:db8::{}/64']}}"
    text = node("lb1", interfaces=interfaces.format(1)) + node("lb2", interfaces=interfaces.format(2))
    assert load(write({"all.yaml": text})).diagnostics == ()


def test_several_balancers_answer_for_an_ipv6_vip_too(write):
    both = "".join(node(name, interfaces=BACK6.replace("::1/", f"::{i}/")) for i, name in enumerate(("lb1", "lb2"), 1))
    near, far = ("'2001:db8:2::100'", "'2001:db8:20::1'")
    for vip, expected in ((near, ["vip-on-several-balancers"]), (far, [])):
        loaded = load(write({"all.yaml": web("dsr-l2", vip=vip, endpoints="{address: '2001:db8:2::11'}") + both}))
        assert rules_of(loaded) == expected
