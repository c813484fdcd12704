# SPDX-License-Identifier: Apache-2.0
"""TCP: the target accepts a connection, which is then reset."""

from __future__ import annotations

from reconciler.health.checks.wait import Check, connect
from reconciler.health.outcome import OK
from reconciler.health.target import Target
from reconciler.health.way import Way, opened


def tcp(target: Target, way: Way) -> Check:
    with opened(target.asked, way) as sock:
        yield from connect(sock, target)
    return OK
