# SPDX-License-Identifier: Apache-2.0
from reconciler.config.load import load
from tests.config.rules.parts import web

CASES = {
    "timeout-long": (
        web(more="idleTimeout: 25h"),
        web(more="idleTimeout: 1d, affinity: {timeout: 24h}"),
    ),
}


def test_affinity_has_the_same_bound(write):
    (found,) = load(write({"all.yaml": web(more="affinity: {timeout: 2d}")})).diagnostics
    assert found.rule == "timeout-long"
