# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.manifests import node, pool, service

CHECK = "healthCheck: {type: tcp}"


def with_fallback(fallback=""):
    """A service whose pool has a fallback, and that fallback."""
    first = pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry")
    return first + pool("sorry", endpoints="{address: 10.2.0.99}", more=fallback) + service() + node()


CASES = {
    "fallback-missing": (
        pool(more=f"{CHECK}, whenNoneHealthy: fallback, fallbackPool: sorry") + service() + node(), with_fallback(),
    ),
    "fallback-of-fallback": (
        with_fallback("healthCheck: {type: tcp}, whenNoneHealthy: fallback, fallbackPool: web"),
        with_fallback("healthCheck: {type: tcp}, whenNoneHealthy: drop"),
    ),
    "healthy-without-check": (
        pool(more="minHealthy: 2") + service() + node(),
        pool(more=f"minHealthy: 2, {CHECK}") + service() + node(),
    ),
}


def rules_of(loaded):
    return [diagnostic.rule for diagnostic in loaded.diagnostics]


def test_a_fallback_is_used(write):
    """So it isn't reported as unused, and its check has to suit the services that it may have to serve."""
    assert load(write({"all.yaml": with_fallback()})).diagnostics == ()
    found = load(write({"all.yaml": with_fallback("healthCheck: {type: udp, expect: x}")}))
    assert rules_of(found) == ["check-protocol"]


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
