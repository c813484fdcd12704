# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import pool, service
from tests.config.rules.parts import TWO_BALANCERS, labelled, web


def two(first, second, *, pool_of_second="web"):
    return (
        service("a", more=first) + service("b", ports="[81]", pool=pool_of_second, more=second) + pool()
        + (pool(pool_of_second) if pool_of_second != "web" else "")
    )  # fmt: skip


CASES = {
    "echo-nat": (
        web(more="echo: endpoint"),
        web("dsr-l2", more="echo: endpoint"),
    ),
    "echo-conflict": (
        two("echo: drop", "echo: reply"),
        two("echo: drop", "") + service("c", ports="[82]", more="echo: drop")
        + service("d", vip="20.20.20.2", more="echo: reply"),
    ),
}  # fmt: skip

ENDPOINT = "mode: dsr-l3, echo: endpoint"


def conflicts(write, text):
    return [d.message for d in load(write({"all.yaml": text})).diagnostics if d.rule == "echo-conflict"]


def test_both_lines_are_named(write):
    assert conflicts(write, two("echo: drop", "echo: reply")) == [
        "pings of 20.20.20.1: echo: reply here, but echo: drop by Service 'a' (all.yaml:2)"
    ]


@pytest.mark.parametrize(
    ("second", "pool_of_second", "wrong"),
    [
        (ENDPOINT, "web", False),
        (ENDPOINT, "other", True),
        (ENDPOINT.replace("l3", "l2"), "web", True),
        (ENDPOINT + ", algorithm: source-hash", "web", True),
        ("mode: dsr-l3, echo: reply", "web", True),
        ("mode: dsr-l3", "other", False),
    ],
)  # fmt: skip
def test_only_one_set_of_endpoints_can_answer(write, second, pool_of_second, wrong):
    assert bool(conflicts(write, two(ENDPOINT, second, pool_of_second=pool_of_second))) == wrong


def test_a_service_of_icmp_is_a_wish_for_endpoints(write):
    icmp = service("b", more="mode: dsr-l3").replace("ports: [80]", "protocol: icmp")
    assert conflicts(write, service("a", more="echo: reply") + icmp + pool()) == [
        "pings of 20.20.20.1: protocol: icmp here, but echo: reply by Service 'a' (all.yaml:2)"
    ]
    assert conflicts(write, service("a", more=ENDPOINT) + icmp + pool()) == []
    both = icmp + icmp.replace("name: b", "name: c").replace("pool: web", "pool: other") + pool() + pool("other")
    assert conflicts(write, both) == []  # the VIP itself is in conflict, which another rule tells


def test_a_pair_of_services_is_one_finding_however_many_vips_they_share(write):
    text = two("echo: drop", "echo: reply").replace("vip: 20.20.20.1", "vips: [20.20.20.1, 20.20.20.2]")
    assert len(conflicts(write, text)) == 1


@pytest.mark.parametrize(("second", "count"), [("s1", 0), ("s0", 1)])
def test_services_on_different_balancers_may_differ(write, second, count):
    nodes = TWO_BALANCERS.split("---\n")[1:]
    nodes = "".join("---\n" + labelled(text, f"site: s{i}") for i, text in enumerate(nodes))
    text = two("echo: drop, nodeSelector: {site: s0}", f"echo: reply, nodeSelector: {{site: {second}}}") + nodes
    assert len(conflicts(write, text)) == count


def test_a_conflict_on_any_of_several_balancers_is_found(write):
    nodes = TWO_BALANCERS.split("---\n")[1:]
    nodes = "".join("---\n" + labelled(text, f"site: s{i}") for i, text in enumerate(nodes))
    text = service("a", more="echo: drop, nodeSelector: {site: s1}") + service("b", ports="[81]", more="echo: reply")
    text += service("c", ports="[82]", more="echo: drop, nodeSelector: {site: s0}") + pool() + nodes
    assert len(conflicts(write, text)) == 2
