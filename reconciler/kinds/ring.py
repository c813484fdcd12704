# SPDX-License-Identifier: Apache-2.0
"""Rings: which endpoint a new connection of a pool goes to, slot by slot.

The kernel knows rings and endpoints by number only; their names are in `ring_names`, and the numbers of the
endpoints in the endpoint rows. So a ring reads back with the names it was written with.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel.layout import RING_NAMES, RING_TURNS
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.endpoint import EndpointRow, numbered_rows, row_of
from reconciler.kinds.program import PROGRAM
from reconciler.model import Algorithm, EndpointState, Pool
from reconciler.resource import Change, Key, Live, Reading, Resource, Span
from reconciler.ring import Slots, hash_ring, shares, turns
from reconciler.view import NodeView

_INDEX = struct.Struct(RING_NAMES.value)


@dataclass(frozen=True, slots=True)
class Ring(Resource):
    """`members` are ids of endpoints, sorted; `slots` are unsigned 32-bit numbers of members, little endian."""

    kind: ClassVar[str] = "ring"

    name: str
    members: tuple[str, ...]
    slots: bytes

    @property
    def id(self) -> str:
        return self.name

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM, *(Key(EndpointRow.kind, member) for member in self.members))

    @property
    def array(self) -> Slots:
        """The slots as an array of member numbers."""
        return np.frombuffer(self.slots, "<u4")

    @property
    def shares(self) -> dict[str, float]:
        """The share of new connections that each member gets, 0 to 1."""
        return dict(zip(self.members, shares(self.array, len(self.members)).tolist(), strict=True))

    def describe(self) -> dict[str, str]:
        return {"slots": f"{len(self.slots) // 4:,}"} | {m: f"{s:.1%}" for m, s in self.shares.items()}

    def effect(self, after: Resource | None, live: Live) -> str:
        if not isinstance(after, Ring):
            return ""
        if not after.members:
            return "no new connection is accepted: the pool has no active endpoint"
        if after.name.endswith(Algorithm.SOURCE_HASH.value) and len(after.slots) == len(self.slots):
            before, now = np.array(self.members)[self.array], np.array(after.members)[after.array]
            return f"{np.mean(before != now):.1%} of clients move with their next connection"
        former = self.shares
        moved = sum(max(0.0, share - former.get(member, 0.0)) for member, share in after.shares.items())
        return f"{moved:.1%} of new connections move; open connections stay"


def ring_name(pool: str, algorithm: Algorithm) -> str:
    return f"{pool}/{algorithm.value}"


def build(pool: Pool, algorithm: Algorithm) -> Ring:
    """The ring of a pool: active endpoints of a weight above 0, in the order of their ids."""
    weights = {
        row_of(e).id: e.weight for e in pool.endpoints if e.state is EndpointState.ACTIVE and e.weight
    }
    members = tuple(sorted(weights))
    ordered = [weights[member] for member in members]
    slots = turns(ordered) if algorithm is Algorithm.ROUND_ROBIN else hash_ring(members, ordered)
    return Ring(ring_name(pool.name, algorithm), members, slots.astype("<u4").tobytes())


class RingKind(Kind):
    phase = 40
    resource = Ring

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        found: dict[str, tuple[Ring, Span]] = {}
        for service in view.services:
            name = ring_name(service.pool, service.algorithm)
            if name not in found:
                pool = view.pools[service.pool]
                found[name] = (build(pool, service.algorithm), pool.span)
        return found.values()

    def read(self, wanted: Collection[Key]) -> Reading:
        names = {r.number: r.row.id for r in numbered_rows(self.kernel)}
        return Reading(
            tuple(_decode(name, self.kernel.read_ring(i), names) for name, i in ring_indexes(self.kernel).items())
        )

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        numbers = {r.row.id: r.number for r in numbered_rows(self.kernel)}
        indexes = ring_indexes(self.kernel)
        free = iter(sorted(set(range(1, RING_NAMES.capacity)) - set(indexes.values())))
        outcomes: list[Outcome] = []
        for change in changes:
            try:
                match change.after:
                    case Ring() as ring:
                        index = indexes.get(ring.name)
                        if index is None:
                            index = next(free, None)
                        if index is None:
                            full = f"all {RING_NAMES.capacity - 1:,} rings are in use"
                            raise KernelError(f"no room for {ring.key}: {full}")
                        self._put(index, ring, numbers, known=ring.name in indexes)
                    case None if change.key.id in indexes:
                        self._remove(indexes[change.key.id], change.key.id)
                outcomes.append(None)
            except KernelError as error:
                outcomes.append(error)
        return outcomes

    def _put(self, index: int, ring: Ring, numbers: Mapping[str, int], known: bool) -> None:
        missing = [member for member in ring.members if member not in numbers]
        if missing:
            raise KernelError(f"{ring.key} needs endpoints that are not there: {', '.join(missing)}")
        by_member = np.array([numbers[member] for member in ring.members], np.uint32)
        slots = by_member[ring.array] if ring.members else np.zeros(0, np.uint32)
        content = np.concatenate((np.array([slots.size], np.uint32), slots))
        if not known:
            # The ring before its name: a name without a ring would read back as an empty ring.
            self.kernel.delete(RING_TURNS.name, [_INDEX.pack(index)])
        held = self.kernel.read_ring(index)
        if held is not None and len(held) == content.nbytes:
            live = np.frombuffer(held, np.uint32)
            differs = np.flatnonzero(live != content)
            if differs.size:
                self.kernel.patch_ring(index, dict(zip(differs.tolist(), content[differs].tolist(), strict=True)))
        else:
            self.kernel.replace_ring(index, content.tobytes())
        if not known:
            _raise(self.kernel.update(RING_NAMES.name, [(_name(ring.name), _INDEX.pack(index))]))

    def _remove(self, index: int, name: str) -> None:
        # The name last: a ring whose removal was cut off is still there to be removed.
        self.kernel.remove_ring(index)
        _raise(self.kernel.delete(RING_NAMES.name, [_name(name)]))


def ring_indexes(kernel: Kernel) -> dict[str, int]:
    """The number of each ring, by name."""
    rows = kernel.dump(RING_NAMES.name)
    return {key.rstrip(b"\0").decode(): _INDEX.unpack(value)[0] for key, value in rows}


def _decode(name: str, content: bytes | None, endpoint_names: Mapping[int, str]) -> Ring:
    held = np.frombuffer(content or bytes(4), np.uint32)
    numbers, inverse = np.unique(held[1 : 1 + int(held[0])], return_inverse=True)
    names = np.array([endpoint_names.get(int(n), f"lost endpoint {n}") for n in numbers], object)
    order = np.argsort(names) if names.size else np.zeros(0, np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return Ring(name, tuple(names[order]), rank[inverse].astype("<u4").tobytes())


def _name(name: str) -> bytes:
    return name.encode().ljust(RING_NAMES.key_size, b"\0")


def _raise(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome:
            raise outcome


KIND = RingKind
