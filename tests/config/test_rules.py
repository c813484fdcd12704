# SPDX-License-Identifier: Apache-2.0
"""Each rule finds what it is for, and lets the nearest sound manifests pass. Messages: see test_golden.py."""

import pytest

from reconciler.config.diagnostic import Severity
from reconciler.config.load import load
from reconciler.config.rules import RULES
from tests.config.manifests import node, pool, service

TWO_ENDPOINTS = "{{address: 10.2.0.11, {}}}, {{address: 10.2.0.12, {}}}"

# rule → manifests that break it, manifests that just don't
CASES = {
    "duplicate-name": (
        service() + service(ports="[81]") + pool(),
        service() + service("web2", ports="[81]") + pool() + node("web"),
    ),
    "service-pool-missing": (
        service("a", pool="web2") + service("b", ports="[81]") + pool(),
        service("a", pool="web2") + pool("web2"),
    ),
    "pool-unused": (
        service() + pool() + pool("old"),
        service() + pool(),
    ),
    "vip-port-conflict": (
        service("a", ports="[80, 8000-8010]") + service("b", ports="[8010-8020]") + pool(),
        service("a", ports="[80, 8000-8010]") + service("b", ports="[8011-8020]")
        + service("c", ports="[80, 8005]", vip="20.20.20.2") + pool(),
    ),
    "duplicate-port": (
        service(ports="[80, 70-90]") + pool(),
        service(ports="[80, 81-90]") + pool(),
    ),
    "address-not-unicast": (
        service(vip="224.0.0.1") + pool(),
        service(vip="223.255.255.255") + pool(endpoints="{address: 128.0.0.1}, {address: 1.0.0.0}"),
    ),
    "vip-is-endpoint": (
        service(vip="10.2.0.11") + pool(),
        service(vip="10.2.0.12") + pool(),
    ),
    "vip-is-node-address": (
        service(vip="10.1.0.1") + pool() + node(),
        service(vip="10.1.0.2") + pool() + node(),
    ),
    "pool-empty": (
        service() + pool(endpoints=""),
        service() + pool(),
    ),
    "zero-total-weight": (
        service() + pool(endpoints=TWO_ENDPOINTS.format("weight: 0", "state: draining")),
        service() + pool(endpoints=TWO_ENDPOINTS.format("weight: 0", "weight: 1")),
    ),
    "duplicate-endpoint": (
        service() + pool(endpoints="{address: 10.2.0.11, port: 80}, {address: 10.2.0.11, port: 80, weight: 2}"),
        service() + pool(endpoints="{address: 10.2.0.11, port: 80}, {address: 10.2.0.11, port: 81}"),
    ),
    "balancer-without-interfaces": (
        node(interfaces=""),
        node(),
    ),
    "duplicate-interface": (
        node(interfaces="{name: front}, {name: front, xdp: generic}"),
        node("lb1", interfaces="{name: front}, {name: back}") + node("lb2", interfaces="{name: front}"),
    ),
}  # fmt: skip


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


def test_every_rule_is_tried():
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", CASES)
def test_rule_finds_what_breaks_it_and_nothing_else(write, rule):
    loaded = load(write({"all.yaml": CASES[rule][0]}))
    assert rules_of(loaded) == [rule]
    assert loaded.diagnostics[0].severity is RULES[rule].severity


@pytest.mark.parametrize("rule", CASES)
def test_rule_lets_pass_what_does_not_break_it(write, rule):
    loaded = load(write({"all.yaml": CASES[rule][1]}))
    assert loaded.diagnostics == ()
    assert loaded.fleet is not None


def test_only_warnings_leave_a_fleet(write):
    loaded = load(write({"all.yaml": pool(endpoints="")}))
    assert {d.severity for d in loaded.diagnostics} == {Severity.WARNING}
    assert [p.name for p in loaded.fleet.pools] == ["web"]


@pytest.mark.parametrize("address", ["0.0.0.0", "0.255.255.255", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
                                     "255.255.255.255"])  # fmt: skip
def test_endpoint_must_be_unicast(write, address):
    loaded = load(write({"all.yaml": service() + pool(endpoints=f"{{address: {address}}}")}))
    assert rules_of(loaded) == ["address-not-unicast"]


@pytest.mark.parametrize(
    "broken",
    [
        pool("web", endpoints="{address: nonsense}"),                       # fits no schema
        pool("web").replace("{name", "{name: web, nam").replace("spec", "spce"),
        pool("web").replace("kind: Pool", "kind: Pol"),                     # could be anything
        pool("web", endpoints="{address: 10.2.0.11"),                       # no YAML
    ],
)  # fmt: skip
def test_pool_in_a_broken_document_is_not_missing(write, broken):
    """The consequence of an error that is reported is no error of its own."""
    loaded = load(write({"services.yaml": service(), "pools.yaml": broken}))
    assert loaded.diagnostics
    assert {d.span.file for d in loaded.diagnostics} == {"pools.yaml"}


def test_broken_document_excuses_only_the_pool_that_it_names(write):
    files = {"services.yaml": service(pool="wbe"), "pools.yaml": pool("web", endpoints="{address: nonsense}")}
    assert set(rules_of(load(write(files)))) == {"wrong-format", "service-pool-missing"}


@pytest.mark.parametrize("broken", [service("mail", pool="mail", ports="[0]"), pool("web", more="mail: 1")])
def test_broken_document_that_only_mentions_a_pool_does_not_excuse_it(write, broken):
    files = {"services.yaml": service(pool="mail"), "broken.yaml": broken}
    assert "service-pool-missing" in rules_of(load(write(files)))


def test_service_in_a_broken_document_uses_its_pool(write):
    assert rules_of(load(write({"all.yaml": service(ports="[0]") + pool()}))) == ["out-of-range"]


def test_what_could_not_be_read_may_hold_the_pool(write):
    loaded = load(write({"services.yaml": service(), "pools.yaml": pool().encode("utf-16")}))
    assert rules_of(loaded) == ["source-encoding"]


def test_many_missing_pools_are_all_reported_in_bounded_time(write):
    """Looking for a similar name is slow; among thousands it would take minutes, and help nobody."""
    services = "".join(service(f"s{i}", ports=f"[{i + 1}]", pool=f"gone{i}") for i in range(2000))
    pools = "".join(pool(f"pool{i}", endpoints=f"{{address: 10.3.{i // 250}.{i % 250 + 1}}}") for i in range(2000))
    loaded = load(write({"services.yaml": services, "pools.yaml": pools}))
    assert rules_of(loaded).count("service-pool-missing") == 2000
