# SPDX-License-Identifier: Apache-2.0
"""Checks through VIPs, which the program doesn't explain: their frames say by themselves what they are."""

import pytest

from reconciler.dataplane.layout import ENDPOINTS, MARK_TUNNEL, EndpointRowState
from reconciler.dataplane.rows import Endpoint
from reconciler.explain.capture import Captured
from reconciler.explain.explanation import CHECK, NO_CHECK, _explain, _Names, checked
from reconciler.explain.packet import frame, parse_place
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.objects import PROBER_DEVICE
from reconciler.kernel.trial import Outcome

SYN = frame("tcp", parse_place("10.1.0.9:40000", "tcp"), parse_place("20.20.20.1:80", "tcp"), bytes(6))


def marked(mark):
    return SYN[:6] + b"\x02\x00" + mark.to_bytes(4, "big") + SYN[12:]


class Rows:
    """The rows of a trial."""

    def row(self, name, key):
        return ENDPOINTS.value.pack(Endpoint(bytes([10, 2, 0, 11]), 0, EndpointRowState.USABLE))


def explained(content, ingress=PROBER_DEVICE):
    dropped = Outcome(XdpVerdict.DROP, content, None, {"bytes": len(content)})
    return _explain(Rows(), _Names({}, {}), Captured(content, len(content)), dropped, ingress)


@pytest.mark.parametrize("mark", [7, 7 | MARK_TUNNEL])
def test_a_check_says_which_endpoint_it_is_for(mark):
    assert checked(marked(mark)) == 7
    found = explained(marked(mark))
    assert found.reason == CHECK
    assert not found.is_dropped
    assert found.endpoint == {"endpoint": "10.2.0.11", "state": "usable", "number": 7}


def test_what_is_no_check_is_dropped_and_that_is_said():
    assert checked(SYN) == 0
    found = explained(SYN)
    assert (found.reason, found.endpoint) == (NO_CHECK, None)
    assert found.is_dropped
    assert explained(marked(7), "eth0").reason != CHECK
