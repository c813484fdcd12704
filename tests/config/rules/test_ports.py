# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.config.load import load
from tests.config.manifests import pool, service
from tests.config.rules.parts import TWO_BALANCERS, labelled, web

CASES = {
    "vip-port-conflict": (
        service("a", ports="[80, 8000-8010]") + service("b", ports="[8010-8020]") + pool(),
        service("a", ports="[80, 8000-8010]") + service("b", ports="[8011-8020]")
        + service("c", ports="[80, 8005]", vip="20.20.20.2")
        + service("d", ports="[80]", more="protocol: udp") + pool(),
    ),
    "duplicate-port": (
        service(ports="[80, 70-90]") + pool(),
        service(ports="[80, 81-90]") + pool(),
    ),
    "target-port-of-many": (
        service(ports="[8000-8001]", more="targetPort: 8000") + pool()
        + service("b", ports="[80, 81]", pool="b") + service("c", ports="[82-90]", pool="b")
        + pool("b", endpoints="{address: 10.2.0.12}, {address: 10.2.0.13, port: 80}, {address: 10.2.0.14, port: 81}"),
        service(ports="[8000]", more="targetPort: 9000") + service("b", ports="[81, 82]") + pool()
        + service("c", ports="[83]", pool="c") + service("d", ports="[84]", pool="c")
        + pool("c", endpoints="{address: 10.2.0.12, port: 80}"),
    ),
}  # fmt: skip


def conflicts(loaded):
    return [d.message for d in loaded.diagnostics if d.rule == "vip-port-conflict"]


def test_icmp_of_a_vip_belongs_to_one_service(write):
    texts = [service("a"), service("b"), service("c", vip="20.20.20.2")]
    text = "".join(text.replace("ports: [80]", "protocol: icmp") for text in texts)
    loaded = load(write({"all.yaml": text + service() + pool()}))
    assert conflicts(loaded) == ["icmp to 20.20.20.1 belongs to Service 'a' already (all.yaml:2)"]


def test_any_of_several_vips_may_conflict(write):
    several = service("b", ports="[79-81]").replace("vip: 20.20.20.1", "vips: [20.20.20.9, 20.20.20.1]")
    loaded = load(write({"all.yaml": service("a") + several + pool()}))
    assert conflicts(loaded) == ["port 80 of 20.20.20.1 belongs to Service 'a' already (all.yaml:2)"]


def sites(first, second):
    nodes = TWO_BALANCERS.split("---\n")[1:]
    nodes = ["---\n" + labelled(text, f"site: s{i}") for i, text in enumerate(nodes)]
    return service("a", more=first) + service("b", more=second) + pool() + "".join(nodes)


def test_services_on_different_balancers_share_a_vip_and_port(write):
    loaded = load(write({"all.yaml": sites("nodeSelector: {site: s0}", "nodeSelector: {site: s1}")}))
    assert loaded.diagnostics == ()


@pytest.mark.parametrize("first", ["nodeSelector: {site: s1}", ""])
def test_services_on_one_common_balancer_conflict(write, first):
    assert len(conflicts(load(write({"all.yaml": sites(first, "nodeSelector: {site: s1}")})))) == 1


def test_conflict_with_a_service_far_in_front_is_found(write):
    """The overlap is not with the neighbour in the order of ports."""
    text = service("a", ports="[1-1000]") + service("b", ports="[5]") + service("c", ports="[900]") + pool()
    assert [m.split(" of ")[0] for m in conflicts(load(write({"all.yaml": text})))] == ["port 5", "port 900"]


def test_a_service_is_told_of_twenty_others_at_most(write):
    text = "".join(service(f"s{i}", ports=f"[{i}]") for i in range(1, 40)) + service("all", ports="[1-1000]") + pool()
    assert len(conflicts(load(write({"all.yaml": text})))) == 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), min_size=1, max_size=3), min_size=1, max_size=5
    )
)
def test_every_service_that_shares_a_port_is_in_a_conflict(write, wanted):
    """Against the plain definition; which pairs are named is left open, but nobody may go unnamed."""
    claimed = [{port for first, more in ranges for port in range(first, first + more + 1)} for ranges in wanted]
    texts = [service(f"s{i}", ports=str(sorted(ports))) for i, ports in enumerate(claimed)]
    loaded = load(write({"all.yaml": "".join(texts) + pool()}))
    clash = {
        i for i, own in enumerate(claimed) for j, other in enumerate(claimed) if i != j and not own.isdisjoint(other)
    }
    lines = {2 + 5 * i: i for i in range(len(wanted))}
    named = set()
    for diagnostic in loaded.diagnostics:
        assert diagnostic.rule == "vip-port-conflict"
        named.add((diagnostic.span.line - 1) // 5)
        named.add(lines[int(diagnostic.message.rpartition(":")[2].rstrip(")"))])
    assert named == clash


def test_target_port_of_one_port_among_many_services_is_fine(write):
    assert load(write({"all.yaml": web(more="targetPort: 8080")})).diagnostics == ()


def test_service_that_no_balancer_carries_conflicts_with_none(write):
    loaded = load(write({"all.yaml": sites("", "nodeSelector: {site: nowhere}")}))
    assert {d.rule for d in loaded.diagnostics} == {"nat-on-several-balancers", "node-selector-unmatched"}
