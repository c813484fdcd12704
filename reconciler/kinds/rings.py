# SPDX-License-Identifier: Apache-2.0
"""Rings in the kernel, by name.

The kernel knows rings and endpoints by number only. The map `ring_names` has the names of rings, the endpoint
rows have those of endpoints. So a ring reads back with the names it was written with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from reconciler import progress, safe
from reconciler.dataplane.layout import RING_NAMES, RING_TURNS
from reconciler.dataplane.ring import Slots
from reconciler.dataplane.rows import Number, RingNote
from reconciler.dataplane.slots import ENDPOINT_MASK, IN_TRANSITION
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted, differing, in_parts
from reconciler.kinds.endpoint import Numbers, numbers_of
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.held_ring import EndpointNames, HeldRing
from reconciler.kinds.ring import Ring, build, slots_of
from reconciler.model import Pool
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.ring_names import RingNames, packed
from reconciler.ring_store import Rings, RingWriter, indexes_in_use, remove_rings
from reconciler.view import Facts, Use

_LOOKED_AT_ONCE = 500
_BUILT_AT_ONCE = 512
"""Rings that are built before they are written: all of them would take more memory than the rest of lbctl."""


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
        return self._reading(wanted, asked, names, opened, partial(numbers_of, self.kernel))

    def look(self, wanted: Mapping[Key, Resource]) -> Iterator[Collection[Key]]:
        names, opened = RingNames(self.kernel), Rings(self.kernel)
        own = {key.id for key in wanted}
        yield [Key(Ring.kind, name) for name in names if name not in own]
        numbers = Numbers(self.kernel)
        yield ()
        for part in in_parts(wanted, _LOOKED_AT_ONCE):
            asked = {key.id for key in part if key.id in names}
            yield differing(self._reading(part, asked, names, opened, numbers.of), part)

    def _reading(
        self, wanted: Mapping[Key, Resource], asked: Collection[str], names: RingNames, opened: Rings,
        numbers_of: Callable[[Sequence[EndpointRow]], Slots],
    ) -> Reading:  # fmt: skip
        """The wanted rings that the kernel has, and the others of those that are `asked` for."""
        rings = [ring for ring in wanted.values() if isinstance(ring, Ring)]
        noted = zip(rings, names.notes(ring.name for ring in rings), strict=True)
        known = {ring.name: (ring, note) for ring, note in noted if note and ring.members}
        numbers = dict(zip(known, _numbers(numbers_of, [ring for ring, _ in known.values()]), strict=True))
        right = _as_noted(known, numbers, opened)
        others, damaged = {}, []
        left = sorted(name for name in asked if name not in right)
        endpoint_names = EndpointNames(self.kernel) if left else None
        for name in left:
            number = names.number(name)
            endpoints = "no ring of its own" if number is None else _endpoints(opened, number)
            if isinstance(endpoints, str):
                damaged.append(Ring(name, (endpoints,), bytes(4)))
            elif endpoint_names:
                others[name] = HeldRing(name, endpoints, endpoint_names)
        _compare(others, known, numbers)
        return Reading((*right.values(), *others.values(), *damaged))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        names = RingNames(self.kernel)
        puts = {change.key: change.after for change in changes if isinstance(change.after, Ring)}
        numbers = dict(zip(puts, _numbers(partial(numbers_of, self.kernel), list(puts.values())), strict=True))
        indexes = {key: names.number(key.id) for key in puts}
        free = _free(self.kernel, names) if None in indexes.values() else iter(())
        outcomes: dict[Key, Outcome] = {}
        places: dict[Key, int] = {}
        for key, ring in puts.items():
            index = indexes[key] or next(free, None)
            if index is None:
                outcomes[key] = KernelError(f"no room for {key}: all {RING_NAMES.capacity - 1:,} rings are in use")
            elif missing := _missing(ring, numbers[key]):
                outcomes[key] = KernelError(f"{key} needs endpoints that are not there: {safe.some(missing)}")
            else:
                places[key] = index
        # Nobody uses a ring whose name was never written: it is not `known`, and its remains are overwritten.
        writer = RingWriter(self.kernel, places.values(), known={index for index in indexes.values() if index})
        dead = _dead(self.kernel, [puts[key] for key in places])
        ready = list(places)
        with progress.step("building", len(ready)) as advance:
            for first in range(0, len(ready), _BUILT_AT_ONCE):
                some = ready[first : first + _BUILT_AT_ONCE]
                built = zip(some, slots_of([puts[key] for key in some]), strict=True)
                writer.write(
                    {places[key]: _numbered(numbers[key], slots) for key, slots in built},
                    {places[key]: dead[key] for key in some if key in dead},
                )
                advance(len(some))
        written = writer.flip()
        outcomes |= {key: written[index] for key, index in places.items()}
        # The ring before its name: a name without a ring would read back as an empty ring.
        done = [key for key in places if not outcomes[key]]
        new = [key for key in done if not indexes[key]]
        self.kernel.delete(RING_TURNS.name, [RING_TURNS.key.pack(Number(places[key])) for key in new])
        notes = [
            RingNote(places[key], writer.checksums.get(places[key], 0), puts[key].digest(numbers[key])) for key in done
        ]
        rows = [(packed(key.id), RING_NAMES.value.pack(note)) for key, note in zip(done, notes, strict=True)]
        noted = dict(zip(done, self.kernel.update(RING_NAMES.name, rows), strict=True))
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


def _dead(kernel: Kernel, rings: Sequence[Ring]) -> dict[Key, Slots]:
    """The numbers of the dead endpoints of rings that have some."""
    dead = {ring.key: ring.dead for ring in rings if ring.dead}
    found = numbers_of(kernel, [row for rows in dead.values() for row in rows])
    ends = accumulate(map(len, dead.values()), initial=0)
    return {key: found[start:end] for key, (start, end) in zip(dead, pairwise(ends), strict=True)}


def _numbers(numbers_of: Callable[[Sequence[EndpointRow]], Slots], rings: Sequence[Ring]) -> list[bytes]:
    """The numbers of the members of each ring, 0 for one without a row, as an array's bytes."""
    found = numbers_of([row for ring in rings for row in ring.rows]).tobytes()
    ends = accumulate((4 * len(ring.members) for ring in rings), initial=0)
    return [found[start:end] for start, end in pairwise(ends)]


def _numbered(numbers: bytes, slots: Slots) -> Slots:
    """The endpoints in a ring's slots, by the numbers of its members."""
    by_member = np.frombuffer(numbers, np.uint32)
    return by_member[slots] if by_member.size else np.zeros(0, np.uint32)


def _missing(ring: Ring, numbers: bytes) -> list[str]:
    """The members without a number."""
    return [member for member, number in zip(ring.members, memoryview(numbers).cast("I"), strict=True) if not number]


def _as_noted(
    known: Mapping[str, tuple[Ring, RingNote]], numbers: Mapping[str, bytes], opened: Rings
) -> dict[str, Ring]:
    """The wanted rings that the kernel has: the slots that were written, and they were made of the same."""
    same = {name: note for name, (ring, note) in known.items() if note.digest == ring.digest(numbers[name])}
    found = opened.checksums(note.number for note in same.values())
    return {
        name: known[name][0] for (name, note), checksum in zip(same.items(), found, strict=True)
        if note.checksum == checksum
    }  # fmt: skip


def _compare(
    others: Mapping[str, HeldRing], known: Mapping[str, tuple[Ring, RingNote]], numbers: Mapping[str, bytes]
) -> None:
    """Tell rings whether they are the wanted ones, whatever the notes say."""
    left = [name for name in others if name in known]
    for first in range(0, len(left), _BUILT_AT_ONCE):
        some = left[first : first + _BUILT_AT_ONCE]
        for name, slots in zip(some, slots_of([known[name][0] for name in some]), strict=True):
            others[name].compare(known[name][0], np.frombuffer(numbers[name], np.uint32), slots)


def _endpoints(rings: Rings, index: int) -> Slots | str:
    """The numbers of the endpoints in a ring's slots, none if it has none; or the damage that it has."""
    place = rings.place(index)
    if place is None:
        return "no slots of its own" if rings.heads[index] else np.zeros(0, np.uint32)
    words = rings.slots(place)
    if not place.has_rows and (words >= IN_TRANSITION).any():
        return "transitions without rows"
    endpoints = words & ENDPOINT_MASK
    return endpoints if endpoints.any() else endpoints[:0]


KIND = RingKind
