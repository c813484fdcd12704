# SPDX-License-Identifier: Apache-2.0
"""TCP: the target accepts a connection, which is then reset."""

from __future__ import annotations

from reconciler.health.checks.wait import Check, connect
from reconciler.health.outcome import OK
from reconciler.health.target import Target
from reconciler.health.way import Way, lent


def tcp(target: Target, way: Way) -> Check:
    sock = lent(target.asked, way)
    try:
        yield from connect(sock, target)
    finally:
        way.place.take_back(sock)
    return OK
