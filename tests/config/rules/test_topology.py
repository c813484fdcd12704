# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import INTERFACES, node, pool, service
from tests.config.rules.parts import TWO_BALANCERS, endpoint, labelled, web

BOTH_WITH_SOURCES = "".join(
    node(
        f"lb{n}", more=f"snatAddresses: [10.2.0.9{n}]",
        interfaces=f"{{name: front, addresses: [10.1.0.{n}/24]}}, {{name: back, addresses: [10.2.0.{n}/24]}}",
    ) for n in (1, 2)
)  # fmt: skip
ROUTER = "{name: eth0, addresses: [10.1.0.254/24]}"

CASES = {
    "nat-return-path": (
        web(endpoints="{address: 10.2.0.11}, {address: 10.9.0.11}") + node(),
        web(endpoints="{address: 10.2.0.11}, {address: 10.9.0.11}")
        + node(interfaces=INTERFACES.replace("10.2.0.1/24]", "10.2.0.1/24], gateway: 10.2.0.254")),
    ),
    "nat-on-several-balancers": (
        web() + TWO_BALANCERS,
        web("dsr-l2") + TWO_BALANCERS,
    ),
    "affinity-on-several-balancers": (
        web("fullnat", more="affinity: {by: client}") + BOTH_WITH_SOURCES,
        web("fullnat", more="affinity: {by: client}, algorithm: maglev") + BOTH_WITH_SOURCES,
    ),
    "redirects-on": (
        web() + node(more="icmpRedirects: 'on'"),
        web() + node(more="icmpRedirects: 'off'"),
    ),
    "multipath-missing": (
        web("dsr-l2") + TWO_BALANCERS + node("r1", interfaces=ROUTER, more="role: router"),
        web("dsr-l2") + TWO_BALANCERS + node("r1", interfaces=ROUTER, more="role: router, multipath: 2"),
    ),
    "sctp-multihoming": (
        web("dsr-l2", more="protocol: sctp").replace("vip: 20.20.20.1", "vips: [20.20.20.1, 20.20.21.1]"),
        web("fullnat", more="protocol: sctp").replace("vip: 20.20.20.1", "vips: [20.20.20.1, 20.20.21.1]"),
    ),
}


def found(write, text):
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


def rules(write, text):
    return [rule for rule, _ in found(write, text)]


@pytest.mark.parametrize(
    ("gateway", "wrong"), [("10.2.0.1", False), ("10.1.0.1", False), ("10.2.0.254", True)]
)
def test_declared_endpoint_replies_through_its_balancer(write, gateway, wrong):
    text = web() + node() + node(
        "ep1", interfaces=f"{{name: eth0, addresses: [10.2.0.11/8], gateway: {gateway}}}", more="role: endpoint"
    )
    expected = [("nat-return-path", "Node 'ep1' replies through 10.2.0.254, which is no address of Node 'lb1'")]
    assert found(write, text) == (expected if wrong else [])


def test_link_local_gateway_may_be_the_balancer(write):
    balancer = node(interfaces="{name: eth0, addresses: ['2001:db8:2::1/64']}")
    interfaces = "{name: eth0, addresses: ['2001:db8:2::11/64'], gateway: 'fe80::1'}"
    text = web(vip="'2001:db8::1'", endpoints="{address: '2001:db8:2::11'}") + balancer
    assert found(write, text + node("ep1", interfaces=interfaces, more="role: endpoint")) == []


@pytest.mark.parametrize("mode", ["fullnat", "dsr-l2"])
def test_replies_of_other_modes_take_any_way(write, mode):
    text = web(mode) + node(more="snatAddresses: [10.2.0.9]")
    text += endpoint("ep1", "10.2.0.11", more="gateway: 10.2.0.254")
    assert found(write, text) == []


def test_gateway_is_not_judged_where_the_balancers_addresses_are_unknown(write):
    text = web() + node(interfaces="{name: eth0}") + endpoint("ep1", "10.2.0.11", more="gateway: 10.2.0.254")
    assert found(write, text) == []


def test_many_lost_endpoints_of_a_pool_are_one_finding(write):
    endpoints = ", ".join(f"{{address: 10.9.0.{i}}}" for i in range(1, 200))
    ((rule, message),) = found(write, web(endpoints=endpoints) + service("b", ports="[81]") + node())
    assert rule == "nat-return-path"
    assert message.startswith("10.9.0.1 is in no network of Node 'lb1'")
    assert message.endswith("(and 198 more endpoints)")


def test_many_services_on_several_balancers_are_one_finding(write):
    text = web() + "".join(service(f"s{i}", ports=f"[{i}]") for i in range(100, 150)) + TWO_BALANCERS
    ((rule, message),) = found(write, text)
    assert rule == "nat-on-several-balancers"
    assert "Service 'web' (and 50 more services)" in message


def test_nat_on_one_balancer_of_several_is_fine(write):
    nodes = TWO_BALANCERS.split("---\n")[1:]
    text = web(more="nodeSelector: {site: s0}, affinity: {by: client}")
    assert found(write, text + "".join("---\n" + labelled(n, f"site: s{i}") for i, n in enumerate(nodes))) == []


def test_redirects_do_no_harm_on_a_network_without_endpoints(write):
    interfaces = "{name: front, addresses: [10.1.0.1/24], gateway: 10.1.0.254}"
    text = web("dsr-l3", endpoints="{address: 10.2.0.11}")
    assert rules(write, text + node(interfaces=interfaces, more="icmpRedirects: 'on'")) == ["tunnel-mtu"]


@pytest.mark.parametrize(
    ("router", "multipath", "missing"),
    [
        ("{name: eth0, addresses: [10.1.0.254/24]}", 1, True),
        ("{name: eth0}", 1, True),                              # may be in front of all
        ("{name: eth0, addresses: [10.99.0.254/24]}", 1, False),  # in front of none
        ("{name: eth0, addresses: [10.1.0.254/24]}", 3, False),
    ],
)  # fmt: skip
def test_router_needs_a_path_for_each_balancer_next_to_it(write, router, multipath, missing):
    text = web("dsr-l2") + TWO_BALANCERS
    text += node("r1", interfaces=router, more=f"role: router, multipath: {multipath}")
    assert rules(write, text) == (["multipath-missing"] if missing else [])


def test_balancers_of_different_services_are_no_paths_to_one_vip(write):
    nodes = TWO_BALANCERS.split("---\n")[1:]
    text = web(more="nodeSelector: {site: s0}") + service("b", ports="[81]", more="nodeSelector: {site: s1}")
    text += "".join("---\n" + labelled(n, f"site: s{i}") for i, n in enumerate(nodes))
    assert found(write, text + node("r1", interfaces=ROUTER, more="role: router")) == []


def test_endpoints_of_an_unused_pool_have_no_way_to_be_judged(write):
    assert rules(write, pool(endpoints="{address: 10.9.0.11}") + node()) == ["pool-unused"]
