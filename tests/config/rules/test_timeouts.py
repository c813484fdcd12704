# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.config.load import load
from tests.config.rules.parts import web

CASES = {
    "timeout-long": (
        web(more="idleTimeout: 25h"),
        web(more="idleTimeout: 1d, affinity: {timeout: 24h}"),
    ),
    "affinity-by-hash": (
        web("dsr-l2", more="affinity: {timeout: 10m}"),
        web("dsr-l2", more="affinity: {}"),
    ),
}


def test_affinity_has_the_same_bound(write):
    (found,) = load(write({"all.yaml": web(more="affinity: {timeout: 2d}")})).diagnostics
    assert found.rule == "timeout-long"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("mode: dsr-l3, algorithm: source-hash, affinity: {}", "affinity changes nothing in mode dsr-l3"),
        ("algorithm: source-hash, stateless: true, affinity: {}", "affinity changes nothing of a stateless service"),
        ("algorithm: maglev, stateless: true, affinity: {timeout: 1h}", "forgotten after this time of a stateless"),
        ("algorithm: maglev, stateless: true, affinity: {}", None),
        ("algorithm: source-hash, affinity: {timeout: 1h}", None),
        ("algorithm: source-hash, mode: dsr-l3", None),
    ],
)
def test_affinity_that_comes_to_nothing_is_told(write, more, said):
    found = [d.message for d in load(write({"all.yaml": web(more=more)})).diagnostics if d.rule == "affinity-by-hash"]
    assert len(found) == bool(said)
    assert all(said in message for message in found)
