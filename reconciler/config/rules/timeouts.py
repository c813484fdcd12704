# SPDX-License-Identifier: Apache-2.0
"""How long the balancer remembers."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.rule import Finding, rule
from reconciler.model import Service

LONGEST_S = 24 * 60 * 60


@rule("timeout-long", Service, Severity.WARNING)
def _timeout_long(service: Service) -> Iterator[Finding]:
    """An `idleTimeout`, or the `timeout` of an affinity, is longer than a day.

    A client that vanishes doesn't close its connections, so their entries stay in the table for all that time. The
    table is bounded, and one that is full refuses new connections.

    The way out: 24h at most. For connections that are quiet for longer, let one side send keepalives.
    """
    affinity_s = service.affinity.timeout_s if service.affinity else None
    for seconds, path in (
        (service.idle_timeout_s, ("spec", "idleTimeout")),
        (affinity_s, ("spec", "affinity", "timeout")),
    ):
        if seconds is not None and seconds > LONGEST_S:
            message = "clients that vanished would be remembered for more than a day"
            yield Finding(service.span, path, message, "use 24h at most, and keepalives")
