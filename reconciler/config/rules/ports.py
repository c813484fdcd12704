# SPDX-License-Identifier: Apache-2.0
"""Ports of VIPs: which service has them, and to which ports they are translated."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.config.formats import port_range
from reconciler.config.rules.parts import Use, Vip
from reconciler.config.rules.rule import Finding, also, more, rule, title, vip_path
from reconciler.config.rules.segments import number
from reconciler.config.rules.surroundings import Surroundings
from reconciler.model import Labels, Protocol, Service


@dataclass(frozen=True, slots=True)
class ItemWithPort:
    """The item of `ports` that holds a port: the last one, where several do."""

    port: int

    def pick(self, items: Any) -> int:
        return max(i for i, item in enumerate(items) if self.port in port_range(item))


@dataclass(frozen=True, slots=True)
class _Claim:
    """Ports of a VIP from `first` to `last` that a service wants; both 0 for a protocol without ports.

    `place` is the position of the service among those of the VIP.
    """

    first: int
    last: int
    place: int
    service: Service


@rule("vip-port-conflict", Vip)
def _vip_port_conflict(vip: Vip) -> Iterator[Finding]:
    """Two services claim the same port of the same VIP, and a balancer carries both.

    A packet to that port can go to one pool only, and the manifests don't tell to which one.

    The way out: other ports, another VIP, or a `nodeSelector` that puts the services on different balancers.
    Different protocols have ports of their own; a range counts as every port in it.
    """
    if len(vip.services) == 1:
        return
    claims: dict[Protocol, list[_Claim]] = {}
    for place, service in enumerate(vip.services):
        ranges = list(_ranges(service.ports)) or [(0, 0)]
        claims.setdefault(service.protocol, []).extend([_Claim(*ports, place, service) for ports in ranges])
    shared = {
        (claim.place, other.place): (other.service, claim.service)  # one finding for each other service
        for rivals in claims.values()
        for group in _overlapping(rivals)
        for other, claim in _conflicts(vip.around, group)
    }
    for other, service in shared.values():
        yield _conflict(vip, other, service)


def _ranges(ports: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted ports as ranges: first and last port of each."""
    if not ports:
        return
    first = last = ports[0]
    for port in ports:
        if port > last + 1:
            yield first, last
            first = port
        last = port
    yield first, last


def _overlapping(claims: list[_Claim]) -> Iterator[list[_Claim]]:
    """Groups of claims of which each overlaps an earlier one of its group; claims on their own are left out."""
    claims.sort(key=lambda claim: (claim.first, claim.place))
    group: list[_Claim] = []
    end = -1
    for claim in claims:
        if claim.first > end:
            if len(group) > 1:
                yield group
            group = []
        group.append(claim)
        end = max(end, claim.last)
    if len(group) > 1:
        yield group


def _conflicts(around: Surroundings, group: list[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs of claims in a group that overlap on some balancer; in a pair, the service that is declared first comes
    first.

    For each balancer only the claim with the highest last port is remembered, so not every pair is found, but every
    claim that overlaps another one is in some pair.
    """
    farthest: dict[int | Labels, _Claim] = {}
    for claim in group:
        for balancer in around.whereabouts(claim.service):
            other = farthest.get(balancer)
            if other and other.last >= claim.first and other.service is not claim.service:
                yield (other, claim) if other.place < claim.place else (claim, other)
            if not other or other.last < claim.last:
                farthest[balancer] = claim


def _conflict(vip: Vip, other: Service, service: Service) -> Finding:
    owner = f"{title(other)} already ({other.span})"
    rank = list(map(number, service.vips)).index(vip.number)
    address = service.vips[rank]
    if not service.ports:
        message, hint = f"{service.protocol} to {address} belongs to {owner}", "choose another VIP"
        return Finding(service.span, vip_path(service, rank), message, hint, other.span, rank)
    few, many = sorted((service.ports, other.ports), key=len)
    ports = [port for port in few if many[bisect_left(many, port) : bisect_right(many, port)]]
    which = f"port {ports[0]}" if len(ports) == 1 else f"{len(ports)} ports from {ports[0]} to {ports[-1]}"
    verb = "belongs" if len(ports) == 1 else "belong"
    path = ("spec", "ports", ItemWithPort(ports[0]))
    hint = "choose other ports or another VIP"
    return Finding(service.span, path, f"{which} of {address} {verb} to {owner}", hint, other.span, rank)


@rule("duplicate-port", Service)
def _duplicate_port(service: Service) -> Iterator[Finding]:
    """A service lists a port twice, on its own or within ranges.

    It does no harm by itself. But one of the two is probably a typing error for a port that is missing now.

    The way out: list each port once.
    """
    if len(set(service.ports)) < len(service.ports):
        port = next(port for port, count in Counter(service.ports).items() if count > 1)
        path = ("spec", "ports", ItemWithPort(port))
        yield Finding(service.span, path, f"port {port} is listed twice", "list each port once")


@rule("target-port-of-many", Service)
def _target_port_of_many(service: Service) -> Iterator[Finding]:
    """A service has several ports, and one port of its endpoints for all of them: `targetPort`, or the `port` of an
    endpoint.

    Behind the balancer, connections look the same whichever port the client asked for. If a client uses one source
    port for connections to two of these ports, the replies of the two can't be told apart, so the second connection is
    refused.

    The way out: one service for each port, or leave out the port of the endpoints, so that ports are not translated.
    """
    if service.target_port is not None and _translates_many(service):
        message = f"{len(service.ports):,} ports can't all become port {service.target_port}"
        yield Finding(service.span, ("spec", "targetPort"), message, _NOT_TRANSLATED.format("targetPort"))


@also("target-port-of-many", Use)
def _endpoint_port_of_many(use: Use) -> Iterator[Finding]:
    service = next(filter(_translates_many, use.services), None)
    if use.pool is None or service is None or use.pool.ports <= {None}:
        return
    pool = use.pool.pool
    with_port = [i for i, endpoint in enumerate(pool.endpoints) if endpoint.port is not None]
    message = (
        f"{len(service.ports):,} ports of {title(service)} ({service.span}) can't all become port "
        f"{pool.endpoints[with_port[0]].port}{more(len(with_port), 'endpoint')}"
    )
    yield Finding(pool.span, ("spec", "endpoints", with_port[0], "port"), message, _NOT_TRANSLATED.format("port"))


def _translates_many(service: Service) -> bool:
    """Whether a service has several ports, in a mode that may translate them."""
    return not service.mode.is_dsr and len(service.ports) > 1


_NOT_TRANSLATED = "write a service for each port, or leave out {}: then no port is changed"
