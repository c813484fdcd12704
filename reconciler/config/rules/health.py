# SPDX-License-Identifier: Apache-2.0
"""Health checks: whether they can see that an endpoint serves its VIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reconciler.config.diagnostic import Severity, either
from reconciler.config.document import Path
from reconciler.config.rules.parts import Members, Use
from reconciler.config.rules.rule import Finding, rule, title
from reconciler.model import CheckType, Pool, Protocol, Service, Through

MAX_DETECTION_S = 60
"""If it takes longer than this to find out that an endpoint is dead, there is a warning."""

_CHECKS = ("spec", "healthCheck")
_PROTOCOLS = {
    CheckType.TCP: Protocol.TCP,
    CheckType.HTTP: Protocol.TCP,
    CheckType.HTTPS: Protocol.TCP,
    CheckType.UDP: Protocol.UDP,
    CheckType.SCTP: Protocol.SCTP,
    CheckType.DNS: Protocol.UDP,
}
"""The protocol of each type of check; a ping and an agent suit every protocol."""


@rule("check-through-vip", Use)
def _check_through_vip(use: Use) -> Iterator[Finding]:
    """A health check goes `through: vip`, but the endpoints don't have the VIP: all services of the pool are in
    mode nat or fullnat.

    Only in the modes dsr-l2 and dsr-l3 does an endpoint answer for the VIP itself. In the others it knows its own
    address only, so every check would fail and the whole pool be taken out of service.

    The way out: `through: endpoint`, which is the default.
    """
    for pool, services in _checked(use):
        if pool.health_check.through is Through.VIP and not _uses_dsr(services):
            service = services[0]
            message = f"the endpoints don't have the VIP of {title(service)}, whose mode is {service.mode}"
            hint = "check them at their own addresses: through: endpoint"
            yield Finding(pool.span, (*_CHECKS, "through"), message, hint)


@rule("check-bypasses-vip", Use, Severity.WARNING)
def _check_bypasses_vip(use: Use) -> Iterator[Finding]:
    """A health check asks the endpoint's own address, while a service sends it packets for the VIP, in mode dsr-l2
    or dsr-l3.

    An endpoint that lost the VIP, or its tunnel, answers such a check as if all were well, and drops every
    connection. This is the most frequent way in which direct server return fails.

    The way out: `through: vip`. Then the check takes the way that requests take, and proves all of it.
    """
    for pool, services in _checked(use):
        if pool.health_check.through is Through.ENDPOINT and (service := _uses_dsr(services)):
            message = (
                f"this check doesn't see whether the endpoints answer for the VIP of {title(service)} ({service.mode})"
            )
            yield Finding(pool.span, (*_CHECKS, "through"), message, "check them the way requests go: through: vip")


@rule("check-protocol", Use, Severity.WARNING)
def _check_protocol(use: Use) -> Iterator[Finding]:
    """A health check speaks another protocol than every service of the pool, at the same port.

    A UDP server doesn't listen at the TCP port of the same number; the check fails though the server is well. Or
    something else listens there, and the check succeeds though the server is dead.

    The way out: a check of the protocol of the service, a ping, or a `port` that was made for checks: with a port
    of its own the check may speak any protocol.
    """
    for pool, services in _checked(use):
        spoken = _PROTOCOLS.get(pool.health_check.type)
        if spoken is None or pool.health_check.port or any(service.protocol is spoken for service in services):
            continue
        service = services[0]
        fitting = [check.value for check, protocol in _PROTOCOLS.items() if protocol is service.protocol]
        message = f"a {pool.health_check.type} check says nothing about {title(service)}, which is {service.protocol}"
        hint = f"use type {either([*fitting, 'ping'])}, or give the check a port of its own"
        yield Finding(pool.span, (*_CHECKS, "type"), message, hint)


@rule("check-port-unknown", Use)
def _check_port_unknown(use: Use) -> Iterator[Finding]:
    """A health check has no port, and the services of the pool send to several.

    Without a port of its own a check takes the one that connections go to: that of the endpoint, else that of the
    service. With a range of ports, or with two services of different ports, there is no such single port.

    The way out: `port` in the health check, or a port for each endpoint.
    """
    for pool, services in _checked(use):
        check = pool.health_check
        spoken = _PROTOCOLS.get(check.type)
        if spoken is None or check.port or all(endpoint.port for endpoint in pool.endpoints):
            continue
        ports: set[int] = set()
        for service in services:
            if service.protocol is spoken:
                ports.update((service.target_port,) if service.target_port else service.ports[:2])
            if len(ports) > 1:
                first, second = sorted(ports)[:2]
                message = f"it is not clear which port to check: connections go to {first}, {second} or others"
                yield Finding(pool.span, _CHECKS, message, f"say it: `port: {first}`")
                break


@rule("check-timeout", Members)
def _check_timeout(members: Members) -> Iterator[Finding]:
    """The `timeout` of a health check is not shorter than its `interval`.

    The next check would begin while the last one still waits, so a late answer would be taken for the answer to the
    next check.

    The way out: a shorter timeout or a longer interval. The defaults are an interval of 2s and a timeout of 1s.
    """
    pool = members.pool
    check = pool.health_check
    if check.type is not CheckType.NONE and check.timeout_s >= check.interval_s:
        message = (
            f"the timeout of a check ({_seconds(check.timeout_s)}) must be shorter than its interval "
            f"({_seconds(check.interval_s)})"
        )
        path = _written(pool, "timeout", 1.0, "interval")
        yield Finding(pool.span, path, message, "shorten the timeout, or check less often")


@rule("check-slow", Members, Severity.WARNING)
def _check_slow(members: Members) -> Iterator[Finding]:
    """It takes more than a minute to find out that an endpoint is dead.

    In the worst case that takes `fall` intervals and one timeout. Until then the endpoint keeps its share of new
    connections, and all of them fail.

    The way out: a shorter `interval`, or fewer failures (`fall`). With the defaults it takes 7 seconds.
    """
    pool = members.pool
    check = pool.health_check
    detection_s = check.interval_s * check.fall + check.timeout_s
    if check.type is not CheckType.NONE and detection_s > MAX_DETECTION_S and check.timeout_s < check.interval_s:
        message = (
            f"a dead endpoint gets connections for up to {_seconds(detection_s)}: {check.fall} failures, "
            f"one every {_seconds(check.interval_s)}"
        )
        path = _written(pool, "interval", 2.0, "fall")
        yield Finding(pool.span, path, message, "check more often, or lower `fall`")


@rule("check-silent", Members, Severity.WARNING)
def _check_silent(members: Members) -> Iterator[Finding]:
    """A health check of type udp expects no reply.

    UDP has no handshake. Without an expected reply only an ICMP error counts as a failure, and a machine behind a
    firewall, or one that is switched off behind a router, sends none: it counts as healthy for ever.

    The way out: `send` something that the server answers, and `expect` the beginning of its answer; or check
    something else, with a ping or at another port.
    """
    pool = members.pool
    if pool.health_check.type is CheckType.UDP and pool.health_check.expect is None:
        message = "a dead machine sends no reply either: without `expect` it counts as healthy"
        yield Finding(pool.span, _CHECKS, message, "add what the server answers: `expect: PONG`")


def _checked(use: Use) -> Iterator[tuple[Pool, Sequence[Service]]]:
    """Pools with a health check, and all services that use them. Pools that others may use are left out."""
    for members in use.pools:
        if use.services and members.pool.health_check.type is not CheckType.NONE and not use.may_be_named:
            yield members.pool, use.services


def _uses_dsr(services: Sequence[Service]) -> Service | None:
    return next((service for service in services if service.mode.is_dsr), None)


def _written(pool: Pool, key: str, default: float, other: str) -> Path:
    """The path of a duration; of the `other` key of the pair if this one has its default."""
    value = pool.health_check.timeout_s if key == "timeout" else pool.health_check.interval_s
    return (*_CHECKS, key if value != default else other)


def _seconds(seconds: float) -> str:
    """As manifests say it."""
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
