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
from math import gcd
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np

from reconciler.dataplane.layout import RING_NAMES, RING_TURNS
from reconciler.dataplane.ring import Slots, hash_ring, shares, turns
from reconciler.dataplane.rows import Number, RingNote
from reconciler.dataplane.slots import MAX_SLOTS, lost, moved, reduced
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.endpoint import EndpointRow, ids_of, numbers_of, rows_of
from reconciler.kinds.program import PROGRAM
from reconciler.limits import default_size
from reconciler.model import Algorithm, EndpointState, Pool
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.ring_names import RingNames, packed
from reconciler.ring_store import Rings, indexes_in_use, remove_rings, write_rings
from reconciler.view import Facts, Use


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
        return self.name == other.name and self.is_alike(other)

    def __hash__(self) -> int:
        return hash((self.name, self.members))

    def is_alike(self, other: Ring) -> bool:
        """Whether both have the same slots, whatever their names."""
        return self.members == other.members and self.slots == other.slots

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
    or 0. Each member has a slot. Its slots are built when somebody asks for them, and not kept: those of ten thousand
    rings would take more memory than all the rest."""

    __slots__ = ("_size", "_weights")
    _size: int
    _weights: tuple[int, ...]

    def __init__(self, name: str, members: tuple[str, ...], weights: tuple[int, ...], size: int) -> None:
        for field, value in (("name", name), ("members", members), ("_weights", weights), ("_size", size)):
            object.__setattr__(self, field, value)

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

    def digest(self, numbers: Mapping[str, int]) -> bytes:
        return self._digest(self.source, numbers)

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


_in_use: WeakValueDictionary[tuple[str, tuple[str, ...], tuple[int, ...], int], Ring] = WeakValueDictionary()


def build(pool: Pool, algorithm: Algorithm) -> Ring:
    """The ring of a pool: active endpoints of a weight above 0, in the order of their ids.

    While anybody holds a ring, whoever asks for one made from the same gets the same object, which costs nothing.
    """
    weights = {
        row.key.id: e.weight
        for e, row in zip(pool.endpoints, rows_of(pool), strict=True) if e.state is EndpointState.ACTIVE and e.weight
    }  # fmt: skip
    members = tuple(sorted(weights))
    ordered = tuple([weights[member] for member in members])
    recipe = ring_name(pool.name, algorithm), members, ordered, pool.ring_size or 0
    ring = _in_use.get(recipe)
    if ring is None:
        ring = _in_use[recipe] = _build(algorithm, *recipe)
    return ring


def _build(algorithm: Algorithm, name: str, members: tuple[str, ...], ordered: tuple[int, ...], size: int) -> Ring:
    fewest = min(ordered, default=0) * (size or default_size(len(members)))
    if members and (algorithm is Algorithm.ROUND_ROBIN or fewest >= sum(ordered)):
        return UnbuiltRing(name, members, ordered, size)
    # A member whose share is less than a slot may hold none. Then it is left out, as the kernel can't show it.
    held, ranks = np.unique(_slots_of(algorithm, members, ordered, size), return_inverse=True)
    return Ring(name, tuple(members[i] for i in held), ranks.astype("<u4").tobytes())


@lru_cache(maxsize=64)
def _built(algorithm: Algorithm | None, members: tuple[str, ...], weights: tuple[int, ...], size: int) -> bytes:
    """The slots of a ring, as it has them. Whoever looks at a ring asks several times."""
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
        asked = set(names) if only is None else {key.id for key in only if key.id in names}
        own = {name: number for name in asked if (number := names.number(name)) is not None}
        likely = [ring for key in map(_key, own) if isinstance(ring := wanted.get(key), Ring)]
        numbers = numbers_of(self.kernel, {member for ring in likely for member in ring.members})
        right = {ring.name: ring for ring in likely if _is_as_noted(ring, names.note(ring.name), opened, numbers)}
        others = {name: _endpoints(opened, number) for name, number in own.items() if name not in right}
        seen = [np.unique(endpoints) for endpoints in others.values() if not isinstance(endpoints, str)]
        ids = ids_of(self.kernel, np.unique(np.concatenate(seen)).tolist()) if seen else {}
        rings = (right.get(name) or _decode(name, others[name], ids) for name in own)
        return Reading((*rings, *(_damaged(name, "no ring of its own") for name in sorted(asked - own.keys()))))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        names = RingNames(self.kernel)
        puts = {change.key: change.after for change in changes if isinstance(change.after, Ring)}
        numbers = numbers_of(self.kernel, {member for ring in puts.values() for member in ring.members})
        indexes = {key: names.number(key.id) for key in puts}
        free = _free(self.kernel, names) if None in indexes.values() else iter(())
        outcomes: dict[Key, Outcome] = {}
        wanted: dict[Key, tuple[int, Slots]] = {}
        for key, ring in puts.items():
            try:
                index = indexes[key] or next(free, None)
                if index is None:
                    raise KernelError(f"no room for {key}: all {RING_NAMES.capacity - 1:,} rings are in use")
                wanted[key] = index, _encode(ring, numbers)
            except KernelError as error:
                outcomes[key] = error
        # Nobody uses a ring whose name was never written: it is not `known`, and its remains are overwritten.
        written = write_rings(self.kernel, dict(wanted.values()), known={index for index in indexes.values() if index})
        outcomes |= {key: written[index] for key, (index, _) in wanted.items()}
        # The ring before its name: a name without a ring would read back as an empty ring.
        done = [key for key in wanted if not outcomes[key]]
        new = [key for key in done if not indexes[key]]
        self.kernel.delete(RING_TURNS.name, [RING_TURNS.key.pack(Number(wanted[key][0])) for key in new])
        opened = Rings(self.kernel)
        notes = [(packed(key.id), _note(puts[key], wanted[key][0], opened, numbers)) for key in done]
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


def _key(name: str) -> Key:
    return Key(Ring.kind, name)


def _free(kernel: Kernel, names: RingNames) -> Iterator[int]:
    """Numbers for new rings. Rings whose names are lost are not free: services may use them."""
    return iter(sorted(set(range(1, RING_NAMES.capacity)) - names.numbers - indexes_in_use(kernel)))


def _encode(ring: Ring, numbers: Mapping[str, int]) -> Slots:
    """The number of an endpoint for each slot."""
    missing = [member for member in ring.members if member not in numbers]
    if missing:
        raise KernelError(f"{ring.key} needs endpoints that are not there: {', '.join(missing)}")
    by_member = np.array([numbers[member] for member in ring.members], np.uint32)
    return by_member[ring.array] if ring.members else np.zeros(0, np.uint32)


def _note(ring: Ring, index: int, rings: Rings, numbers: Mapping[str, int]) -> bytes:
    """What is written beside the name of a ring that lies in the kernel."""
    return RING_NAMES.value.pack(RingNote(index, rings.checksum(index) or 0, ring.digest(numbers)))


def _is_as_noted(wanted: Ring, note: RingNote, rings: Rings, numbers: Mapping[str, int]) -> bool:
    """Whether the kernel has the wanted ring: the slots that were written, and they were made of the same."""
    if note.digest != wanted.digest(numbers):
        return False
    return note.checksum == (rings.checksum(note.number) if wanted.members else None)


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
