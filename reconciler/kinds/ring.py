# SPDX-License-Identifier: Apache-2.0
"""A ring as a value: which endpoint a new connection of a pool goes to, slot by slot."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import gcd
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import RING_NAMES
from reconciler.dataplane.ring import Slots, shares, turns
from reconciler.dataplane.ring_batch import hash_rings
from reconciler.dataplane.slots import MAX_SLOTS, lost, moved, reduced
from reconciler.kinds.endpoint_row import NOBODY, EndpointRow, row_named, rows_of
from reconciler.kinds.program import PROGRAM
from reconciler.limits import default_size
from reconciler.model import Algorithm, DeadEndpoint, EndpointState, Pool
from reconciler.resource import Cause, Causes, Context, Key, Reason, Resource
from reconciler.safe import some

IN_TURNS = frozenset((Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONNECTIONS))
"""Algorithms whose rings have slots exactly as the weights say; the others take hashes for numbers of slots."""

_KEPT_BYTES = 16 << 20
"""Of the slots of rings that are kept: a round asks for those of a ring several times, and nodes have rings in common.
All of them would take more memory than the rest of lbctl."""

Recipe = tuple[Algorithm | None, tuple[str, ...], tuple[int, ...], int]
"""What slots are built from: algorithm, members, their weights, and the count of slots that was asked for, or 0."""


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

    def stamps(self) -> Iterator[str]:
        yield repr((self.members, blake2b(self.slots, digest_size=16).hexdigest()))

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
        if is_whole and self.array.size <= MAX_SLOTS:
            return ""
        return f"{self.array.size:,} slots of {some(self.members)}"

    @property
    def member_count(self) -> int:
        """How many members there are, for those who needn't know which."""
        return len(self.members)

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
        return cause_of(self.name, before.members, self.members, causes) if isinstance(before, Ring) else None

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
        hashed = self.algorithm is after.algorithm and self.algorithm not in IN_TURNS
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
        return _built([self.recipe])[self.recipe].tobytes()

    @property
    def recipe(self) -> Recipe:
        return self.algorithm, self.members, self._weights, self._size

    @property
    def source(self) -> tuple[tuple[int, ...], int]:
        divisor = gcd(*self._weights)
        return tuple(weight // divisor for weight in self._weights), self._size

    def is_alike(self, other: Ring) -> bool:
        if isinstance(other, UnbuiltRing) and (self.algorithm, self.source) == (other.algorithm, other.source):
            return self.members == other.members
        return Ring.is_alike(self, other)

    def seems_same(self, other: Resource) -> bool:
        if not isinstance(other, UnbuiltRing) or self.name != other.name:
            return False
        return self.members == other.members and self.source == other.source

    def stamps(self) -> Iterator[str]:
        yield repr((self.members, self.source))
        yield from Ring.stamps(self)  # a saved plan has the slots themselves


def cause_of(name: str, before: Sequence[str], after: Sequence[str], causes: Causes) -> Cause | None:
    """The cause of a ring's having other members, or other shares of them."""
    found = causes.get(pool_of(name))
    if not found:
        return None
    # Whoever came or went must have a cause. If nobody did, shares have moved: who gets nothing, before and after, is
    # no cause of that.
    differing = set(after) ^ set(before)
    named = [found[member] for member in sorted(differing or after) if member in found]
    if not named or len(named) < len(differing):
        return None
    reason = Reason.DRAIN if all(cause.reason is Reason.DRAIN for cause in named) else Reason.HEALTH
    return Cause(reason, some([cause.text for cause in named], "; "))


def _is_disabled(member: str, context: Context) -> bool:
    row = context.desired.get(Key(EndpointRow.kind, member))
    return isinstance(row, EndpointRow) and row.disabled


def _as_names(*rings: Ring) -> list[Slots]:
    """The slots of each ring; a number stands for the same member in all of them."""
    numbers = {member: number for number, member in enumerate(dict.fromkeys(m for r in rings for m in r.members))}
    return [np.array([numbers[member] for member in ring.members], np.uint32)[ring.array] for ring in rings]


def ring_name(pool: str, algorithm: Algorithm) -> str:
    return f"{pool}/{algorithm.value}"


def pool_of(name: str) -> str:
    """The pool in the name of a ring."""
    return name.rpartition("/")[0]


def name_algorithm(name: str) -> Algorithm | None:
    """The algorithm in the name of a ring; None if no manifest could lead to such a name."""
    return _ALGORITHMS.get(name.rpartition("/")[2])


_ALGORITHMS = {algorithm.value: algorithm for algorithm in Algorithm}


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
    if members and (algorithm in IN_TURNS or fewest >= sum(weights)):
        dead = tuple([row for e, row in zip(pool.endpoints, of, strict=True) if isinstance(e, DeadEndpoint)])
        return UnbuiltRing(name, members, rows, weights, size, dead)
    # A member whose share is less than a slot may hold none. Then it is left out, as the kernel can't show it.
    recipe = algorithm, members, weights, size
    held, ranks = np.unique(_built([recipe])[recipe], return_inverse=True)
    return Ring(name, tuple(members[i] for i in held), ranks.astype("<u4").tobytes())


def slots_of(rings: Sequence[Ring]) -> list[Slots]:
    """The slots of each ring. Those of many unbuilt ones are built together, which is quicker."""
    built = _built([ring.recipe for ring in rings if isinstance(ring, UnbuiltRing)])
    return [built[ring.recipe] if isinstance(ring, UnbuiltRing) else ring.array for ring in rings]


_kept: OrderedDict[Recipe, NDArray[np.unsignedinteger]] = OrderedDict()


def _built(recipes: Sequence[Recipe]) -> dict[Recipe, Slots]:
    """The slots for each recipe."""
    found = {recipe: kept.astype("<u4") for recipe in recipes if (kept := _kept.get(recipe)) is not None}
    left = [recipe for recipe in dict.fromkeys(recipes) if recipe not in found]
    size = sum(kept.nbytes for kept in _kept.values()) if left else 0
    for recipe, slots in zip(left, _slots_of(left), strict=True):
        found[recipe] = slots.astype("<u4")
        _kept[recipe] = slots.astype(np.min_scalar_type(len(recipe[1])))
        size += _kept[recipe].nbytes
        while size > _KEPT_BYTES:
            size -= _kept.popitem(last=False)[1].nbytes
    return found


def _slots_of(recipes: Sequence[Recipe]) -> list[Slots]:
    """A hash ring is reduced to its smallest equal form: the kernel may hold a larger one. In turns, the order
    counts."""
    hashed = [recipe[1:] for recipe in recipes if recipe[0] not in IN_TURNS]
    rings = map(reduced, hash_rings(hashed))
    return [turns(recipe[2]) if recipe[0] in IN_TURNS else next(rings) for recipe in recipes]
