# SPDX-License-Identifier: Apache-2.0
"""Endpoints that people want to drain: who is meant, whether enough would be left, and what is still open."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path

from reconciler import private
from reconciler.errors import LbctlError, UsageError
from reconciler.health import roster
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import numbered_rows
from reconciler.kinds.ring import Ring, pool_of
from reconciler.kinds.rings import RingKind
from reconciler.kinds.service import ServiceKind
from reconciler.kinds.service_row import ServiceRow
from reconciler.model import Address, place_of
from reconciler.readings.counters import endpoint_traffic
from reconciler.readings.flows import open_counts
from reconciler.readings.health import health
from reconciler.safe import SHOWN
from reconciler.wish import drains
from reconciler.wish.drains import Drain

NODES = "nodes.json"
"""The addresses of endpoints that are Nodes, by name; the agent writes it."""


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint that somebody named; `pool` None: in all pools, `port` None: whichever it has."""

    address: Address
    port: int | None
    pool: str | None

    def __str__(self) -> str:
        place = place_of(self.address, self.port or 0)
        return f"{place} of pool {self.pool}" if self.pool else place

    def is_about(self, pool: str, endpoint: str) -> bool:
        """Whether an endpoint of a pool is meant, by its id."""
        address, port = parsed(endpoint) or (None, None)
        return address == self.address and self.pool in (None, pool) and self.port in (None, port)


def parsed(text: str) -> tuple[Address, int | None] | None:
    """`10.2.0.11`, `10.2.0.11:80`, `2001:db8::1`, `[2001:db8::1]:80`; None if it is none of these."""
    with suppress(ValueError):
        return ip_address(text), None
    host, colon, port = text.rpartition(":")
    if colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16:
        with suppress(ValueError):
            return ip_address(host.removeprefix("[").removesuffix("]")), int(port)
    return None


def chosen(kernel: Kernel, instance_dir: Path, what: str, drained: Sequence[Drain] = ()) -> list[Place]:
    """The endpoints that `what` names: ENDPOINT, POOL/ENDPOINT or NODE. Raises UsageError if this node has no such
    endpoint, and none of `drained` is about it: who has left the node meanwhile can still be meant."""
    ids = [row.row.id for row in numbered_rows(kernel) if not row.is_retired]
    ids += [place_of(drain.address, drain.port or 0) for drain in drained]
    pool, slash, rest = what.rpartition("/")
    found = parsed(rest)
    if found is not None:
        address, port = found
        place = Place(address, port, pool if slash else None)
        if not any(place.is_about(pool, id) for id in ids):
            close = get_close_matches(rest, ids, n=1)
            hint = f"did you mean {close[0]}?" if close else "`lbctl get endpoints` shows those that there are"
            raise UsageError(f"this node has no endpoint {rest}", hint=hint)
        pools = set(rings_of(kernel)) | roster.read(instance_dir / roster.FILE).keys()
        pools |= {drain.pool for drain in drained if drain.pool}
        if slash and pool not in pools:
            raise UsageError(f"this node has no pool {pool!r}", hint=f"there are: {', '.join(sorted(pools)[:SHOWN])}")
        return [place]
    nodes = _nodes(instance_dir)
    addresses = [ip_address(address) for address in nodes.get(what, ())]
    own = [address for address in addresses if any(Place(address, None, None).is_about("", id) for id in ids)]
    if not own:
        close = get_close_matches(what, nodes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "name an endpoint by its address, as `lbctl get endpoints`"
        raise UsageError(f"{what!r} is no endpoint, and no Node that is one of this node's endpoints", hint=hint)
    return [Place(address, None, None) for address in own]


def rings_of(kernel: Kernel) -> dict[str, set[str]]:
    """The endpoints that get new connections, by pool."""
    found: dict[str, set[str]] = {}
    for ring in RingKind(kernel).read({}).resources:
        if isinstance(ring, Ring):
            found.setdefault(pool_of(ring.name), set()).update(ring.members)
    return found


def check_room(kernel: Kernel, instance_dir: Path, places: Sequence[Place]) -> None:
    """Raises LbctlError if fewer than `minHealthy` endpoints of a pool would be left, or none. Where nobody is
    healthy, dead ones may get connections, too: they don't count, and to drain them takes nothing away."""
    listed = roster.read(instance_dir / roster.FILE)
    dead = {(each.pool, each.endpoint) for each in health(instance_dir) if each.state == "down"}
    for pool, members in rings_of(kernel).items():
        well = {member for member in members if (pool, member) not in dead} or members
        left = [member for member in well if not any(place.is_about(pool, member) for place in places)]
        least = max(1, listed[pool].min_healthy if pool in listed else 1)
        if len(left) < len(well) and len(left) < least:
            raise LbctlError(
                f"pool {pool} would be left with {len(left)} of {len(well)} endpoints, and needs {least}",
                hint="wait until others are back, or say --force",
            )


def is_out(kernel: Kernel, places: Collection[Place]) -> bool:
    """Whether none of them gets new connections any more."""
    return not any(
        place.is_about(pool, member) for pool, members in rings_of(kernel).items() for member in members
        for place in places
    )  # fmt: skip


def pools_with(kernel: Kernel, instance_dir: Path, places: Sequence[Place]) -> frozenset[str] | None:
    """The pools whose connections these endpoints may have, before they are drained; None: nothing tells, as somebody
    has drained one of them before. Raises FilesError."""
    found: set[str] = set()
    members = {pool: set(ids) for pool, ids in rings_of(kernel).items()}
    for pool, listed in roster.read(instance_dir / roster.FILE).items():
        members.setdefault(pool, set()).update(place_of(ip_address(e.address), e.port or 0) for e in listed.endpoints)
    before = drains.read(instance_dir / drains.FILE)
    for place in places:
        own = {pool for pool, ids in members.items() if any(place.is_about(pool, id) for id in ids)}
        if place.pool is None and (not own or any(drain.address == place.address for drain in before)):
            return None
        found |= own | ({place.pool} if place.pool else set())
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Left:
    """What is still open: connections where somebody counts them, None where nobody does; and how many packets have
    come for these endpoints so far. `is_counted`: all connections that there may be are counted."""

    open: int | None
    packets: int
    is_counted: bool


def left(kernel: Kernel, places: Collection[Place], pools: Collection[str] | None) -> Left:
    """`pools` whose connections they may have; None: any of the node's. Raises KernelError."""
    rows = [row for row in ServiceKind(kernel).read({}).resources if isinstance(row, ServiceRow)]
    served = {row.id: pool_of(row.ring) for row in rows}
    remembering = {row.remembers for row in rows if pools is None or served[row.id] in pools}
    packets = sum(
        traffic.request_packets for id, traffic in endpoint_traffic(kernel).items()
        if any(place.is_about(place.pool or "", id) for place in places)
    )  # fmt: skip
    if True not in remembering:
        return Left(None, packets, is_counted=False)
    open_ = sum(
        count for (service, endpoint), count in open_counts(kernel).items()
        if any(place.is_about(served.get(service, ""), endpoint) for place in places)
    )  # fmt: skip
    return Left(open_, packets, is_counted=False not in remembering)


def write_nodes(instance_dir: Path, nodes: Mapping[str, Sequence[Address]]) -> None:
    """Raises FilesError."""
    content = json.dumps({name: [str(address) for address in of] for name, of in sorted(nodes.items())}).encode()
    if private.read(instance_dir / NODES) != content:
        private.write(instance_dir / NODES, content)


def _nodes(instance_dir: Path) -> Mapping[str, Sequence[str]]:
    try:
        found = json.loads(private.read(instance_dir / NODES) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
