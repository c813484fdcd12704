# SPDX-License-Identifier: Apache-2.0
"""Whose MAC is missing: that of the gateway where one is in between, not the endpoint's."""

from reconciler.dataplane.layout import Verdict
from reconciler.explain.explanation import Explanation
from reconciler.render.explain import explanation_text
from reconciler.render.style import Style


def test_an_unknown_neighbour_is_called_by_its_own_address():
    packet = [{"header": "ipv4", "source": "198.51.100.7", "destination": "20.20.20.1", "ttl": 64, "length": 40}]
    asks = [{"header": "ipv4", "source": "198.51.100.7", "destination": "10.2.0.254", "ttl": 64, "length": 28}]
    endpoint = {"endpoint": "10.9.0.11", "state": "usable", "number": 1}
    verdict = Verdict.NEIGHBOUR_UNKNOWN
    text = explanation_text(
        Explanation(
            verdict="neighbour-unknown", reason=verdict.meaning, ingress="front", packet=packet, missing=0, vip=None,
            service=None, connection=None, slot=None, transition=None, endpoint=endpoint,
            fib="the MAC of the next hop is unknown", way="kernel", egress="", out=asks,
        ),
        Style(),
    )  # fmt: skip
    assert text.startswith("neighbour unknown: dropped: the next hop's MAC is unknown")
    assert "given to the kernel, so that it asks for the way to 10.2.0.254" in text
    assert "endpoint's MAC" not in text
