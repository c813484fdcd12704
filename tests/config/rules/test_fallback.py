# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import Loader, load
from tests.config.manifests import node, pool, service

CHECK = "healthCheck: {type: tcp}"
TWO = "{address: 10.2.0.11}, {address: 10.2.0.12}"


def with_fallback(fallback=""):
    """A service whose pool has a fallback, and that fallback."""
    first = pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry")
    return first + pool("sorry", endpoints="{address: 10.2.0.99}", more=fallback) + service() + node()


CASES = {
    "fallback-missing": (
        pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry") + service() + node(),
        with_fallback(),
    ),
    "fallback-of-fallback": (
        with_fallback("healthCheck: {type: tcp}, whenNoneHealthy: fallback, fallbackPool: web"),
        with_fallback("healthCheck: {type: tcp}, whenNoneHealthy: drop"),
    ),
    "healthy-without-check": (
        pool(more="minHealthy: 2") + service() + node(),
        pool(endpoints=TWO, more=f"minHealthy: 2, {CHECK}") + service() + node(),
    ),
    "min-healthy-beyond": (
        pool(endpoints=TWO + ", {address: 10.2.0.13, weight: 0}", more=f"minHealthy: 3, {CHECK}") + service() + node(),
        pool(endpoints=TWO + ", {address: 10.2.0.13}", more=f"minHealthy: 3, {CHECK}") + service() + node(),
    ),
}


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


def test_a_fallback_is_used(write):
    """So it isn't reported as unused, and its check has to suit the services that it may have to serve."""
    assert load(write({"all.yaml": with_fallback()})).diagnostics == ()
    found = load(write({"all.yaml": with_fallback("healthCheck: {type: udp, expect: x}")}))
    assert rules_of(found) == ["check-protocol"]


@pytest.mark.parametrize(
    ("mode", "endpoint", "rule"),
    [
        ("dsr-l2", "{address: 10.2.0.99, port: 8080}", "dsr-port"),
        ("dsr-l2", "{address: 10.9.0.99}", "dsr-l2-segment"),
        ("nat", "{address: 'fd00::99'}", "family-mismatch"),
        ("nat", "{address: 10.2.0.1}", "endpoint-is-balancer"),
        ("dsr-l3", "{address: 'fd00::99'}", "tunnel-source-missing"),
    ],
)
def test_a_fallback_has_to_suit_the_services_of_the_other_pool(write, mode, endpoint, rule):
    first = pool(more="healthCheck: {type: tcp, through: vip}, whenNoneHealthy: fallback, fallbackPool: sorry")
    first = first if mode.startswith("dsr") else first.replace(", through: vip", "")
    faces = [f"{{name: e{i}, addresses: [10.{i}.0.1/24], mtu: 1600}}" for i in (1, 2)]
    balancer = node(interfaces=", ".join(faces), more="healthAddress: {ipv4: 10.1.0.9}")
    text = first + pool("sorry", endpoints=endpoint) + service(more=f"mode: {mode}") + balancer
    assert rule in rules_of(load(write({"all.yaml": text})))
    fine = text.replace(endpoint, "{address: 10.2.0.99}")
    assert load(write({"all.yaml": fine})).diagnostics == ()


def test_a_fallback_of_the_wrong_family_is_named(write):
    text = with_fallback().replace("10.2.0.99", "'fd00::99'")
    (found,) = [d for d in load(write({"all.yaml": text})).diagnostics if d.rule == "family-mismatch"]
    assert "of the fallback 'sorry'" in found.message
    assert found.hint.startswith("name a fallback of IPv4 endpoints")


def test_a_missing_pool_is_told_where_it_is_named(write):
    """A service that names another pool isn't told of a fallback that is missing."""
    first = pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry")
    other = service("other", ports="[81]", pool="sorry")
    found = load(write({"all.yaml": service() + other + first + node()}))
    assert sorted(rules_of(found)) == ["fallback-missing", "service-pool-missing"]


@pytest.mark.parametrize("broken", [pool("sorry", endpoints="{address: nonsense}"), pool("sorry", more="x: 1")])
def test_fallback_in_a_broken_document_is_not_missing(write, broken):
    first = pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry")
    found = load(write({"all.yaml": service() + first + node(), "broken.yaml": broken})).diagnostics
    assert {d.span.file for d in found} == {"broken.yaml"}


def test_service_in_a_broken_document_uses_the_fallback_of_its_pool(write):
    text = with_fallback().replace("ports: [80]", "ports: [0]")
    assert rules_of(load(write({"all.yaml": text}))) == ["out-of-range"]


def test_the_fallback_of_an_unused_pool_is_unused(write):
    text = with_fallback().replace("pool: web", "pool: new") + pool("new")
    assert rules_of(load(write({"all.yaml": text}))) == ["pool-unused", "pool-unused"]


def test_an_edit_of_a_pool_reaches_the_rules_about_its_fallback(tmp_path):
    """Also an edit of its services: each is in a file of its own."""
    first = pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry")
    files = {"a": first, "b": pool("sorry", endpoints="{address: 10.2.0.99, port: 8080}"), "c": service(), "d": node()}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    loader = Loader(tmp_path)
    assert loader.load().diagnostics == ()
    for name, text, rules in (
        ("a", pool(more=CHECK), {"pool-unused"}),
        ("a", first, set()),
        ("c", service(more="mode: dsr-l2"), {"dsr-port", "check-bypasses-vip"}),
        ("b", pool("sorry", endpoints="{address: 10.2.0.99}"), {"check-bypasses-vip"}),
        ("c", service(), set()),
        ("b", "", {"fallback-missing"}),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
        assert set(rules_of(loader.load())) == rules


def test_no_pool_is_its_own_fallback(write):
    text = pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: web") + service() + node()
    assert rules_of(load(write({"all.yaml": text}))) == ["fallback-of-fallback"]


@pytest.mark.parametrize("key", ["whenNoneHealthy: drop", "slowStart: 30s", "onUnhealthy: reset", "minHealthy: 2"])
def test_what_needs_a_check(write, key):
    assert rules_of(load(write({"all.yaml": pool(more=key) + service() + node()}))) == ["healthy-without-check"]


def test_fallback_and_its_word_belong_together(write):
    for more in ("whenNoneHealthy: fallback", "fallbackPool: web", "whenNoneHealthy: drop, fallbackPool: web"):
        (found,) = load(write({"all.yaml": pool(more=f"{CHECK}, {more}") + service() + node()})).diagnostics
        assert found.rule in ("missing-key", "key-conflict")


@pytest.mark.parametrize(("more", "rules"), [
    (f"announceMin: 3, {CHECK}", ["min-healthy-beyond"]), (f"announceMin: 2, {CHECK}", []),
    (f"announceMin: 0, {CHECK}", []), ("announceMin: 1", []),
])  # fmt: skip
def test_announcing_asks_for_no_more_than_there_are(write, more, rules):
    assert rules_of(load(write({"all.yaml": pool(endpoints=TWO, more=more) + service() + node()}))) == rules
