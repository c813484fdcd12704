# SPDX-License-Identifier: Apache-2.0
"""Rings: which endpoint a new connection of a pool goes to, slot by slot.

The kernel knows rings and endpoints by number only. The map `ring_names` has the names of rings, the endpoint
rows have those of endpoints. So a ring reads back with the names it was written with.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import gcd
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np

from reconciler.dataplane.layout import RING_NAMES, RING_TURNS, RINGS
from reconciler.dataplane.ring import Slots, hash_ring, shares, turns
from reconciler.dataplane.rows import RingNote
from reconciler.dataplane.slots import MAX_SLOTS, lost, moved, reduced, still
from reconciler.dataplane.slots import held as slots_of
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.endpoint import EndpointRow, numbered_rows, row_of
from reconciler.kinds.program import PROGRAM
from reconciler.limits import default_size
from reconciler.model import Algorithm, EndpointState, Pool
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.ring_store import Rings, indexes_in_use, remove_rings, write_rings
from reconciler.view import Facts, Use

_INDEX = struct.Struct("=I")


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Ring(Resource):
    """`members` are ids of endpoints, sorted; `slots` are unsigned 32-bit numbers of members, little endian.

    Rings are equal if their slots are, however they came about.
    """

    kind: ClassVar[str] = "ring"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program", "endpoint"))

    name: str
    members: tuple[str, ...]
    slots: bytes

    def __post_init__(self) -> None:
        if self.array.size and self.array.max() >= len(self.members):
            raise ValueError(f"ring {self.name} has slots of more members than the {len(self.members)} it has")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Ring):
            return NotImplemented
        return self.name == other.name and self.members == other.members and self.slots == other.slots

    def __hash__(self) -> int:
        return hash((self.name, self.members))

    def digest(self, numbers: Mapping[str, int]) -> bytes:
        """Of what the slots are made from, and of the members' numbers, which the kernel's slots hold instead."""
        return self._digest(self.slots, numbers)

    def _digest(self, source: object, numbers: Mapping[str, int]) -> bytes:
        held = [numbers.get(member) for member in self.members]
        return blake2b(repr((self.algorithm, self.members, source, held)).encode(), digest_size=16).digest()

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
    or 0. Each member has a slot. Its slots are built when somebody asks for them."""

    __slots__ = ("_built", "_size", "_weights")
    _built: bytes | None
    _size: int
    _weights: tuple[int, ...]

    def __init__(self, name: str, members: tuple[str, ...], weights: tuple[int, ...], size: int) -> None:
        for field, value in (("name", name), ("members", members), ("_weights", weights), ("_size", size),
                             ("_built", None)):  # fmt: skip
            object.__setattr__(self, field, value)

    @property
    def slots(self) -> bytes:
        if self._built is None:
            built = _slots_of(self.algorithm, self.members, self._weights, self._size).astype("<u4").tobytes()
            object.__setattr__(self, "_built", built)
            return built
        return self._built

    @property
    def source(self) -> tuple[tuple[int, ...], int]:
        divisor = gcd(*self._weights)
        return tuple(weight // divisor for weight in self._weights), self._size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, UnbuiltRing) and (self.name, self.members) == (other.name, other.members):
            return self.source == other.source or self.slots == other.slots
        return super().__eq__(other)

    __hash__ = Ring.__hash__

    def digest(self, numbers: Mapping[str, int]) -> bytes:
        return self._digest(self.source, numbers)


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


_in_use: WeakValueDictionary[tuple[Pool, Algorithm], Ring] = WeakValueDictionary()


def build(pool: Pool, algorithm: Algorithm) -> Ring:
    """The ring of a pool: active endpoints of a weight above 0, in the order of their ids.

    While anybody holds the ring of a pool, an equal pool gets the same object, which costs nothing.
    """
    ring = _in_use.get((pool, algorithm))
    if ring is None:
        ring = _in_use[pool, algorithm] = _build(pool, algorithm)
    return ring


def _build(pool: Pool, algorithm: Algorithm) -> Ring:
    weights = {
        row_of(e).id: e.weight for e in pool.endpoints if e.state is EndpointState.ACTIVE and e.weight
    }
    members = tuple(sorted(weights))
    ordered = tuple(weights[member] for member in members)
    name, size = ring_name(pool.name, algorithm), pool.ring_size or 0
    fewest = min(ordered, default=0) * (size or default_size(len(members)))
    if members and (algorithm is Algorithm.ROUND_ROBIN or fewest >= sum(ordered)):
        return UnbuiltRing(name, members, ordered, size)
    # A member whose share is less than a slot may hold none. Then it is left out, as the kernel can't show it.
    held, ranks = np.unique(_slots_of(algorithm, members, ordered, size), return_inverse=True)
    return Ring(name, tuple(members[i] for i in held), ranks.astype("<u4").tobytes())


def _slots_of(
    algorithm: Algorithm | None, members: tuple[str, ...], weights: tuple[int, ...], size: int
) -> Slots:
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
        names = {r.number: r.row.id for r in numbered_rows(self.kernel)}
        numbers = {name: number for number, name in names.items()}
        notes = _notes(self.kernel)
        held = {name: note.number for name, note in notes.items()}
        opened = Rings(self.kernel)
        asked = held.keys() if only is None else held.keys() & {key.id for key in only}
        rings = [
            _as_noted(notes[name], wanted.get(Key(Ring.kind, name)), opened, numbers)
            or _decode(name, opened, index, names)
            for name, index in _sound(held).items() if name in asked
        ]
        astray = asked - {ring.name for ring in rings}
        return Reading((*rings, *(_damaged(name, "no ring of its own") for name in sorted(astray))))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        numbers = {r.row.id: r.number for r in numbered_rows(self.kernel)}
        held = _name_rows(self.kernel)
        indexes = _sound(held)
        # Rings whose names are lost are not free: services may use them.
        free = iter(sorted(set(range(1, RING_NAMES.capacity)) - set(indexes.values()) - indexes_in_use(self.kernel)))
        outcomes: dict[Key, Outcome] = {}
        wanted: dict[Key, tuple[int, Slots]] = {}
        for change in changes:
            if not isinstance(change.after, Ring):
                continue
            try:
                index = indexes.get(change.key.id) or next(free, None)
                if index is None:
                    raise KernelError(f"no room for {change.key}: all {RING_NAMES.capacity - 1:,} rings are in use")
                wanted[change.key] = index, _encode(change.after, numbers)
            except KernelError as error:
                outcomes[change.key] = error
        # Nobody uses a ring whose name was never written: it is not `known`, and its remains are overwritten.
        written = write_rings(self.kernel, dict(wanted.values()), known=set(indexes.values()))
        outcomes |= {key: written[index] for key, (index, _) in wanted.items()}
        # The ring before its name: a name without a ring would read back as an empty ring.
        done = [key for key in wanted if not outcomes[key]]
        new = [key for key in done if key.id not in indexes]
        self.kernel.delete(RING_TURNS.name, [_INDEX.pack(wanted[key][0]) for key in new])
        after = {change.key: change.after for change in changes}
        opened = Rings(self.kernel)
        notes = [(_name(key.id), _note(after[key], wanted[key][0], opened, numbers)) for key in done]
        noted = dict(zip(done, self.kernel.update(RING_NAMES.name, notes), strict=True))
        # A ring that had its name before is written as it should be; without a note, its slots are compared.
        outcomes |= {key: noted[key] for key in new}
        # The name goes last: if the removal is cut off, the ring still reads as present and is removed later.
        gone = [change.key for change in changes if change.after is None and change.key.id in held]
        own = [key for key in gone if key.id in indexes]
        outcomes |= zip(own, remove_rings(self.kernel, [indexes[key.id] for key in own]), strict=True)
        gone = [key for key in gone if not outcomes.get(key)]
        outcomes |= zip(gone, self.kernel.delete(RING_NAMES.name, [_name(key.id) for key in gone]), strict=True)
        return [outcomes.get(change.key) for change in changes]


def _encode(ring: Ring, numbers: Mapping[str, int]) -> Slots:
    """The number of an endpoint for each slot."""
    missing = [member for member in ring.members if member not in numbers]
    if missing:
        raise KernelError(f"{ring.key} needs endpoints that are not there: {', '.join(missing)}")
    by_member = np.array([numbers[member] for member in ring.members], np.uint32)
    return by_member[ring.array] if ring.members else np.zeros(0, np.uint32)


def ring_indexes(kernel: Kernel) -> dict[str, int]:
    """The number of each ring, by name."""
    return _sound(_name_rows(kernel))


def _name_rows(kernel: Kernel) -> dict[str, int]:
    """The ring's number beside each name. A damaged row may hold any number."""
    return {name: note.number for name, note in _notes(kernel).items()}


def _notes(kernel: Kernel) -> dict[str, RingNote]:
    rows = RING_NAMES.unpack(kernel.dump(RING_NAMES.name))
    return {key.name.rstrip(b"\0").decode(errors="surrogateescape"): note for key, note in rows}


def _note(ring: Resource | None, index: int, rings: Rings, numbers: Mapping[str, int]) -> bytes:
    """What is written beside the name of a ring that lies in the kernel."""
    assert isinstance(ring, Ring)
    return RING_NAMES.value.pack(RingNote(index, rings.checksum(index) or 0, ring.digest(numbers)))


def _as_noted(
    note: RingNote, wanted: Resource | None, rings: Rings, numbers: Mapping[str, int]
) -> Ring | None:
    """The wanted ring, if the kernel has just that: the slots that were written, and they were made of the same."""
    if not isinstance(wanted, Ring) or note.digest != wanted.digest(numbers):
        return None
    return wanted if note.checksum == (rings.checksum(note.number) if wanted.members else None) else None


def _sound(names: Mapping[str, int]) -> dict[str, int]:
    """The names that have a ring of their own: of several names for one ring, the first."""
    first = {index: name for name, index in sorted(names.items(), reverse=True) if 0 < index < RINGS.capacity}
    return {name: index for index, name in first.items()}


def _decode(name: str, rings: Rings, index: int, endpoint_names: Mapping[int, str]) -> Ring:
    place = rings.place(index)
    if place is None and rings.heads[index]:
        return _damaged(name, "no slots of its own")
    ring = slots_of(rings.slots(place)) if place else still(np.zeros(0, np.uint32))
    if place and not place.has_rows and ring.moving.any():
        return _damaged(name, "transitions without rows")
    held = ring.endpoints if ring.endpoints.any() else ring.endpoints[:0]
    if name_algorithm(name) is not Algorithm.ROUND_ROBIN:
        held = reduced(held)
    numbers, inverse = np.unique(held, return_inverse=True)
    names = np.array([endpoint_names.get(int(n), f"lost endpoint {n}") for n in numbers], object)
    order = np.argsort(names) if names.size else np.zeros(0, np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return Ring(name, tuple(names[order]), rank[inverse].astype("<u4").tobytes())


def _damaged(name: str, what: str) -> Ring:
    return Ring(name, (what,), bytes(4))


def _name(name: str) -> bytes:
    return name.encode(errors="surrogateescape").ljust(RING_NAMES.key_size, b"\0")


KIND = RingKind
