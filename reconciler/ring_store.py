# SPDX-License-Identifier: Apache-2.0
"""Rings in the kernel: how they are read and written, and how their transitions end.

A ring is never changed where it lies: it is written to lines that nobody uses, with a row for each slot if slots of it
change hands, and then its head leads there in one step. Whoever is killed before that step has changed nothing. A slot
that changes hands is in transition for as long as open connections may need its former endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane import chunks, slots
from reconciler.dataplane.chunks import LINE_BYTES, SLOTS_OF_SHARED, Form, FreeLines, Place
from reconciler.dataplane.layout import CHUNK_LINES, RING_CHUNKS, RINGS, SERVICE_MAPS, STATELESS_MODES, ModeCode
from reconciler.dataplane.ring import Slots
from reconciler.dataplane.rows import Head, Number
from reconciler.dataplane.slots import Held, Words
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome

SlotsOfMany = NDArray[np.uint32]
WordsOfMany = NDArray[np.uint64]
"""A line for each of several rings."""

_SLOTS_TOGETHER = 1 << 19
"""Slots of rings that are worked out together: more take memory that no cache holds."""

UDP = 17
PINGS = (1, 58)
"""ICMP and ICMPv6."""


class Rings:
    """The heads of all rings at one moment, and the chunks, which are opened when they are needed."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        words = kernel.words(RINGS.name)
        self.heads = np.zeros(RINGS.capacity, np.uint64) if words is None else words.copy()
        self.chunks = [RING_CHUNKS.key.unpack(key).number for key, _ in kernel.dump(RING_CHUNKS.name)]
        self._opened: dict[int, Words | None] = {}
        self._sound = chunks.sound(self.heads, self.chunks)

    def place(self, index: int) -> Place | None:
        """Where a ring lies. None if it has no slots, or its head was damaged."""
        place = chunks.place_of(int(self.heads[index])) if self._sound[index] else None
        return place if place and self._chunk(place.chunk) is not None else None

    def slots(self, place: Place) -> Slots:
        """The slots of a ring, as the program reads them."""
        return place.form.read(self._content(place))

    def write_slots(self, place: Place, slots_: Slots) -> None:
        """Write all slots of a ring where it lies."""
        self.write(place, place.form.written(slots_), None)

    def write(
        self, place: Place, content: NDArray[np.uint8], rows: Words | None, numbers: NDArray[np.uint8] | None = None
    ) -> None:
        """Write the bytes of all slots of a ring where it lies, and its rows; if they are shared, with the `numbers`
        that slots have among them."""
        words = self._words(place.chunk, 0)
        place.put(words, content)
        if numbers is not None:
            place.put(words, numbers, SLOTS_OF_SHARED)
        if rows is not None:
            words[place.first_row :][: place.rows] = rows

    def end_transitions(self, place: Place, over: NDArray[np.intp]) -> None:
        """Take the marks off some of the slots where they lie."""
        if place.shares_rows:
            content, at = self._bytes(place), over // SLOTS_OF_SHARED * LINE_BYTES + over % SLOTS_OF_SHARED
            content[at] &= 0x7F
            return
        size = 4 >> place.form.narrow
        slots_ = self._bytes(place).view(f"<u{size}")
        slots_[over] &= (1 << 8 * size - 1) - 1

    def copied(self, place: Place, free: FreeLines) -> Place:
        """Write the slots of a ring once more, without rows, to lines that nobody uses. Raises KernelError."""
        lines = chunks.lines_of(place.slots, has_rows=False, form=place.form)
        after = Place(*self.take(free, lines), place.slots, False, place.form)
        self.write_slots(after, self.slots(place))
        return after

    def rows(self, place: Place) -> Words:
        """The row of each slot of a ring."""
        rows = self._words(place.chunk, place.first_row)[: place.rows]
        return rows.take(self._content(place, SLOTS_OF_SHARED)) if place.shares_rows else rows.copy()

    def note_uses(self, place: Place, of_slots: NDArray[np.intp], rows: Words) -> None:
        """Note in the rows of some slots the times of use that other rows have."""
        held = self._words(place.chunk, place.first_row)
        at = self._content(place, SLOTS_OF_SHARED)[of_slots] if place.shares_rows else of_slots
        held[at] = slots.with_uses(held[at], rows)

    def _content(self, place: Place, half: int = 0) -> NDArray[np.uint8]:
        return place.content(self._words(place.chunk, 0), half)

    def held(self, place: Place) -> Held:
        """What the kernel holds of a ring just now."""
        return slots.held(self.slots(place), self.rows(place) if place.has_rows else None)

    def checksums(self, indexes: Iterable[int]) -> list[int | None]:
        """Of the endpoints in the slots of rings; None for one that has no slots, or is not sound. A mark that no row
        explains makes another checksum."""
        return [self._checksum(place) if place else None for place in map(self.place, indexes)]

    def _checksum(self, place: Place) -> int:
        found = self.slots(place)
        return slots.checksum(found) if place.has_rows else crc32(found.data)

    def in_transition(self) -> dict[int, Place]:
        """The rings that have rows, by index."""
        found = {int(index): self.place(int(index)) for index in chunks.with_rows(self.heads)}
        return {index: place for index, place in found.items() if place}

    def take(self, free: FreeLines, lines: int) -> tuple[int, int]:
        """Chunk and first line of as many free lines. Raises KernelError if that needs a chunk that can't be had."""
        while True:
            taken = free.take(lines)
            if taken is None:
                index = free.next_chunk()
                self._opened[index] = self._kernel.add_chunk(RING_CHUNKS.name, index)
                free.add(index)
            elif self._chunk(taken[0]) is not None:
                return taken
            else:
                free.drop(taken[0])

    def _chunk(self, index: int) -> Words | None:
        if index not in self._opened:
            self._opened[index] = self._kernel.chunk(RING_CHUNKS.name, index)
        return self._opened[index]

    def _bytes(self, place: Place) -> NDArray[np.uint8]:
        return self._words(place.chunk, place.first_word).view(np.uint8)[: place.slot_bytes]

    def _words(self, chunk: int, first: int) -> Words:
        words = self._chunk(chunk)
        assert words is not None, "a place is in a chunk that is there"
        return words[first:]


class RingWriter:
    """Gives rings other endpoints, all at once at the end. `indexes` are the rings that are to be written; those not
    in `known` are new.

    Slots that change hands go into transition where connections are not remembered one by one.
    """

    def __init__(self, kernel: Kernel, indexes: Collection[int], known: Collection[int]) -> None:
        self._kernel, self._known = kernel, known
        self._outcomes: dict[int, Outcome] = dict.fromkeys(indexes)
        self._written: dict[int, _Written] = {}
        self.checksums: dict[int, int] = {}
        """Of the slots that were written."""
        try:
            self._direct = protocols(kernel, indexes).keys()
            self._rings = Rings(kernel)
            # Chunks stay the same when a program takes over, also if `rings` doesn't. Where it could not take over
            # yet, the former one still reads what its own heads lead to.
            heads = [self._rings.heads, *kernel.words_elsewhere(RINGS.name)]
            self._free = FreeLines(np.concatenate(heads), self._rings.chunks)
            # Programs may still read lines that a ring has left just now.
            kernel.wait_for_programs(RING_CHUNKS.name)
        except KernelError as error:
            self._outcomes = dict.fromkeys(indexes, error)

    def write(self, wanted: Mapping[int, Slots], dead: Mapping[int, Slots] = MappingProxyType({})) -> None:
        """Write some of the rings to lines that nobody uses. No datagram goes to the `dead` endpoints of a ring any
        more. Rings that are alike are worked out together."""
        alike: dict[tuple[int, int], list[int]] = {}
        before: dict[int, Place] = {}
        for index, endpoints in wanted.items():
            if self._outcomes[index] is not None:
                continue
            place = self._rings.place(index) if index in self._known else None
            if place is not None:
                before[index] = place
            former = place.slots if place and index in self._direct else 0
            alike.setdefault((former, endpoints.size), []).append(index)
        for (former, size), indexes in alike.items():
            step = max(1, _SLOTS_TOGETHER // max(former, size, 1))
            for some in (indexes[first : first + step] for first in range(0, len(indexes), step)):
                self._write(some, before, np.stack([wanted[index] for index in some]), dead, moves=bool(former))

    def flip(self) -> dict[int, Outcome]:
        """Have the heads lead to what was written. One outcome for each ring."""
        heads = {index: new.after.head if new.after else 0 for index, new in self._written.items()}
        changed = {index: head for index, head in heads.items() if head != self._rings.heads[index]}
        self._outcomes |= _write_heads(self._kernel, changed)
        for index, new in self._written.items():
            if not self._outcomes[index]:
                _carry_uses(self._rings, new)
        return self._outcomes

    def _write(
        self, indexes: Sequence[int], before: Mapping[int, Place], endpoints: SlotsOfMany, dead: Mapping[int, Slots],
        *, moves: bool,
    ) -> None:  # fmt: skip
        """Write rings with as many slots, a line of `endpoints` each. If their slots `moves`, they go into transition,
        and all had as many before."""
        former = [
            self._rings.rows(place) if (place := before.get(index)) and place.has_rows else None
            for index in indexes
        ]
        words, rows = endpoints, None
        has_rows: list[bool] = [False] * len(indexes)
        if moves:
            held = np.stack([self._rings.slots(before[index]) for index in indexes])
            words, rows = _after(held, former, endpoints, [dead.get(index) for index in indexes])
            has_rows = np.logical_or.reduce(words >= slots.IN_TRANSITION, axis=1).tolist()
        forms = chunks.forms_of(words)
        contents, checksums = chunks.written(words, forms), slots.checksums(words)
        for i, index in enumerate(indexes):
            own, numbers = rows[i] if rows is not None and has_rows[i] else None, None
            if own is not None and forms[i].can_share_rows:
                own[words[i] < slots.IN_TRANSITION] = 0
                own, numbers = slots.shared(own, slots.now()) or (own, None)
            try:
                place = self._place(words.shape[1], forms[i], has_rows=has_rows[i], shares_rows=numbers is not None)
            except KernelError as error:
                self._outcomes[index] = error
                continue
            if place is not None:
                self._rings.write(place, contents[i], own, numbers)
            self._written[index] = _Written(before.get(index), former[i], place)
            self.checksums[index] = checksums[i]

    def _place(self, size: int, form: Form, *, has_rows: bool, shares_rows: bool) -> Place | None:
        """Where a ring may be written; None if it has no slots. Raises KernelError."""
        if not size:
            return None
        lines = chunks.lines_of(size, has_rows=has_rows, form=form, shares_rows=shares_rows)
        if lines > CHUNK_LINES or size > slots.MAX_SLOTS:
            raise KernelError(f"{size:,} slots are more than a ring can have")
        return Place(*self._rings.take(self._free, lines), size, has_rows, form, shares_rows)


class _Written(NamedTuple):
    """A ring that was written, but that its head does not lead to yet. `rows` are those of the former place."""

    before: Place | None
    rows: Words | None
    after: Place | None


def _after(
    before: SlotsOfMany, former: Sequence[Words | None], endpoints: SlotsOfMany, dead: Sequence[Slots | None]
) -> tuple[SlotsOfMany, WordsOfMany]:
    """The slots and rows of rings, a line each, once they have these endpoints; `former` are the rows before.

    A ring that loses its last endpoint keeps its slots, without an endpoint: open connections still need their former
    endpoints.
    """
    wanted = endpoints if endpoints.size else np.tile(slots.NOBODY, (len(endpoints), 1))
    if before.shape == wanted.shape:
        rows = np.zeros(before.shape, np.uint64)
        for line, known in zip(rows, former, strict=True):
            if known is not None:
                line[:] = known
    else:
        pairs = [slots.fitted(slots.held(b, f), w) for b, f, w in zip(before, former, wanted, strict=True)]
        before, wanted = np.stack([held.slots for held, _ in pairs]), np.stack([fitted for _, fitted in pairs])
        rows = np.stack([slots.packed(held.rows) for held, _ in pairs])
    # Most slots keep their endpoints, and nothing else of them changes.
    moves = np.flatnonzero((before & slots.ENDPOINT_MASK) != wanted)
    after = wanted | (before & slots.IN_TRANSITION)
    held = slots.changed(slots.held(before.take(moves), rows.take(moves)), wanted.take(moves), slots.now())
    after.put(moves, held.slots)
    rows.put(moves, slots.packed(held.rows))
    for line, some in zip(rows, dead, strict=True):
        if some is not None and some.size:
            line[:] = slots.without_datagrams_to(some, line)
    return after, rows


def _carry_uses(rings: Rings, new: _Written) -> None:
    """Note what the program noted in the former rows while the new ones were made: that a former endpoint was used."""
    if new.before is None or new.after is None or new.rows is None or new.before.slots != new.after.slots:
        return
    now = rings.rows(new.before)
    differs = np.flatnonzero(now != new.rows)
    if differs.size and new.after.has_rows:
        rings.note_uses(new.after, differs, now[differs])


def _write_heads(kernel: Kernel, heads: Mapping[int, int]) -> dict[int, Outcome]:
    rows = [RINGS.pack(Number(index), Head(head)) for index, head in heads.items()]
    return dict(zip(heads, kernel.update(RINGS.name, rows), strict=True))


def remove_rings(kernel: Kernel, indexes: Sequence[int]) -> list[Outcome]:
    """Remove rings and their rows; one outcome each."""
    return kernel.delete(RINGS.name, [RINGS.key.pack(Number(index)) for index in indexes])


def in_transition(kernel: Kernel) -> dict[int, Held]:
    """The rings that have slots in transition, or rows for some, by index."""
    rings = Rings(kernel)
    return {index: rings.held(place) for index, place in rings.in_transition().items()}


def former_endpoints(kernel: Kernel) -> set[int]:
    """The numbers of the endpoints that slots in transition had before."""
    rows = [ring.rows[ring.moving] for ring in in_transition(kernel).values()]
    columns = [some[column] for some in rows for column in ("stream", "datagram")]
    return {int(number) for column in columns for number in np.unique(column) if number}


def settling(kernel: Kernel, now: int, at_once: int) -> Iterator[Callable[[], int]]:
    """As `settle`, in steps that are about so many rings each, for whoever has others to let in between."""
    words = kernel.words(RINGS.name)
    left = [] if words is None else chunks.with_rows(words).tolist()
    for first in range(0, max(len(left), 1), at_once):
        yield partial(settle, kernel, now, left[first : first + at_once])


def settle(kernel: Kernel, now: int, of: Collection[int] | None = None) -> int:
    """End the transitions that no connection needs any more, of these rings, or None: of all; returns the number of
    slots. Raises KernelError."""
    rings = Rings(kernel)
    moving = rings.in_transition()
    if of is not None:
        moving = {index: moving[index] for index in of if index in moving}
    used_by = protocols(kernel, moving) if moving else {}
    ended = 0
    heads: dict[int, int] = {}
    free: FreeLines | None = None
    for index, place in moving.items():
        before = rings.held(place)
        after = slots.settled(before, idle(used_by.get(index, ())), now)
        over = np.flatnonzero(before.moving & ~after.moving)
        rings.end_transitions(place, over)
        ended += over.size
        if not after.moving.any():
            if place.shares_rows and free is None:
                kernel.wait_for_programs(RING_CHUNKS.name)
                free = FreeLines(rings.heads, rings.chunks)
            heads[index] = (rings.copied(place, free) if free else place._replace(has_rows=False)).head
    for error in filter(None, _write_heads(kernel, heads).values()):
        raise error
    rings.heads[list(heads)] = list(heads.values())
    if unused := chunks.unused(rings.heads, rings.chunks):
        kernel.remove_chunks(RING_CHUNKS.name, unused)
    return ended


def idle(protocols_: Iterable[int]) -> int:
    """How long a former endpoint may be unused while a transition goes on, in the unit of `slots`.

    This depends on the protocols of the services; without services it is no time at all, as no packet can use one.
    """
    return max((slots.DATAGRAM_IDLE if number == UDP else slots.STREAM_IDLE for number in protocols_), default=-1)


def indexes_in_use(kernel: Kernel) -> set[int]:
    """The rings that services use, by index."""
    found: set[int] = set()
    for spec in SERVICE_MAPS.values():
        found.update(spec.value.array(kernel.joined(spec.name)[1])["ring"].tolist())
    return found


def protocols(kernel: Kernel, of: Collection[int] | None = None) -> dict[int, set[int]]:
    """The IP protocols of the services that use a ring in a mode of direct server return, or in nat without memory, by
    the ring's index; None: of all rings.

    Connections of other modes are remembered one by one, and need no help when a slot changes hands. Pings are no
    connections at all.
    """
    found: dict[int, set[int]] = {}
    for spec in SERVICE_MAPS.values():
        keys, values = kernel.joined(spec.name)
        rings, modes = (spec.value.array(values)[name] for name in ("ring", "mode"))
        numbers = spec.key.array(keys)["protocol"]
        asked = np.isin(modes, [ModeCode.DSR_L2, ModeCode.DSR_L3, *STATELESS_MODES]) & ~np.isin(numbers, PINGS)
        if of is not None:
            asked &= np.isin(rings, list(of))
        for ring, number in zip(rings[asked].tolist(), numbers[asked].tolist(), strict=True):
            found.setdefault(ring, set()).add(number)
    return found
