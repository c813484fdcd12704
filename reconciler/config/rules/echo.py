# SPDX-License-Identifier: Apache-2.0
"""Pings of VIPs: which services decide about them, and which answers are possible."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.rules.parts import Vip
from reconciler.config.rules.rule import Finding, rule, title
from reconciler.config.rules.segments import number
from reconciler.model import Echo, Labels, Protocol, Service


@rule("echo-nat", Service)
def _echo_nat(service: Service) -> Iterator[Finding]:
    """`echo: endpoint` in mode nat or fullnat.

    In these modes the endpoint would reply from an address that the client did not ping, and the balancer translates
    no ICMP. So no client would get an answer.

    The way out: `echo: reply`, which the balancer itself answers, or mode dsr-l2 or dsr-l3.
    """
    if service.echo is Echo.ENDPOINT and not service.mode.is_dsr:
        message = f"mode {service.mode} can't hand pings to endpoints"
        yield Finding(service.span, ("spec", "echo"), message, "use echo: reply, or mode dsr-l2 or dsr-l3")


@rule("echo-conflict", Vip)
def _echo_conflict(vip: Vip) -> Iterator[Finding]:
    """Two services share a VIP and have different `echo`; or both send its pings to endpoints, of different pools or
    in different ways.

    A ping names no port, so a VIP has one answer to it. The manifests would not tell which service decides.

    The way out: say `echo` the same everywhere, or at one service of the VIP only. Services on different balancers
    may differ. A service with `protocol: icmp` hands pings to its endpoints.
    """
    first: dict[int | Labels, Service] = {}
    for service in vip.services:
        if _wish(service) is None:
            continue
        others = [first.setdefault(balancer, service) for balancer in vip.around.whereabouts(service)]
        rival = next((other for other in others if _wish(other) != _wish(service)), None)
        if rival and not rival.protocol is service.protocol is Protocol.ICMP:
            rank = [number(address) for address in service.vips].index(vip.number)
            which = service.vips[rank]
            message = f"pings of {which}: {_said(service)} here, but {_said(rival)} by {title(rival)} ({rival.span})"
            if _said(service) == _said(rival):
                message = f"pings of {which} go to the endpoints of {title(rival)} already ({rival.span})"
            path = ("spec", "echo" if service.echo else "protocol")
            hint = "say it at one service of the VIP, or the same at all"
            yield Finding(service.span, path, message, hint, rival.span, rank)


def _wish(service: Service) -> tuple[object, ...] | None:
    """A service's wish for pings: equal for services that agree, None if it has no wish."""
    if service.takes_pings:
        return Echo.ENDPOINT, service.pool, service.mode, service.scheduling
    return (service.echo,) if service.echo else None


def _said(service: Service) -> str:
    return f"echo: {service.echo}" if service.echo else f"protocol: {service.protocol}"
