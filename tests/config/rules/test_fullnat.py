# SPDX-License-Identifier: Apache-2.0
from reconciler.config.load import load
from tests.config.manifests import node, pool, service
from tests.config.rules.parts import TWO_BALANCERS, labelled, web

SECOND = "{name: front, addresses: [10.1.0.2/24]}, {name: back, addresses: [10.2.0.2/24]}"

CASES = {
    "snat-address-missing": (
        web("fullnat") + node(),
        web("fullnat") + node(more="snatAddresses: [10.2.0.1]"),
    ),
    "snat-address-shared": (
        node(more="snatAddresses: [10.2.0.9]") + node("lb2", interfaces=SECOND, more="snatAddresses: [10.2.0.9]"),
        node(more="snatAddresses: [10.2.0.8]") + node("lb2", interfaces=SECOND, more="snatAddresses: [10.2.0.9]"),
    ),
    "snat-ports-too-few": (
        web("fullnat") + node(more="snatAddresses: [10.2.0.1], snatPorts: 1024-2023, expectedFlows: 1001"),
        web("fullnat") + node(more="snatAddresses: [10.2.0.1], snatPorts: 1024-2023, expectedFlows: 1000"),
    ),
}


def found(write, text):
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


def test_each_balancer_needs_a_source_address_and_is_told_once(write):
    text = web("fullnat") + service("b", ports="[81]", more="mode: fullnat") + TWO_BALANCERS
    assert [message.split(" has ")[0] for _, message in found(write, text)] == ["Node 'lb1'", "Node 'lb2'"]


def test_only_balancers_that_carry_the_service_need_one(write):
    text = web("fullnat", more="nodeSelector: {site: north}") + TWO_BALANCERS.replace("name: lb1", "name: lb3", 1)
    first = labelled(node(interfaces="{name: eth0}", more="snatAddresses: [10.9.0.1]"), "site: north")
    assert found(write, text + first) == []


def test_source_address_is_of_the_family_of_the_vip(write):
    text = web("fullnat", vip="'2001:db8::1'", endpoints="{address: '2001:db8::11'}")
    ((rule, message),) = found(write, text + node(interfaces="{name: eth0}", more="snatAddresses: [10.2.0.9]"))
    assert rule == "snat-address-missing"
    assert "no IPv6 source address" in message


def test_source_address_of_one_is_an_interface_of_the_other(write):
    text = node() + node("lb2", interfaces=SECOND, more="snatAddresses: [10.2.0.2, 10.2.0.1]")
    ((rule, message),) = found(write, text)
    assert rule == "snat-address-shared"
    assert message == "10.2.0.1 belongs to Node 'lb1' already (all.yaml:2): replies would go there"


def test_more_addresses_make_room(write):
    more = "snatAddresses: [10.9.0.1, 10.9.0.2], snatPorts: 1024-2023, expectedFlows: 2001"
    text = web("fullnat") + node(interfaces="{name: eth0}", more=more)
    ((_, message),) = found(write, text)
    assert message.endswith("2 IPv4 source addresses with 1,000 ports suffice for 2,000")
    (diagnostic,) = load(write({"all.yaml": text})).diagnostics
    assert diagnostic.hint == "3 addresses would do; see snatAddresses and snatPorts"
    assert found(write, text.replace("2001}", "2000}")) == []


def test_without_fullnat_source_ports_need_not_suffice(write):
    text = web() + pool("other") + node(more="snatAddresses: [10.2.0.1], snatPorts: 1024-1025, expectedFlows: 9")
    assert [rule for rule, _ in found(write, text)] == ["pool-unused"]
