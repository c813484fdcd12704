# SPDX-License-Identifier: Apache-2.0
"""Services and endpoints with all that is known of them: rows, rings, counters and flows joined, in the order of their
addresses, IPv4 before IPv6."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import NumberedRow, numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.ring import Ring, pool_of
from reconciler.kinds.rings import RingKind
from reconciler.kinds.service import indexed_rows
from reconciler.kinds.service_row import ServiceRow
from reconciler.model import Address
from reconciler.readings.counters import Traffic, endpoint_traffic, service_traffic
from reconciler.readings.flows import HALF_OPEN, OPEN, flows
from reconciler.resource import Context, Key, Live

DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Connections:
    """How many are open, and how many the client alone has opened; None where nobody counts them."""

    open: int | None = None
    half_open: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """`endpoints` is how many its ring has."""

    row: ServiceRow
    endpoints: int
    connections: Connections
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`state`: usable, draining, disabled, retired, or what is wrong with its row. `shares`: of new connections, 0 to
    1, by the ring. `pools` that are known to have it, and the ids of the services that give them connections."""

    numbered: NumberedRow
    state: str
    shares: Mapping[str, float]
    pools: tuple[str, ...]
    services: tuple[str, ...]
    connections: Connections
    traffic: Traffic


def services(kernel: Kernel) -> list[Service]:
    """Every service row of the node."""
    rings = {ring.id: ring for ring in RingKind(kernel).read({}).resources if isinstance(ring, Ring)}
    indexed = indexed_rows(kernel)
    traffic = service_traffic(kernel, indexed)
    counts = Counter[tuple[str, str]]()
    for (service, _, state), count in flows(kernel).counts().items():
        counts[service, state] += count
    return [
        Service(
            row, rings[row.ring].member_count if row.ring in rings else 0,
            _connections(counts, row.id, is_counted=row.remembers), traffic[row.id],
        )
        for row in sorted((each.row for each in indexed), key=lambda row: (_order(row.vip), row.port))
    ]  # fmt: skip


def endpoints(kernel: Kernel, listed: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[Endpoint]:
    """Every endpoint row of the node. One in no ring gets no new connections: it is drained, or has weight 0; then its
    pools are those that have it `listed`, by its id."""
    rings = [ring for ring in RingKind(kernel).read({}).resources if isinstance(ring, Ring)]
    of_services = sorted((each.row for each in indexed_rows(kernel)), key=lambda row: (_order(row.vip), row.port))
    held = (*rings, *of_services)
    context = Context(Live({resource.key: resource for resource in held}))
    shares: dict[str, dict[str, float]] = {}
    for ring in rings:
        for member, share in ring.shares.items():
            shares.setdefault(member, {})[ring.name] = share
    users: dict[str, list[str]] = {}
    for row in of_services:
        users.setdefault(pool_of(row.ring), []).append(row.id)
    pools = {id: tuple(sorted({*map(pool_of, shares.get(id, ())), *listed.get(id, ())})) for id in {*shares, *listed}}
    rows = sorted(numbered_rows(kernel), key=lambda n: (_order(n.row.address), n.row.port))
    traffic = endpoint_traffic(kernel, rows)
    counts = Counter[tuple[str, str]]()
    for (_, endpoint, state), count in flows(kernel).counts().items():
        counts[endpoint, state] += count
    return [
        Endpoint(
            numbered, DRAINING if numbered.state == "usable" and id not in shares else numbered.state,
            shares.get(id, {}), pools.get(id, ()),
            tuple(dict.fromkeys(user for pool in pools.get(id, ()) for user in users.get(pool, ()))),
            _connections(counts, id, is_counted=context.remembers(Key(EndpointRow.kind, id))),
            traffic[id],
        )
        for id, numbered in ((numbered.row.id, numbered) for numbered in rows)
    ]  # fmt: skip


def _connections(counts: Mapping[tuple[str, str], int], of: str, *, is_counted: bool) -> Connections:
    return Connections(counts[of, OPEN], counts[of, HALF_OPEN]) if is_counted else Connections()


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)
