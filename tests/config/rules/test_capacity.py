# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from reconciler.config.rules import capacity
from tests.config.manifests import node, pool, service
from tests.config.rules.parts import TWO_BALANCERS, labelled, web


def endpoints(count, first=11):
    return ", ".join(f"{{address: 10.2.0.{i}}}" for i in range(first, first + count))


def vips(count):
    return "".join(service(f"s{i}", vip=f"20.20.{i >> 8}.{i & 255}") for i in range(count)) + pool()


CASES = {
    "capacity-services": (
        web(ports="[80, 8000-8009]") + node(more="capacity: {services: 10}"),
        web(ports="[80, 8000-8009]") + node(more="capacity: {services: 22}"),
    ),
    "capacity-endpoints": (
        web(endpoints=endpoints(4)) + node(more="capacity: {endpoints: 3}"),
        web(endpoints=endpoints(4)) + node(more="capacity: {endpoints: 8}"),
    ),
    "capacity-peak": (
        web(endpoints=endpoints(4)) + node(more="capacity: {endpoints: 7}"),
        web(endpoints=endpoints(4)) + node(more="capacity: {endpoints: 8}"),
    ),
    "capacity-flows": (
        node(more="capacity: {flows: 1000}, expectedFlows: 1001"),
        node(more="capacity: {flows: 1000}, expectedFlows: 1000"),
    ),
    "capacity-beyond": (
        node(more="capacity: {services: 262145, endpoints: 131072, flows: 16777217}"),
        node(more="capacity: {services: 262144, endpoints: 131071, flows: 16777216}"),
    ),
    "many-loopback-addresses": (
        vips(1001) + node(more="vipBinding: address"),
        vips(1000) + node(more="vipBinding: address"),
    ),
}


def found(write, text):
    return [(d.rule, d.message) for d in load(write({"all.yaml": text})).diagnostics]


def test_ports_beyond_what_is_possible_are_told_of_the_service_that_has_most(write, monkeypatch):
    monkeypatch.setattr(capacity, "MOST_SERVICES", 16_384)
    text = web(ports="[1-16000]") + service("b", ports="[1-385]", vip="20.20.20.2") + node()
    [found] = load(write({"all.yaml": text})).diagnostics
    assert (found.rule, found.severity, found.span.line) == ("capacity-services", "error", 5)
    assert found.message == (
        "Node 'lb1' would hold 16,385 pairs of VIP and port, 16,000 of them for Service 'web'; 16,384 is the most"
    )
    assert load(write({"all.yaml": text.replace("1-385", "1-384")})).fleet is not None


def test_both_families_share_the_rows(write, monkeypatch):
    monkeypatch.setattr(capacity, "MOST_SERVICES", 16_384)
    text = web(ports="[1-16000]").replace("vip: 20.20.20.1", "vips: [20.20.20.1, '2001:db8::1']") + node()
    assert "capacity-services" in {rule for rule, _ in found(write, text)}


def test_all_ports_of_a_vip_are_possible_without_a_word(write):
    assert found(write, web(ports="[1-65535]") + node()) == []


def test_more_rings_than_there_can_be_are_told_of_the_service_that_is_one_too_many(write, monkeypatch):
    monkeypatch.setattr(capacity, "RINGS", 2)
    text = web() + service("b", ports="[81]", more="algorithm: maglev") + node()
    assert found(write, text) == []
    text += service("c", ports="[82]", more="algorithm: source-hash")
    [problem] = load(write({"all.yaml": text})).diagnostics
    assert (problem.rule, problem.message) == ("capacity-services", "Node 'lb1' would hold 3 rings, 2 is the most")
    assert found(write, text.replace("source-hash", "maglev")) == []


def test_endpoints_beyond_what_this_version_holds_are_told_of_the_largest_pool(write, monkeypatch):
    monkeypatch.setattr(capacity, "ENDPOINTS", 6)
    text = web(endpoints=endpoints(4)) + service("b", ports="[81]", pool="b") + pool("b", endpoints=endpoints(3, 30))
    assert found(write, text + node()) == [(
        "capacity-endpoints",
        "Node 'lb1' would hold 7 endpoints, 4 of them for Pool 'web'; 6 is the most",
    )]  # fmt: skip
    assert [rule for rule, _ in found(write, text.replace("10.2.0.32", "10.2.0.11") + node())] == ["capacity-peak"]


@pytest.mark.parametrize(("mode", "rules"), [("nat", ["capacity-flows"]), ("dsr-l2", [])])
def test_connections_are_remembered_where_addresses_are_translated(write, mode, rules):
    assert [rule for rule, _ in found(write, web(mode) + node(more="expectedFlows: 16777217"))] == rules
    assert found(write, web(mode) + node(more="expectedFlows: 16777216")) == []


def test_peak_is_all_endpoints_and_the_largest_pool_again(write):
    text = web(endpoints=endpoints(6)) + service("b", ports="[81]", pool="b") + pool("b", endpoints=endpoints(3, 30))
    assert found(write, text + node(more="capacity: {endpoints: 15}")) == []
    ((rule, message),) = found(write, text + node(more="capacity: {endpoints: 14}"))
    assert rule == "capacity-peak"
    assert message == (
        "Node 'lb1' has room for 5 endpoints beyond the 9 declared: to exchange Pool 'web' at once takes 6"
    )


def test_an_endpoint_in_several_pools_is_one_row(write):
    text = web(endpoints=endpoints(4)) + service("b", ports="[81]", pool="b") + pool("b", endpoints=endpoints(4))
    assert found(write, text + node(more="capacity: {endpoints: 8}")) == []


@pytest.mark.parametrize(("limit", "rules"), [(6, []), (5, ["capacity-peak"]), (3, ["capacity-peak"]),
                                              (2, ["capacity-services"])])  # fmt: skip
def test_each_vip_with_each_port_is_a_row(write, limit, rules):
    rest = pool() + node(more=f"capacity: {{services: {limit}}}")
    ports = service(ports="[80, 81, 82]")
    vips = service(ports="[80]").replace("vip: 20.20.20.1", "vips: [20.20.20.1, 20.20.20.2, 20.20.20.3]")
    assert [rule for rule, _ in found(write, ports + rest)] == rules
    assert [rule for rule, _ in found(write, vips + rest)] == rules


def test_icmp_takes_a_row(write):
    icmp = service().replace("ports: [80]", "protocol: icmp") + service("b") + pool()
    assert found(write, icmp + node(more="capacity: {services: 3}")) == []
    assert [rule for rule, _ in found(write, icmp + node(more="capacity: {services: 1}"))] == ["capacity-services"]


def test_only_what_a_balancer_carries_counts(write):
    nodes = [text.replace("interfaces:", "capacity: {services: 2, endpoints: 8}, interfaces:")
             for text in TWO_BALANCERS.split("---\n")[1:]]  # fmt: skip
    text = "".join("---\n" + labelled(n, f"site: s{i}") for i, n in enumerate(nodes))
    for i in range(2):
        text += service(f"w{i}", ports=f"[{80 + i}]", pool=f"w{i}", more=f"nodeSelector: {{site: s{i}}}")
        text += pool(f"w{i}", endpoints=endpoints(4, 20 + 10 * i))
    assert found(write, text) == []


def test_vips_that_are_routes_may_be_many(write):
    assert found(write, vips(1001) + node()) == []
