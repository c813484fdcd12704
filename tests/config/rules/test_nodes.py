# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, pool
from tests.config.rules.parts import endpoint, web

CASES = {
    "balancer-without-interfaces": (
        node(interfaces=""),
        node() + node("r1", interfaces="", more="role: router"),
    ),
    "duplicate-interface": (
        node(interfaces="{name: front}, {name: front, xdp: generic}"),
        node("lb1", interfaces="{name: front}, {name: back}") + node("lb2", interfaces="{name: front}"),
    ),
    "trunk-missing": (
        node(interfaces="{name: eth0.100, trunk: eth0, addresses: [10.1.0.1/24]}"),
        node(interfaces="{name: eth0}, {name: eth0.100, trunk: eth0, addresses: [10.1.0.1/24]}"),
    ),
    "tag-duplicate": (
        node(interfaces="{name: eth0}, {name: a, trunk: eth0, tag: 7}, {name: b, trunk: eth0, tag: 7}"),
        node(interfaces="{name: eth0}, {name: eth1}, {name: a, trunk: eth0, tag: 7}, {name: b, trunk: eth1, tag: 7}"),
    ),
    "gateway-unreachable": (
        node(interfaces="{name: front, addresses: [10.1.0.1/24], gateway: 10.1.1.254}"),
        node(interfaces="{name: front, addresses: [10.9.0.1/24, 10.1.0.1/24], gateway: 10.1.0.254}"),
    ),
    "same-network-twice": (
        node(interfaces="{name: a, addresses: [10.1.0.1/24]}, {name: b, addresses: [10.1.0.2/24]}"),
        node(interfaces="{name: a, addresses: [10.1.0.1/24, 10.1.0.2/24]}, {name: b, addresses: [10.1.1.2/24]}"),
    ),
    "endpoint-without-address": (
        node("ep1", interfaces="{name: eth0}", more="role: endpoint"),
        web() + node("ep1", interfaces="{name: eth0}", more="role: endpoint, address: 10.2.0.11"),
    ),
    "endpoint-node-unused": (
        web() + endpoint("ep1", "10.2.0.21"),
        web() + endpoint("ep1", "10.2.0.11"),
    ),
}


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


@pytest.mark.parametrize(
    ("addresses", "gateway", "problem"),
    [
        ("10.1.0.1/24", "10.1.0.1", "is an address of eth0 itself"),
        ("10.1.0.1/24, 10.2.0.1/24", "10.2.0.1", "is an address of eth0 itself"),
        ("10.1.0.1/24", "10.1.0.255", "is the address of a network of eth0 itself, or its broadcast address"),
        ("10.1.0.1/24", "'2001:db8::1'", "is in no network of eth0"),
        ("'2001:db8::1/64'", "'2001:db8:1::1'", "is in no network of eth0"),
        ("10.1.0.0/31", "10.1.0.1", None),
        ("10.1.0.1/24", "'fe80::1'", None),
        ("", "10.1.0.1", None),
    ],
)
def test_gateway_is_a_neighbour(write, addresses, gateway, problem):
    text = node(interfaces=f"{{name: eth0, addresses: [{addresses}], gateway: {gateway}}}")
    found = load(write({"all.yaml": text})).diagnostics
    assert [d.message for d in found] == ([f"the gateway {gateway.strip(chr(39))} {problem}"] if problem else [])


def test_one_of_its_addresses_in_a_pool_makes_an_endpoint_used(write):
    interfaces = "{name: eth0, addresses: [10.9.0.11/24]}, {name: eth1, addresses: [10.2.0.11/24]}"
    text = web() + node("ep1", interfaces=interfaces, more="role: endpoint")
    assert load(write({"all.yaml": text})).diagnostics == ()


def test_address_of_an_endpoint_stands_for_those_of_its_interfaces(write):
    text = web() + node(
        "ep1", interfaces="{name: eth0, addresses: [10.2.0.11/24]}", more="role: endpoint, address: 10.9.0.11"
    )
    assert rules_of(load(write({"all.yaml": text}))) == ["endpoint-node-unused"]


def test_pool_in_a_broken_document_may_name_the_endpoint(write):
    text = web() + endpoint("ep1", "10.2.0.21") + pool("b", endpoints="{address: 10.2.0.21, prot: 1}")
    assert rules_of(load(write({"all.yaml": text}))) == ["unknown-key"]


def test_a_trunk_is_no_vlan_itself(write):
    interfaces = "{name: eth0}, {name: eth0.7, trunk: eth0}, {name: eth0.7.9, trunk: eth0.7}, {name: v1, trunk: v1}"
    found = load(write({"all.yaml": node(interfaces=interfaces)})).diagnostics
    assert [d.message for d in found if d.rule == "trunk-missing"] == [
        "eth0.7 is a VLAN itself: eth0.7.9 would have two tags", "v1 is a VLAN itself: v1 would have two tags",
    ]  # fmt: skip


def test_a_tag_needs_a_trunk(write):
    (found,) = load(write({"all.yaml": node(interfaces="{name: eth0, tag: 7}")})).diagnostics
    assert (found.rule, found.message) == (
        "trunk-missing", "eth0 has a tag, and no trunk from which its packets come",
    )  # fmt: skip


@pytest.mark.parametrize("tag", [0, 4095, "x"])
def test_a_tag_is_one_that_frames_can_have(write, tag):
    text = node(interfaces=f"{{name: eth0}}, {{name: v, trunk: eth0, tag: {tag}}}")
    (found,) = load(write({"all.yaml": text})).diagnostics
    assert text.splitlines()[found.span.line - 1][found.span.column - 1 :].startswith((str(tag), "tag"))


def test_a_trunk_needs_no_addresses_for_networks_to_be_known(write):
    interfaces = "{name: eth0}, {name: eth0.1, trunk: eth0, addresses: [10.1.0.1/24]}"
    text = web("dsr-l2", endpoints="{address: 10.9.0.11}") + node(interfaces=interfaces)
    assert [d.rule for d in load(write({"all.yaml": text})).diagnostics] == ["dsr-l2-segment"]


def test_xdp_is_said_at_the_trunk(write):
    text = node(interfaces="{name: eth0}, {name: eth0.1, trunk: eth0, xdp: generic}")
    (found,) = load(write({"all.yaml": text})).diagnostics
    assert "XDP runs on the trunk" in found.message
