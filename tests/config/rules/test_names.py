# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, pool, service
from tests.config.rules.parts import labelled

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
    "node-selector-unmatched": (
        service(more="nodeSelector: {site: nrth}") + pool() + labelled(node(), "site: north"),
        service(more="nodeSelector: {site: north}") + pool() + labelled(node(), "site: north, tier: front"),
    ),
}


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


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


def test_broken_node_may_have_the_labels(write):
    broken = labelled(node(), "site: north").replace("addresses", "adresses")
    files = {"services.yaml": service(more="nodeSelector: {site: north}") + pool(), "nodes.yaml": broken}
    assert set(rules_of(load(write(files)))) == {"unknown-key"}


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("{site: nrth}", "did you mean 'site: north'?"),
        ("{site: north, tier: front}", "each label is there, but no balancer has all of them"),
        ("{colour: green}", "no balancer has the label colour: green"),
    ],
)
def test_hint_says_which_label_is_wrong(write, selector, hint):
    nodes = labelled(node(), "site: north") + labelled(
        node("lb2", interfaces="{name: eth0}"), "site: south, tier: front"
    )
    loaded = load(write({"all.yaml": service(more=f"nodeSelector: {selector}") + pool() + nodes}))
    assert [d.hint for d in loaded.diagnostics if d.rule == "node-selector-unmatched"] == [hint]


def test_endpoint_with_the_label_is_no_balancer(write):
    other = labelled(node("ep1", interfaces="{name: eth0, addresses: [10.2.0.11/24]}", more="role: endpoint"), "a: b")
    loaded = load(write({"all.yaml": service(more="nodeSelector: {a: b}") + pool() + node() + other}))
    assert rules_of(loaded) == ["node-selector-unmatched"]


def test_many_missing_pools_are_all_reported_in_bounded_time(write):
    """Looking for a similar name is slow; among thousands it would take minutes, and help nobody."""
    services = "".join(service(f"s{i}", ports=f"[{i + 1}]", pool=f"gone{i}") for i in range(2000))
    pools = "".join(pool(f"pool{i}", endpoints=f"{{address: 10.3.{i // 250}.{i % 250 + 1}}}") for i in range(2000))
    loaded = load(write({"services.yaml": services, "pools.yaml": pools}))
    assert rules_of(loaded).count("service-pool-missing") == 2000
