# SPDX-License-Identifier: Apache-2.0
"""The endpoints of rings whose services have affinity: those that a client may have again.

A client is remembered with a number of its ring that no earlier owner of the ring's index had (bpf/affinity.h). The
rows of a ring have that number from the first on, for as long as a service asks for them; so all clients are forgotten
with the last one, though nobody looks for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.endpoint_table import EndpointTable
from reconciler.dataplane.layout import MEMBERS
from reconciler.dataplane.rows import Member, Number
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome, Row
from reconciler.kinds.base import Kind, Wanted, differing, each, in_parts
from reconciler.kinds.endpoint import endpoint_table, ids_in, numbers_of
from reconciler.kinds.endpoint_row import NOBODY, row_named
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.ring import Ring, build, cause_of, name_algorithm
from reconciler.model import Pool
from reconciler.resource import Cause, Causes, Change, Context, Key, Reading, Resource
from reconciler.ring_names import RingNames
from reconciler.safe import some
from reconciler.view import Facts, Use

_LOST = "lost ring "
_NUMBER_BITS = 32
_LOOKED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Members(Resource):
    """`ring` is the name of a ring, `endpoints` are ids, sorted. `damage` says what is wrong with rows that were
    written by somebody else."""

    kind: ClassVar[str] = "members"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program", "ring"))

    ring: str
    endpoints: tuple[str, ...]
    damage: str = ""

    @property
    def id(self) -> str:
        return self.ring

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM, Key(Ring.kind, self.ring))

    @property
    def flaw(self) -> str:
        return self.damage or ("" if name_algorithm(self.ring) else f"{self.ring!r} is no name of a ring")

    def describe(self) -> dict[str, str]:
        return {"endpoints": some(self.endpoints)} | ({"damage": self.damage} if self.damage else {})

    def caused(self, before: Resource, causes: Causes) -> Cause | None:
        if not isinstance(before, Members):
            return None
        return cause_of(self.ring, before.endpoints, self.endpoints, causes)

    def effect(self, after: Resource | None, context: Context) -> str:
        if not isinstance(after, Members):
            return "it is forgotten which endpoints clients had; open connections stay"
        gone = [endpoint for endpoint in self.endpoints if endpoint not in set(after.endpoints)]
        return f"clients of {some(gone)} get another endpoint with their next connection" if gone else ""


class MembersKind(Kind):
    """After rings, of whose endpoints it says which they are."""

    phase = 42
    resource = Members
    is_in_maps = True

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        for algorithm in use.remembering:
            ring = build(pool, algorithm)
            yield Members(ring.name, ring.members), pool.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = _Held(self.kernel)
        names = held.names if only is None else {r: n for r, n in held.names.items() if Key(Members.kind, n) in only}
        return Reading(held.members(names))

    def look(self, wanted: Mapping[Key, Resource]) -> Iterator[Collection[Key]]:
        held = _Held(self.kernel)
        numbers = {Key(Members.kind, name): ring for ring, name in held.names.items()}
        yield [key for key in numbers if key not in wanted]
        for part in in_parts(wanted, _LOOKED_AT_ONCE):
            names = {numbers[key]: key.id for key in part if key in numbers}
            yield differing(Reading(held.members(names)), part)

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        held, names = _Held(self.kernel), RingNames(self.kernel)
        outcomes: list[tuple[Change, Outcome]] = []
        puts: list[tuple[Change, list[Row]]] = []
        gone: list[tuple[Change, list[bytes]]] = []
        for change in changes:
            after = change.after if isinstance(change.after, Members) else None
            ring = names.number(change.key.id)
            if ring is None and change.key.id.startswith(_LOST):
                lost = int(change.key.id.removeprefix(_LOST))
                ring = lost if lost not in names.numbers else None  # it may be another ring's by now
            rows = [row_named(endpoint) or NOBODY for endpoint in after.endpoints] if after else []
            numbers = numbers_of(self.kernel, rows)
            if after and (ring is None or not numbers.all()):
                missing = [name for name, number in zip(after.endpoints, numbers, strict=True) if not number]
                what = f"endpoints that are not there: {some(missing)}" if missing else "a ring that is not there"
                outcomes.append((change, KernelError(f"{change.key} needs {what}")))
            elif ring is not None:
                wanted = held.wanted(ring, numbers, is_new=change.before is None) if after else {}
                own = held.rows(ring)
                puts.append((change, [(key, value) for key, value in wanted.items() if own.get(key) != value]))
                gone.append((change, [key for key in own if key not in wanted]))
        outcomes += _one_each(gone, self.kernel.delete(MEMBERS.name, [key for _, keys in gone for key in keys]))
        failed = {id(change) for change, outcome in outcomes if outcome}
        puts = [(change, rows) for change, rows in puts if id(change) not in failed]
        outcomes += _one_each(puts, self.kernel.update(MEMBERS.name, [row for _, rows in puts for row in rows]))
        return each(changes, outcomes)


class _Held:
    """The rows of the map, at one moment."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        joined, values = kernel.joined(MEMBERS.name)
        keys = MEMBERS.key.array(joined)
        order = np.argsort(keys["ring"], kind="stable")
        self._keys, self._values = keys[order], MEMBERS.value.array(values)["number"][order]

    @cached_property
    def names(self) -> dict[int, str]:
        """The names of the rings that have rows, by number."""
        known = RingNames(self._kernel)
        rings: list[int] = np.unique(self._keys["ring"]).tolist()
        return {ring: known.name(ring) or f"{_LOST}{ring}" for ring in rings}

    def members(self, names: Mapping[int, str]) -> tuple[Members, ...]:
        """The members of these rings, which have rows."""
        places = {ring: self._places(ring) for ring in names}
        some_endpoints = [self._keys["endpoint"][place] for place in places.values()]
        ids = ids_in(self._table, np.unique(np.concatenate(some_endpoints))) if some_endpoints else {}
        return tuple(self._members(names[ring], place, ids) for ring, place in places.items())

    def _members(self, name: str, places: slice, ids: Mapping[int, str]) -> Members:
        endpoints, values = self._keys["endpoint"][places], self._values[places]
        found = [ids.get(number, f"lost endpoint {number}") for number in endpoints.tolist() if number]
        is_sound = (endpoints == 0).any() and np.unique(values).size == 1 and values.all()
        return Members(name, tuple(sorted(found)), "" if is_sound else "rows with different numbers, or none")

    def rows(self, ring: int) -> dict[bytes, bytes]:
        """The rows of a ring, as the kernel has them."""
        places = self._places(ring)
        pairs = zip(self._keys[places].tolist(), self._values[places].tolist(), strict=True)
        return dict(MEMBERS.pack(Member(*key), Number(number)) for key, number in pairs)

    def wanted(self, ring: int, endpoints: NDArray[np.uint32], *, is_new: bool) -> dict[bytes, bytes]:
        """The rows that a ring with these endpoints must have. The one of number 0 is the last, so that nobody is
        remembered before."""
        number = self.rows(ring).get(MEMBERS.key.pack(Member(ring, 0))) or bytes(MEMBERS.value_size)
        if is_new or not any(number):
            number = MEMBERS.value.pack(Number(secrets.randbits(_NUMBER_BITS) or 1))
        return {MEMBERS.key.pack(Member(ring, endpoint)): number for endpoint in (*endpoints.tolist(), 0)}

    def _places(self, ring: int) -> slice:
        first, after = np.searchsorted(self._keys["ring"], [ring, ring + 1])
        return slice(int(first), int(after))

    @cached_property
    def _table(self) -> EndpointTable:
        return endpoint_table(self._kernel)


def _one_each(
    parts: Sequence[tuple[Change, Sequence[object]]], done: Sequence[Outcome]
) -> list[tuple[Change, Outcome]]:
    """The outcome of each change, from those of the rows that it is about."""
    found, rest = [], iter(done)
    for change, rows in parts:
        outcomes = [next(rest) for _ in rows]
        found.append((change, next(filter(None, outcomes), None)))
    return found


KIND = MembersKind
