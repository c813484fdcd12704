# SPDX-License-Identifier: Apache-2.0
"""Flows are chosen by their places, as addresses and networks, and by words."""

import pytest

from reconciler.dataplane.layout import ConnectionState, word
from reconciler.errors import UsageError
from reconciler.readings.flow_filter import WORDS, FlowFilter
from reconciler.readings.flows import NAMES

WEB = {"client": "10.1.0.2:40000", "service": "20.20.20.1:80/tcp", "endpoint": "10.2.0.11:8080", "state": "open",
       "protocol": "tcp", "idle_s": 1}  # fmt: skip
DNS = {"client": "10.1.0.20:53", "service": "20.20.20.1:53/udp", "endpoint": "removed endpoint 7", "state": "opening",
       "protocol": "udp", "idle_s": 2}  # fmt: skip
SIX = {"client": "[2001:db8:1::2]:40000", "service": "[2001:db8::80]:80/tcp", "endpoint": "[2001:db8:2::15]:80",
       "state": "closing", "protocol": "tcp", "idle_s": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [WEB, DNS, SIX]),
        ({"client": "10.1.0.2"}, [WEB]),
        ({"client": "10.1.0.0/24"}, [WEB, DNS]),
        ({"client": "10.1.0.20:53"}, [DNS]),
        ({"client": "10.1.0.20:54"}, []),
        ({"client": "2001:db8:1::/64"}, [SIX]),
        ({"client": "2001:db8:1::2"}, [SIX]),
        ({"client": "[2001:db8:1::2]:40000"}, [SIX]),
        ({"service": "20.20.20.1"}, [WEB, DNS]),
        ({"service": "20.20.20.1:53"}, [DNS]),
        ({"service": "20.20.20.1:53/tcp"}, []),
        ({"service": "[2001:db8::80]:80/tcp"}, [SIX]),
        ({"endpoint": "10.2.0.11:8080", "state": "open"}, [WEB]),
        ({"endpoint": "10.2.0.11:8080", "state": "closing"}, []),
        ({"protocol": "udp"}, [DNS]),
    ],
)
def test_flows_are_chosen(asked, found):
    assert list(filter(FlowFilter(**asked).matching(), [WEB, DNS, SIX])) == found


def test_the_words_are_those_that_flows_have():
    assert WORDS["state"] == tuple(word(ConnectionState, state) for state in ConnectionState)
    assert WORDS["protocol"] == tuple(filter(None, NAMES))


@pytest.mark.parametrize("text", ["nonsense", "10.1.0.2:port", "10.1.0.1/24", "10.1.0"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(UsageError, match="--client"):
        FlowFilter(client=text).matching()
