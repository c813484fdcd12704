# SPDX-License-Identifier: Apache-2.0
"""Rings: which endpoint a new connection of a pool goes to, slot by slot.

The kernel knows rings and endpoints by number only. The map `ring_names` has the names of rings, the endpoint
rows have those of endpoints. So a ring reads back with the names it was written with.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, pairwise
from math import gcd
from typing import ClassVar

import numpy as np

from reconciler.dataplane.layout import RING_NAMES, RING_TURNS
from reconciler.dataplane.ring import Slots, hash_ring, shares, turns
from reconciler.dataplane.rows import Number, RingNote
from reconciler.dataplane.slots import MAX_SLOTS, lost, moved, reduced
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.endpoint import NOBODY, EndpointRow, ids_of, numbers_of, row_named, rows_of
from reconciler.kinds.program import PROGRAM
from reconciler.limits import default_size
from reconciler.model import Algorithm, DeadEndpoint, EndpointState, Pool
from reconciler.resource import Cause, Causes, Change, Context, Key, Reading, Reason, Resource
from reconciler.ring_names import RingNames, packed
from reconciler.ring_store import Rings, indexes_in_use, remove_rings, write_rings
from reconciler.safe import some
from reconciler.view import Facts, Use


@dataclass(frozen=True, slots=True, eq=False)
class Ring(Resource):
    """`members` are ids of endpoints, sorted; `slots` are unsigned 32-bit numbers of members, little endian.

    Rings are equal if their slots are, however they came about.
    """

    kind: ClassVar[str] = "ring"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program", "endpoint"))

    name: str
    members: tuple[str, ...]
    slots: bytes

    @property
    def dead(self) -> tuple[EndpointRow, ...]:
        """Endpoints of the pool that checks found dead: datagrams go past them at once. Nothing is compared by it."""
        return ()

    def __post_init__(self) -> None:
        if self.array.size and self.array.max() >= len(self.members):
            raise ValueError(f"ring {self.name} has slots of more members than the {len(self.members)} it has")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Ring):
            return NotImplemented
        return self.name == other.name and self.is_alike(other)

    def __hash__(self) -> int:
        return hash((self.name, self.members))

    def is_alike(self, other: Ring) -> bool:
        """Whether both have the same slots, whatever their names."""
        return self.members == other.members and self.slots == other.slots

    @property
    def source(self) -> object:
        """What the slots are made from."""
        return self.slots

    def digest(self, numbers: bytes) -> bytes:
        """Of what the slots are made from, and of the members' numbers, which the kernel's slots hold instead."""
        made_from = repr((self.members, self.source)).encode()
        return blake2b(numbers + made_from, digest_size=16).digest()

    @property
    def rows(self) -> tuple[EndpointRow, ...]:
        """The rows of the members, whatever their state; that of nobody for a member that can have none."""
        return tuple(row_named(member) or NOBODY for member in self.members)

    @property
    def id(self) -> str:
        return self.name

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM, *(Key(EndpointRow.kind, member) for member in self.members))

    @property
    def flaw(self) -> str:
        if name_algorithm(self.name) is None or len(os.fsencode(self.name)) >= RING_NAMES.key_size:
            return f"{self.name!r} is no name of a ring"
        is_whole = np.unique(self.array).size == len(self.members) == len(set(self.members))
        return "" if is_whole and self.array.size <= MAX_SLOTS else f"{self.array.size:,} slots of {self.members}"

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

    def caused(self, before: Resource, causes: Causes) -> Cause | None:
        found = causes.get(self.name.rpartition("/")[0])
        if not found or not isinstance(before, Ring):
            return None
        # Whoever came or went must have a cause; if nobody did, shares have moved, and some cause is why.
        differing = set(self.members) ^ set(before.members)
        named = [found[member] for member in sorted(differing or found) if member in found]
        if len(named) < len(differing):
            return None
        reason = Reason.DRAIN if all(cause.reason is Reason.DRAIN for cause in named) else Reason.HEALTH
        return Cause(reason, some([cause.text for cause in named], "; "))

    def effect(self, after: Resource | None, context: Context) -> str:
        if not isinstance(after, Ring):
            return ""
        # If an endpoint is disabled, the change of its own row says which connections end.
        stay = "" if any(_is_disabled(member, context) for member in self.members) else "; open connections stay"
        if not after.members:
            return f"no new connection is accepted: the pool has no active endpoint{stay}"
        if not self.members:
            return "new connections are accepted again"
        forgetful = any(not user.remembers for user in context.users(self.key))
        broken = self.lost(after) if forgetful else 0.0
        if broken:
            stay = f"; {broken:.1%} of open ones break, as the size changes"
        elif forgetful:
            stay += ", and their slots are in transition until nobody uses the former endpoints"
        elif self._is_comparable(after) and self.algorithm is Algorithm.SOURCE_HASH:
            return f"{self.moved(after):.1%} of clients move with their next connection"
        return f"{self.moved(after):.1%} of new connections move{stay}"

    def moved(self, after: Ring) -> float:
        """The share of new connections that go to another endpoint once `after` replaces this ring, 0 to 1."""
        if self._is_comparable(after):
            return moved(*_as_names(self, after))
        former = self.shares
        return sum(max(0.0, share - former.get(member, 0.0)) for member, share in after.shares.items())

    @property
    def algorithm(self) -> Algorithm | None:
        return name_algorithm(self.name)

    def lost(self, after: Ring) -> float:
        """The share of open connections without a flow entry that break once `after` replaces this ring, 0 to 1."""
        return lost(*_as_names(self, after)) if self._is_comparable(after) else 0.0

    def _is_comparable(self, after: Ring) -> bool:
        """Whether both rings have endpoints and choose them by the same hash."""
        hashed = self.algorithm is after.algorithm and self.algorithm is not Algorithm.ROUND_ROBIN
        return hashed and bool(self.members and after.members)


class UnbuiltRing(Ring):
    """A ring that is known by what it is made from: weights of its members, and the count of slots that was asked for,
    or 0. Each member has a slot. Its slots are built when somebody asks for them, and not kept: those of ten thousand
    rings would take more memory than all the rest."""

    __slots__ = ("_dead", "_rows", "_size", "_weights")
    _dead: tuple[EndpointRow, ...]
    _rows: tuple[EndpointRow, ...]
    _size: int
    _weights: tuple[int, ...]

    def __init__(
        self, name: str, members: tuple[str, ...], rows: tuple[EndpointRow, ...], weights: tuple[int, ...], size: int,
        dead: tuple[EndpointRow, ...] = (),
    ) -> None:  # fmt: skip
        for field, value in (("name", name), ("members", members), ("_rows", rows), ("_weights", weights),
                             ("_size", size), ("_dead", dead)):  # fmt: skip
            object.__setattr__(self, field, value)

    @property
    def dead(self) -> tuple[EndpointRow, ...]:
        return self._dead

    @property
    def rows(self) -> tuple[EndpointRow, ...]:
        return self._rows

    @property
    def slots(self) -> bytes:
        return _built(self.algorithm, self.members, self._weights, self._size)

    @property
    def source(self) -> tuple[tuple[int, ...], int]:
        divisor = gcd(*self._weights)
        return tuple(weight // divisor for weight in self._weights), self._size

    def is_alike(self, other: Ring) -> bool:
        if isinstance(other, UnbuiltRing) and (self.algorithm, self.source) == (other.algorithm, other.source):
            return self.members == other.members
        return Ring.is_alike(self, other)

    def stamps(self) -> Iterator[str]:
        yield repr((self.members, self.source))
        yield repr(Ring(self.name, self.members, self.slots))  # a saved plan has the slots themselves


def _is_disabled(member: str, context: Context) -> bool:
    row = context.desired.get(Key(EndpointRow.kind, member))
    return isinstance(row, EndpointRow) and row.disabled


def _as_names(*rings: Ring) -> list[Slots]:
    """The slots of each ring; a number stands for the same member in all of them."""
    numbers = {member: number for number, member in enumerate(dict.fromkeys(m for r in rings for m in r.members))}
    return [np.array([numbers[member] for member in ring.members], np.uint32)[ring.array] for ring in rings]


def ring_name(pool: str, algorithm: Algorithm) -> str:
    return f"{pool}/{algorithm.value}"


def name_algorithm(name: str) -> Algorithm | None:
    """The algorithm in the name of a ring; None if no manifest could lead to such a name."""
    word = name.rpartition("/")[2]
    return Algorithm(word) if word in list(Algorithm) else None


def build(pool: Pool, algorithm: Algorithm) -> Ring:
    """The ring of a pool: active endpoints of a weight above 0, in the order of their ids."""
    of = rows_of(pool)
    active = {
        row.key.id: (row, endpoint.weight) for endpoint, row in zip(pool.endpoints, of, strict=True)
        if endpoint.state is EndpointState.ACTIVE and endpoint.weight
    }  # fmt: skip
    members = tuple(sorted(active))
    rows, weights = tuple([active[member][0] for member in members]), tuple([active[member][1] for member in members])
    name, size = ring_name(pool.name, algorithm), pool.ring_size or 0
    fewest = min(weights, default=0) * (size or default_size(len(members)))
    if members and (algorithm is Algorithm.ROUND_ROBIN or fewest >= sum(weights)):
        dead = tuple([row for e, row in zip(pool.endpoints, of, strict=True) if isinstance(e, DeadEndpoint)])
        return UnbuiltRing(name, members, rows, weights, size, dead)
    # A member whose share is less than a slot may hold none. Then it is left out, as the kernel can't show it.
    held, ranks = np.unique(_slots_of(algorithm, members, weights, size), return_inverse=True)
    return Ring(name, tuple(members[i] for i in held), ranks.astype("<u4").tobytes())


@lru_cache(maxsize=256)
def _built(algorithm: Algorithm | None, members: tuple[str, ...], weights: tuple[int, ...], size: int) -> bytes:
    """The slots of a ring, as it has them. Who looks at a ring asks several times; nodes have rings in common."""
    return _slots_of(algorithm, members, weights, size).astype("<u4").tobytes()


def _slots_of(algorithm: Algorithm | None, members: tuple[str, ...], weights: tuple[int, ...], size: int) -> Slots:
    """A hash ring is reduced to its smallest equal form: the kernel may hold a larger one. In turns, the order
    counts."""
    if algorithm is Algorithm.ROUND_ROBIN:
        return turns(weights)
    return reduced(hash_ring(members, weights, size))


class RingKind(Kind):
    phase = 40
    resource = Ring
    is_in_maps = True

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        return ((build(pool, algorithm), pool.span) for algorithm in use.algorithms)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        names, opened = RingNames(self.kernel), Rings(self.kernel)
        right = self._as_noted([ring for ring in wanted.values() if isinstance(ring, Ring)], names, opened)
        asked = set(names) if only is None else {key.id for key in only if key.id in names}
        asked.difference_update(ring.name for ring in right)
        own = {name: number for name in asked if (number := names.number(name)) is not None}
        others = {name: _endpoints(opened, number) for name, number in own.items()}
        seen = [np.unique(endpoints) for endpoints in others.values() if not isinstance(endpoints, str)]
        ids = ids_of(self.kernel, np.unique(np.concatenate(seen)).tolist()) if seen else {}
        rings = (_decode(name, endpoints, ids) for name, endpoints in others.items())
        damaged = (_damaged(name, "no ring of its own") for name in sorted(asked - own.keys()))
        return Reading((*right, *rings, *damaged))

    def _as_noted(self, wanted: Sequence[Ring], names: RingNames, opened: Rings) -> list[Ring]:
        """The wanted rings that the kernel has: the slots that were written, and they were made of the same."""
        noted = zip(wanted, names.notes(ring.name for ring in wanted), strict=True)
        known = [(ring, note) for ring, note in noted if note and ring.members]
        numbers = _numbers(self.kernel, [ring for ring, _ in known])
        same = [pair for pair, own in zip(known, numbers, strict=True) if pair[1].digest == pair[0].digest(own)]
        found = opened.checksums(note.number for _, note in same)
        return [ring for (ring, note), checksum in zip(same, found, strict=True) if note.checksum == checksum]

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        names = RingNames(self.kernel)
        puts = {change.key: change.after for change in changes if isinstance(change.after, Ring)}
        numbers = dict(zip(puts, _numbers(self.kernel, list(puts.values())), strict=True))
        indexes = {key: names.number(key.id) for key in puts}
        free = _free(self.kernel, names) if None in indexes.values() else iter(())
        outcomes: dict[Key, Outcome] = {}
        wanted: dict[Key, tuple[int, Slots]] = {}
        for key, ring in puts.items():
            try:
                index = indexes[key] or next(free, None)
                if index is None:
                    raise KernelError(f"no room for {key}: all {RING_NAMES.capacity - 1:,} rings are in use")
                wanted[key] = index, _encode(ring, numbers[key])
            except KernelError as error:
                outcomes[key] = error
        # Nobody uses a ring whose name was never written: it is not `known`, and its remains are overwritten.
        known = {index for index in indexes.values() if index}
        dead = _dead(self.kernel, {index: puts[key] for key, (index, _) in wanted.items()})
        written = write_rings(self.kernel, dict(wanted.values()), known, dead)
        outcomes |= {key: written[index] for key, (index, _) in wanted.items()}
        # The ring before its name: a name without a ring would read back as an empty ring.
        done = [key for key in wanted if not outcomes[key]]
        new = [key for key in done if not indexes[key]]
        self.kernel.delete(RING_TURNS.name, [RING_TURNS.key.pack(Number(wanted[key][0])) for key in new])
        opened = Rings(self.kernel)
        sums = opened.checksums(wanted[key][0] for key in done)
        notes = [
            (packed(key.id), _note(wanted[key][0], checksum, puts[key].digest(numbers[key])))
            for key, checksum in zip(done, sums, strict=True)
        ]
        noted = dict(zip(done, self.kernel.update(RING_NAMES.name, notes), strict=True))
        # A ring that had its name before is written as it should be; without a note, its slots are compared.
        outcomes |= {key: noted[key] for key in new}
        # The name goes last: if the removal is cut off, the ring still reads as present and is removed later.
        gone = [change.key for change in changes if change.after is None and change.key.id in names]
        own = {key: number for key in gone if (number := names.number(key.id)) is not None}
        outcomes |= zip(own, remove_rings(self.kernel, list(own.values())), strict=True)
        gone = [key for key in gone if not outcomes.get(key)]
        outcomes |= zip(gone, self.kernel.delete(RING_NAMES.name, [packed(key.id) for key in gone]), strict=True)
        return [outcomes.get(change.key) for change in changes]


def _free(kernel: Kernel, names: RingNames) -> Iterator[int]:
    """Numbers for new rings. Rings whose names are lost are not free: services may use them."""
    return iter(sorted(set(range(1, RING_NAMES.capacity)) - names.numbers - indexes_in_use(kernel)))


def _numbers(kernel: Kernel, rings: Sequence[Ring]) -> list[bytes]:
    """The numbers of the members of each ring, 0 for one without a row, as an array's bytes."""
    found = numbers_of(kernel, [row for ring in rings for row in ring.rows]).tobytes()
    ends = accumulate((4 * len(ring.members) for ring in rings), initial=0)
    return [found[start:end] for start, end in pairwise(ends)]


def _dead(kernel: Kernel, rings: Mapping[int, Ring]) -> dict[int, Slots]:
    """The numbers of the dead endpoints of rings that have some."""
    dead = {index: ring.dead for index, ring in rings.items() if ring.dead}
    found = numbers_of(kernel, [row for rows in dead.values() for row in rows])
    ends = accumulate(map(len, dead.values()), initial=0)
    return {index: found[start:end] for index, (start, end) in zip(dead, pairwise(ends), strict=True)}


def _encode(ring: Ring, numbers: bytes) -> Slots:
    """The number of an endpoint for each slot."""
    by_member = np.frombuffer(numbers, np.uint32)
    missing = [member for member, number in zip(ring.members, by_member, strict=True) if not number]
    if missing:
        raise KernelError(f"{ring.key} needs endpoints that are not there: {', '.join(missing)}")
    return by_member[ring.array] if ring.members else np.zeros(0, np.uint32)


def _note(index: int, checksum: int | None, digest: bytes) -> bytes:
    """What is written beside the name of a ring that lies in the kernel."""
    return RING_NAMES.value.pack(RingNote(index, checksum or 0, digest))


def _endpoints(rings: Rings, index: int) -> Slots | str:
    """The numbers of the endpoints in a ring's slots, none if it has none; or the damage that it has."""
    place = rings.place(index)
    if place is None:
        return "no slots of its own" if rings.heads[index] else np.zeros(0, np.uint32)
    held = rings.held(place)
    if held.moving.any() and not place.has_rows:
        return "transitions without rows"
    return held.endpoints if held.endpoints.any() else held.endpoints[:0]


def _decode(name: str, endpoints: Slots | str, endpoint_ids: Mapping[int, str]) -> Ring:
    if isinstance(endpoints, str):
        return _damaged(name, endpoints)
    if name_algorithm(name) is not Algorithm.ROUND_ROBIN:
        endpoints = reduced(endpoints)
    numbers, inverse = np.unique(endpoints, return_inverse=True)
    names = np.array([endpoint_ids.get(int(n), f"lost endpoint {n}") for n in numbers], object)
    order = np.argsort(names) if names.size else np.zeros(0, np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return Ring(name, tuple(names[order]), rank[inverse].astype("<u4").tobytes())


def _damaged(name: str, what: str) -> Ring:
    return Ring(name, (what,), bytes(4))


KIND = RingKind
