# SPDX-License-Identifier: Apache-2.0
"""How long the balancer remembers."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.rule import Finding, rule
from reconciler.model import Affinity, Algorithm, Service

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


@rule("affinity-by-hash", Service, Severity.WARNING)
def _affinity_by_hash(service: Service) -> Iterator[Finding]:
    """An `affinity` says something that comes to nothing, in mode dsr-l2 or dsr-l3 or of a service that is
    `stateless`: no connection is remembered there, and no client.

    Instead the endpoint is that of a hash of the client's address alone, for as long as the pool stays the same. So no
    time runs out, whatever `timeout` says; and where an endpoint goes, only its own clients get another one. With
    `algorithm: source-hash` it is so without any affinity.

    The way out: leave out `timeout`, or with source-hash all of `affinity`. If clients shall be forgotten after some
    time, or stay where they are while endpoints come, use mode nat or fullnat.
    """
    if not service.affinity or service.remembers_clients:
        return
    where = "of a stateless service" if service.stateless else f"in mode {service.mode}"
    if service.algorithm is Algorithm.SOURCE_HASH:
        message = f"affinity changes nothing {where}: source-hash gives a client the same endpoint each time"
        yield Finding(service.span, ("spec", "affinity"), message, "leave it out")
    elif service.affinity.timeout_s != Affinity().timeout_s:
        message = f"no client is forgotten after this time {where}: a hash of its address says its endpoint"
        hint = "leave it out, or use mode nat or fullnat"
        yield Finding(service.span, ("spec", "affinity", "timeout"), message, hint)
