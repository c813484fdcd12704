# SPDX-License-Identifier: Apache-2.0
"""What a node must hold, against what it was said to be able to hold.

Old and new stand side by side while something changes: an endpoint that no manifest names any more keeps its row
as long as connections may point to it, and the row of a service goes after its successor came. So the peak is
counted as all that is declared, and the largest single pool, or service, a second time: what it takes to
exchange any one of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft, Finding, rule, title
from reconciler.model import Labels, Node, Pool, Service, VipBinding

MAX_LOOPBACK_ADDRESSES = 1_000


@dataclass(frozen=True, slots=True)
class _Load:
    """How many rows a balancer needs, and the largest single part of them."""

    rows: int
    largest: Service | Pool
    largest_rows: int

    @property
    def peak(self) -> int:
        return self.rows + self.largest_rows


@rule("capacity-services")
def _capacity_services(draft: Draft) -> Iterator[Finding]:
    """The services that a balancer carries need more rows than its declared `capacity.services`.

    Each pair of a VIP and a port is a row: a service with two VIPs and the ports 8000-8010 has 22. What doesn't
    fit can't be written; `apply` would fail half-way.

    The way out: a larger capacity, fewer ports, or a `nodeSelector` that spreads the services over balancers.
    """
    for node, load, limit in _service_loads(draft):
        if load.rows > limit:
            pairs = f"{_counted(load.rows, 'pair')} of VIP and port"
            message = f"{title(node)} would hold {pairs}, its capacity is {limit:,}"
            yield Finding(node.span, ("spec", "capacity", "services"), message, _SPREAD)


@rule("capacity-endpoints")
def _capacity_endpoints(draft: Draft) -> Iterator[Finding]:
    """The pools that a balancer needs have more endpoints than its declared `capacity.endpoints`.

    Each address with a port is a row; an endpoint in several pools is one row. What doesn't fit can't be written;
    `apply` would fail half-way.

    The way out: a larger capacity, or a `nodeSelector` that spreads the services over balancers.
    """
    for node, load, limit in _endpoint_loads(draft):
        if load.rows > limit:
            message = f"{title(node)} would hold {_counted(load.rows, 'endpoint')}, its capacity is {limit:,}"
            yield Finding(node.span, ("spec", "capacity", "endpoints"), message, _SPREAD)


@rule("capacity-peak", Severity.WARNING)
def _capacity_peak(draft: Draft) -> Iterator[Finding]:
    """All that is declared fits into the `capacity` of a balancer, but there is no room to exchange the largest
    pool, or service.

    While something changes, old and new stand side by side: an endpoint that was removed keeps its row as long as
    connections may point to it, and a service that moves to another VIP has both for a moment. The peak is counted
    as all that is declared, and the largest pool (service) once more. Beyond the capacity such a change fails.

    The way out: a larger capacity, or smaller steps: a part of the pool at a time.
    """
    for key, loads in (("services", _service_loads(draft)), ("endpoints", _endpoint_loads(draft))):
        for node, load, limit in loads:
            if load.rows <= limit < load.peak:
                noun = "pairs of VIP and port" if key == "services" else "endpoints"
                message = (
                    f"{title(node)} has room for {limit - load.rows:,} {noun} beyond the {load.rows:,} declared: "
                    f"to exchange {title(load.largest)} at once takes {load.largest_rows:,}"
                )
                hint = f"raise the capacity to {load.peak:,}, or change it in parts"
                yield Finding(node.span, ("spec", "capacity", key), message, hint)


@rule("capacity-flows")
def _capacity_flows(draft: Draft) -> Iterator[Finding]:
    """The `expectedFlows` of a balancer exceed its `capacity.flows`.

    The connections beyond the capacity push others out of the table, and those break.

    The way out: raise the one, or lower the other.
    """
    for node in draft.balancers:
        if node.expected_flows and node.capacity.flows and node.expected_flows > node.capacity.flows:
            message = f"{node.expected_flows:,} connections are expected, but the capacity is {node.capacity.flows:,}"
            yield Finding(node.span, ("spec", "expectedFlows"), message, "raise capacity.flows")


@rule("many-loopback-addresses", Severity.WARNING)
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
    """What the services of balancers with a declared capacity take; each VIP and port is a row."""
    if not any(node.capacity.services for node in draft.balancers):
        return
    groups: dict[Labels, tuple[Service, int]] = {}  # the largest service of a selector, and the rows of all
    for service in draft.services:
        largest, rows = groups.get(service.node_selector, (service, 0))
        largest = max(largest, service, key=_service_rows)
        groups[service.node_selector] = (largest, rows + _service_rows(service))
    loads: dict[int, tuple[Service, int]] = {}
    for largest, rows in groups.values():
        for node in draft.carriers(largest):
            other, sum_of_rows = loads.get(id(node), (largest, 0))
            loads[id(node)] = (max(other, largest, key=_service_rows), sum_of_rows + rows)
    for node in draft.balancers:
        if node.capacity.services and id(node) in loads:
            largest, rows = loads[id(node)]
            yield node, _Load(rows, largest, _service_rows(largest)), node.capacity.services


def _service_rows(service: Service) -> int:
    return len(service.vips) * (len(service.ports) or 1)


def _endpoint_loads(draft: Draft) -> Iterator[tuple[Node, _Load, int]]:
    """What the pools of balancers with a declared capacity take; an address and port is a row, however often it
    occurs."""
    if not any(node.capacity.endpoints for node in draft.balancers):
        return
    names: dict[Labels, set[str]] = {}
    selectors: dict[int, set[Labels]] = {}
    for service in draft.services:
        if service.pool in draft.pool:
            if service.node_selector not in names:
                for node in draft.carriers(service):
                    selectors.setdefault(id(node), set()).add(service.node_selector)
            names.setdefault(service.node_selector, set()).add(service.pool)
    carried: dict[frozenset[Labels], frozenset[str]] = {}
    counted: dict[frozenset[str], _Load] = {}  # many nodes carry the same pools, if for different services
    for node in draft.balancers:
        own, limit = frozenset(selectors.get(id(node), ())), node.capacity.endpoints
        if own and limit:
            if own not in carried:
                carried[own] = frozenset().union(*(names[selector] for selector in own))
            if carried[own] not in counted:
                counted[carried[own]] = _endpoint_load(draft, [draft.pool[name] for name in sorted(carried[own])])
            yield node, counted[carried[own]], limit


def _endpoint_load(draft: Draft, pools: Sequence[Pool]) -> _Load:
    largest = max(pools, key=lambda pool: len(pool.endpoints))
    rows: set[tuple[int, int | None]] = set()
    for pool in pools:
        rows.update(zip(draft.numbers[id(pool)], (endpoint.port for endpoint in pool.endpoints), strict=True))
    return _Load(len(rows), largest, len(largest.endpoints))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


_SPREAD = "raise it, or spread the services over balancers (nodeSelector)"
