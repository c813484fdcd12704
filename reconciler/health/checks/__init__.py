# SPDX-License-Identifier: Apache-2.0
"""How each type of check asks, one file a type.

A check is a generator: it yields a socket and the events that it waits for, and returns an Outcome. It may raise
OSError. At its deadline `Late` is raised where it waits; if it doesn't catch that, there was no answer. It closes its
sockets, also if it is closed itself. Answers are hostile data: what is read of them is bounded, and `outcome.quoted`
quotes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reconciler.health.checks.agent import agent
from reconciler.health.checks.dns import dns
from reconciler.health.checks.http import http, https
from reconciler.health.checks.ping import ping
from reconciler.health.checks.sctp import sctp
from reconciler.health.checks.tcp import tcp
from reconciler.health.checks.udp import udp
from reconciler.health.checks.wait import Check
from reconciler.health.target import Target
from reconciler.health.way import Way
from reconciler.model import CheckType

CHECKS: Mapping[CheckType, Callable[[Target, Way], Check]] = {
    CheckType.TCP: tcp, CheckType.UDP: udp, CheckType.HTTP: http, CheckType.HTTPS: https, CheckType.PING: ping,
    CheckType.SCTP: sctp, CheckType.DNS: dns, CheckType.AGENT: agent,
}  # fmt: skip
