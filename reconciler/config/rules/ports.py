# SPDX-License-Identifier: Apache-2.0
"""Ports of VIPs: which service has them, and to which ports they are translated."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.config.formats import port_range
from reconciler.config.rules.draft import Draft, Finding, more, rule, title, vip_path
from reconciler.config.rules.segments import number
from reconciler.model import Address, Labels, Protocol, Service

MAX_OWNERS = 20  # other services that one service is told of


@dataclass(frozen=True, slots=True)
class ItemWithPort:
    """The item of `ports` that holds a port: the last one, where several do."""

    port: int

    def pick(self, items: Any) -> int:
        return max(i for i, item in enumerate(items) if self.port in port_range(item))


@dataclass(frozen=True, slots=True)
class _Claim:
    """Ports of a VIP from `first` to `last` that a service wants; both 0 for a protocol without ports.

    `place` is the position of the service among all services.
    """

    first: int
    last: int
    place: int
    service: Service
    vip: Address


@rule("vip-port-conflict")
def _vip_port_conflict(draft: Draft) -> Iterator[Finding]:
    """Two services claim the same port of the same VIP, and a balancer carries both.

    A packet to that port can go to one pool only, and the manifests don't tell to which one.

    The way out: other ports, another VIP, or a `nodeSelector` that puts the services on different balancers.
    Different protocols have ports of their own; a range counts as every port in it.
    """
    claims: dict[tuple[int, Protocol], list[_Claim]] = {}
    for place, service in enumerate(draft.services):
        ranges = list(_ranges(service.ports)) or [(0, 0)]
        for vip in service.vips:
            claims.setdefault((number(vip), service.protocol), []).extend(
                [_Claim(first, last, place, service, vip) for first, last in ranges]
            )
    shared: dict[tuple[int, int], tuple[_Claim, _Claim]] = {}  # one finding for each other service
    for rivals in claims.values():
        for group in _overlapping(rivals):
            for other, claim in _conflicts(draft, group):
                shared.setdefault((claim.place, other.place), (other, claim))
    told = Counter[int]()
    for (place, _), (other, claim) in sorted(shared.items()):
        told[place] += 1
        if told[place] <= MAX_OWNERS:
            yield _conflict(other, claim)


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
    if len(claims) == 1:
        return
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


def _conflicts(draft: Draft, group: list[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs of claims in a group that overlap on some balancer; in a pair, the service that is declared first comes
    first.

    For each balancer only the claim with the highest last port is remembered, so not every pair is found, but every
    claim that overlaps another one is in some pair.
    """
    farthest: dict[int | Labels, _Claim] = {}
    for claim in group:
        for balancer in draft.whereabouts(claim.service):
            other = farthest.get(balancer)
            if other and other.last >= claim.first and other.service is not claim.service:
                yield (other, claim) if other.place < claim.place else (claim, other)
            if not other or other.last < claim.last:
                farthest[balancer] = claim


def _conflict(other: _Claim, claim: _Claim) -> Finding:
    vip, service, owner = claim.vip, claim.service, f"{title(other.service)} already ({other.service.span})"
    if not service.ports:
        path = vip_path(service, service.vips.index(vip))
        return Finding(service.span, path, f"{service.protocol} to {vip} belongs to {owner}", "choose another VIP")
    few, many = sorted((service.ports, other.service.ports), key=len)
    ports = [port for port in few if many[bisect_left(many, port) : bisect_right(many, port)]]
    which = f"port {ports[0]}" if len(ports) == 1 else f"{len(ports)} ports from {ports[0]} to {ports[-1]}"
    verb = "belongs" if len(ports) == 1 else "belong"
    path = ("spec", "ports", ItemWithPort(ports[0]))
    hint = "choose other ports or another VIP"
    return Finding(service.span, path, f"{which} of {vip} {verb} to {owner}", hint)


@rule("duplicate-port")
def _duplicate_port(draft: Draft) -> Iterator[Finding]:
    """A service lists a port twice, on its own or within ranges.

    It does no harm by itself. But one of the two is probably a typing error for a port that is missing now.

    The way out: list each port once.
    """
    for service in draft.services:
        if len(set(service.ports)) < len(service.ports):
            port = next(port for port, count in Counter(service.ports).items() if count > 1)
            path = ("spec", "ports", ItemWithPort(port))
            yield Finding(service.span, path, f"port {port} is listed twice", "list each port once")


@rule("target-port-of-many")
def _target_port_of_many(draft: Draft) -> Iterator[Finding]:
    """A service has several ports, and one port of its endpoints for all of them: `targetPort`, or the `port` of an
    endpoint.

    Behind the balancer, connections look the same whichever port the client asked for. If a client uses one source
    port for connections to two of these ports, the replies of the two can't be told apart, so the second connection is
    refused.

    The way out: one service for each port, or leave out the port of the endpoints, so that ports are not translated.
    """
    told = set()  # pools, which several services may share
    for service in draft.services:
        if service.mode.is_dsr or len(service.ports) <= 1:
            continue
        hint = "write a service for each port, or leave out {}: then no port is changed"
        if service.target_port is not None:
            message = f"{len(service.ports):,} ports can't all become port {service.target_port}"
            yield Finding(service.span, ("spec", "targetPort"), message, hint.format("targetPort"))
        pool = draft.pool.get(service.pool)
        if pool is None or pool.name in told or draft.endpoint_ports[id(pool)] <= {None}:
            continue
        told.add(pool.name)
        with_port = [i for i, endpoint in enumerate(pool.endpoints) if endpoint.port is not None]
        message = (
            f"{len(service.ports):,} ports of {title(service)} ({service.span}) can't all become port "
            f"{pool.endpoints[with_port[0]].port}{more(len(with_port), 'endpoint')}"
        )
        yield Finding(pool.span, ("spec", "endpoints", with_port[0], "port"), message, hint.format("port"))
