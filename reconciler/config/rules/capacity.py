# SPDX-License-Identifier: Apache-2.0
"""The rows that a node needs, compared with its declared capacity and with the most that is possible.

Old and new rows exist side by side while something changes: an endpoint that no manifest names any more keeps its row
as long as connections may point to it, and the row of a service is removed after its successor was written. So the
peak is everything that is declared, plus the largest single pool, or service, once more: enough to exchange any one
of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reconciler.config.diagnostic import Severity
from reconciler.config.document import Path
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Members, Need, rows_of
from reconciler.config.rules.rule import Finding, place, rule, title
from reconciler.limits import ENDPOINTS, MOST_FLOWS, MOST_SERVICES, RINGS
from reconciler.model import Algorithm, Labels, Mode, Node, Pool, Service, VipBinding

MAX_LOOPBACK_ADDRESSES = 1_000


@dataclass(frozen=True, slots=True)
class _Load:
    """How many rows a balancer needs, and the largest single part of them; most rows of that part are from `place`."""

    rows: int
    largest: Service | Pool
    largest_rows: int

    @property
    def peak(self) -> int:
        return self.rows + self.largest_rows

    @property
    def place(self) -> Path:
        if isinstance(self.largest, Pool):
            return ("spec", "endpoints")
        return ("spec", "ports") if self.largest.ports else ("spec",)


@rule("capacity-services", Draft)
def _capacity_services(draft: Draft) -> Iterator[Finding]:
    """The services that a balancer carries need more rows than its declared `capacity.services`, or than is possible:
    262,144.

    Each pair of a VIP and a port is a row: a service with two VIPs and the ports 8000-8010 has 22. Rows beyond the
    capacity can't be written; `apply` would fail half-way. Without a declared capacity the tables grow with the need.
    Each pair of a pool and an algorithm is a ring, of which there are 16,383 at most.

    The way out: a larger capacity, fewer ports, or a `nodeSelector` that spreads the services over balancers.
    """
    for node, load, limit in _service_loads(draft):
        if load.rows > limit:
            pairs = f"{_counted(load.rows, 'pair')} of VIP and port"
            yield _excess(node, "services", pairs, load, limit)
    yield from _too_many_rings(draft)


def _too_many_rings(draft: Draft) -> Iterator[Finding]:
    if sum(need.count for need in draft.needs.values()) <= RINGS:
        return
    rings: dict[int, set[tuple[str, Algorithm]]] = {}
    first_beyond: dict[int, Service] = {}
    for service in draft.services:
        for node in draft.carriers(service):
            found = rings.setdefault(id(node), set())
            found.add((service.pool, service.scheduling))
            if len(found) > RINGS:
                first_beyond.setdefault(id(node), service)
    for node in draft.balancers:
        if beyond := first_beyond.get(id(node)):
            message = f"{title(node)} would hold {len(rings[id(node)]):,} rings, {RINGS:,} is the most"
            yield Finding(beyond.span, ("spec", "pool"), message, "share pools, or spread services (nodeSelector)")


@rule("capacity-endpoints", Draft)
def _capacity_endpoints(draft: Draft) -> Iterator[Finding]:
    """The pools that a balancer needs have more endpoints than its declared `capacity.endpoints`, or than is possible:
    131,071, since a slot of a ring has 17 bits for the number of an endpoint.

    Each address with a port is a row; an endpoint in several pools is one row. Rows beyond the capacity can't be
    written; `apply` would fail half-way. Without a declared capacity the tables grow with the need.

    The way out: a larger capacity, or a `nodeSelector` that spreads the services over balancers.
    """
    for node, load, limit in _endpoint_loads(draft):
        if load.rows > limit:
            yield _excess(node, "endpoints", _counted(load.rows, "endpoint"), load, limit)


@rule("capacity-peak", Draft, Severity.WARNING)
def _capacity_peak(draft: Draft) -> Iterator[Finding]:
    """Everything that is declared fits into a balancer, but there is no room to exchange the largest pool, or service.

    While something changes, old and new rows exist side by side: an endpoint that was removed keeps its row as long as
    connections may point to it, and a service that moves to another VIP has both for a moment. The peak is everything
    that is declared, plus the largest pool (service) once more. A change that needs more than the capacity fails.

    The way out: a larger capacity, or smaller steps: a part of the pool at a time.
    """
    for key, loads in (("services", _service_loads(draft)), ("endpoints", _endpoint_loads(draft))):
        for node, load, limit in loads:
            if load.rows <= limit < load.peak:
                room = f"{limit - load.rows:,} {_NOUNS[key]}"
                message = (
                    f"{title(node)} has room for {room} beyond the {load.rows:,} declared: "
                    f"to exchange {title(load.largest)} at once takes {load.largest_rows:,}"
                )
                if getattr(node.capacity, key) == limit and load.peak <= _MOST[key]:
                    hint = f"raise the capacity to {load.peak:,}, or change it in parts"
                    yield Finding(node.span, ("spec", "capacity", key), message, hint)
                else:
                    yield Finding(load.largest.span, load.place, message, "change it in parts")


@rule("capacity-flows", Draft)
def _capacity_flows(draft: Draft) -> Iterator[Finding]:
    """The `expectedFlows` of a balancer exceed its `capacity.flows`, or what is possible: 16,777,216 connections of
    services in the modes nat and fullnat. In direct server return nothing is remembered while nothing changes.

    An open connection is never given up for a new one: new ones beyond the capacity are refused.

    The way out: raise `capacity.flows`, or leave it out: then the table grows with `expectedFlows`.
    """
    translating: set[int] | None = None
    for node in draft.balancers:
        expected, limit = node.expected_flows or 0, node.capacity.flows
        if limit and expected > limit:
            message = f"{expected:,} connections are expected, but the capacity is {limit:,}"
            yield Finding(node.span, ("spec", "expectedFlows"), message, "raise capacity.flows, or leave it out")
        elif expected > MOST_FLOWS:
            if translating is None:
                translating = {id(n) for s, mode in draft.needs if not mode.is_dsr for n in draft.around.carriers(s)}
            if id(node) in translating:
                message = f"{expected:,} connections are expected, but {MOST_FLOWS:,} is the most"
                yield Finding(node.span, ("spec", "expectedFlows"), message, "spread them over balancers, or use dsr")


@rule("capacity-beyond", Draft)
def _capacity_beyond(draft: Draft) -> Iterator[Finding]:
    """A balancer's declared `capacity` is more than is possible: 262,144 pairs of VIP and port, 131,071 endpoints,
    16,777,216 flows.

    The tables are made in these sizes. Each pair has counters on each CPU, a slot of a ring has 17 bits for the number
    of an endpoint, and so many flows take up to 1.7 GB.

    The way out: the number that the message names; or leave it out, and the tables grow with the need.
    """
    for node in draft.balancers:
        for key, most in _MOST.items():
            given = getattr(node.capacity, key)
            if given and given > most:
                message = f"a balancer holds {most:,} {_NOUNS[key]} at most, not {given:,}"
                hint = f"write {most} or less, or leave it out"
                yield Finding(node.span, ("spec", "capacity", key), message, hint)


@rule("many-loopback-addresses", Draft, Severity.WARNING)
def _many_loopback_addresses(draft: Draft) -> Iterator[Finding]:
    """A balancer with `vipBinding: address` carries more than a thousand VIPs.

    Each becomes an address of the loopback, and the kernel walks through all of them for each one that is added:
    50,000 took over a minute where as many routes took a second.

    The way out: `vipBinding: route`, the default. `ip route show table local` lists the VIPs then.
    """
    vips: dict[Labels, set[int]] = {}
    nodes = [node for node in draft.balancers if node.vip_binding is VipBinding.ADDRESS]
    if not nodes:
        return
    for service in draft.services:
        vips.setdefault(service.node_selector, set()).update(map(int, service.vips))
    for node in nodes:
        labels = set(node.labels)
        count = len(set().union(*(found for selector, found in vips.items() if labels.issuperset(selector))))
        if count > MAX_LOOPBACK_ADDRESSES:
            message = f"{count:,} addresses on the loopback take the kernel long to add"
            yield Finding(node.span, ("spec", "vipBinding"), message, "use route, the default")


def _service_loads(draft: Draft) -> Iterator[tuple[Node, _Load, int]]:
    """The rows that the services of each balancer need, and its limit; each pair of VIP and port is a row."""
    loads: dict[int, Need] = {}
    for (selector, _), need in sorted(draft.needs.items(), key=lambda item: place(item[1].largest)):
        for node in draft.around.carriers(selector):
            loads[id(node)] = Need.sum([loads[id(node)], need]) if id(node) in loads else need
    for node in draft.balancers:
        if load := loads.get(id(node)):
            limit = min(node.capacity.services or MOST_SERVICES, MOST_SERVICES)
            yield node, _Load(load.rows, load.largest, rows_of(load.largest)), limit


def _endpoint_loads(draft: Draft) -> Iterator[tuple[Node, _Load, int]]:
    """The rows that the pools of each balancer need, and its limit; an address and port is one row, however often it
    occurs. Balancers without a declared capacity are left out if their rows certainly fit."""
    reaches = draft.reach(*Mode)
    most: dict[int, int] = {}  # no fewer than a node needs: an endpoint of several pools counts for each
    for reach in reaches:
        for node in reach.balancers:
            most[id(node)] = most.get(id(node), 0) + len(reach.numbers)
    largest = max([size for reach in reaches for size in reach.sizes], default=0)
    counted: dict[tuple[int, ...], _Load] = {}  # many nodes carry the same pools
    for node in draft.balancers:
        limit = min(node.capacity.endpoints or ENDPOINTS, ENDPOINTS)
        if most.get(id(node), 0) + largest > limit:
            own = [reach for reach in reaches if any(other is node for other in reach.balancers)]
            key = tuple(map(id, own))
            if key not in counted:
                counted[key] = _endpoint_load([members for reach in own for members in reach.pools])
            yield node, counted[key], limit


def _endpoint_load(pools: Sequence[Members]) -> _Load:
    largest = max(sorted(pools, key=lambda members: members.pool.name), key=lambda members: len(members.numbers))
    rows: set[tuple[int, int | None]] = set()
    for members in pools:
        rows.update(zip(members.numbers, (endpoint.port for endpoint in members.pool.endpoints), strict=True))
    return _Load(len(rows), largest.pool, len(largest.numbers))


def _excess(node: Node, key: str, what: str, load: _Load, limit: int) -> Finding:
    """A finding that a balancer needs too many rows: at its capacity, or at the largest part if no capacity would
    do."""
    message = f"{title(node)} would hold {what}"
    if getattr(node.capacity, key) == limit:
        return Finding(node.span, ("spec", "capacity", key), f"{message}, its capacity is {limit:,}", _SPREAD)
    most = f"{load.largest_rows:,} of them for {title(load.largest)}"
    hint = "leave some out, or spread them over balancers (nodeSelector)"
    return Finding(load.largest.span, load.place, f"{message}, {most}; {limit:,} is the most", hint)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


_MOST = {"services": MOST_SERVICES, "endpoints": ENDPOINTS, "flows": MOST_FLOWS}
_NOUNS = {"services": "pairs of VIP and port", "endpoints": "endpoints", "flows": "connections"}
_SPREAD = "raise it, or spread the services over balancers (nodeSelector)"
