# SPDX-License-Identifier: Apache-2.0
"""Where rings lie in their chunks (bpf/maps.h): heads, the form of their slots, and the lines that are free.

Nobody keeps account of free lines: whatever no head leads to is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import CHUNK_LINES
from reconciler.dataplane.ring import Slots
from reconciler.dataplane.slots import ENDPOINT_MASK, IN_TRANSITION, MAX_SLOTS, SHARED_ROWS, Words

LINE_BYTES = 64
ROWS_A_LINE = 8
SLOTS_OF_SHARED = 32
"""In a line where rows are shared; its other half has the numbers of their rows."""
WORDS_A_LINE = 8
_BASE_SHIFT, _HAS_ROWS_SHIFT, _LINE_SHIFT, _CHUNK_SHIFT, _SHARES_ROWS_SHIFT, _NARROW_SHIFT = 19, 31, 32, 48, 60, 62
_BASE_STEP, _BASES, _CHUNKS = 32, 1 << 12, 1 << 12

Numbers = NDArray[np.int64]


class Form(NamedTuple):
    """How the slots of a ring are written: as numbers of 4 >> `narrow` bytes above `base`. The highest bit is the mark
    of a transition; 0 stands for no endpoint."""

    narrow: int = 0
    base: int = 0

    @property
    def can_share_rows(self) -> bool:
        """Whether slots have one byte, as the numbers of shared rows do."""
        return self.narrow == 2
    def written(self, slots: Slots) -> NDArray[np.uint8]:
        """The bytes of slots that this is the form of."""
        return _written(slots, self.narrow, np.uint32(self.base))

    def read(self, content: NDArray[np.uint8]) -> Slots:
        """The reverse of `written`."""
        if not self.narrow:
            return content.view(np.uint32)
        if self.narrow == 1:
            return self._read(content.view(np.uint16), 16)
        found: Slots = _of_bytes(self).take(content)
        return found

    def _read(self, content: NDArray[np.integer[Any]], bits: int) -> Slots:
        above = content.astype(np.uint32)
        marks = above >> np.uint32(bits - 1) << np.uint32(31)
        above &= np.uint32((1 << bits - 1) - 1)
        found: Slots = np.where(above == 0, above, above + np.uint32(self.base)) | marks
        return found


@lru_cache(maxsize=64)
def _of_bytes(form: Form) -> Slots:
    """The slot that each byte stands for; rings that were written together have the same form."""
    return form._read(np.arange(256), 8)


WIDE = Form()


def form_of(slots: Slots) -> Form:
    """The form of the fewest bytes in which these slots can be written."""
    return forms_of(slots[None])[0]


def forms_of(slots: Slots) -> list[Form]:
    """As `form_of`, of several rings, a line each."""
    if _is_plain(slots):
        most, least = slots.max(axis=1), slots.min(axis=1)
    else:
        numbers = slots & ENDPOINT_MASK
        most = numbers.max(axis=1, initial=0)
        least = np.where(numbers == 0, most[:, None], numbers).min(axis=1, initial=int(ENDPOINT_MASK))
    bases = (np.minimum(np.maximum(least, 1), most + 1) - 1) // _BASE_STEP * _BASE_STEP
    return [_form(base, last - base) for base, last in zip(bases.tolist(), most.tolist(), strict=True)]


def _form(base: int, span: int) -> Form:
    for narrow in (2, 1):
        if span < 1 << (32 >> narrow) - 1:
            return Form(narrow, base)
    return WIDE


def written(slots: Slots, forms: Sequence[Form]) -> list[NDArray[np.uint8]]:
    """The bytes of several rings, a line of slots each, in these forms."""
    found: list[NDArray[np.uint8]] = [_NO_BYTES] * len(forms)
    for narrow in {form.narrow for form in forms}:
        lines = [i for i, form in enumerate(forms) if form.narrow == narrow]
        bases = np.array([forms[i].base for i in lines], np.uint32)[:, None]
        for i, content in zip(lines, _written(slots[lines], narrow, bases), strict=True):
            found[i] = content
    return found


def _written(slots: Slots, narrow: int, base: Any) -> NDArray[np.uint8]:
    if not narrow:
        return np.ascontiguousarray(slots).view(np.uint8)
    if _is_plain(slots):
        above = slots - base
    else:
        bits = np.uint32(32 >> narrow)
        numbers = slots & ENDPOINT_MASK
        above = np.where(numbers == 0, numbers, numbers - base)
        above |= (slots & IN_TRANSITION) >> (np.uint32(32) - bits)
    written: NDArray[np.uint8] = above.astype(f"<u{4 >> narrow}").view(np.uint8)
    return written


def _is_plain(slots: Slots) -> bool:
    """Whether each slot has an endpoint, and none is in transition: nearly all are so, and take fewer sums."""
    return bool(slots.size and slots.min() > 0 and slots.max() <= ENDPOINT_MASK)


_NO_BYTES = np.zeros(0, np.uint8)


class Place(NamedTuple):
    """Where a ring lies: its first line in a chunk, its count of slots, whether rows lie behind them, their form, and
    whether slots of one byte share rows."""

    chunk: int
    line: int
    slots: int
    has_rows: bool
    form: Form = WIDE
    shares_rows: bool = False

    @property
    def head(self) -> int:
        """The word of `rings` that leads there."""
        form = self.form.narrow << _NARROW_SHIFT | self.form.base // _BASE_STEP << _BASE_SHIFT
        at = self.chunk << _CHUNK_SHIFT | self.line << _LINE_SHIFT
        rows = self.has_rows << _HAS_ROWS_SHIFT | (self.has_rows and self.shares_rows) << _SHARES_ROWS_SHIFT
        return form | at | rows | self.slots

    @property
    def slot_bytes(self) -> int:
        """What all slots take, with the numbers of shared rows."""
        return slot_bytes(self.slots, self.form, shares_rows=self.shares_rows)

    @property
    def first_word(self) -> int:
        """Of the slots, in the words of the chunk."""
        return self.line * WORDS_A_LINE

    @property
    def first_row(self) -> int:
        """The word of the chunk that is the first row."""
        return (self.line + -(-self.slot_bytes // LINE_BYTES)) * WORDS_A_LINE

    def content(self, words: Words, half: int = 0) -> NDArray[np.uint8]:
        """The bytes of all slots, of the words of their chunk. Where rows are shared, those that begin in each line at
        byte `half`: SLOTS_OF_SHARED for the numbers of the rows."""
        content = words[self.first_word :].view(np.uint8)[: self.slot_bytes]
        return _halves(content, half).ravel()[: self.slots] if self.shares_rows else content

    def put(self, words: Words, content: NDArray[np.uint8], half: int = 0) -> None:
        """The reverse of `content`."""
        whole = words[self.first_word :].view(np.uint8)[: self.slot_bytes]
        if not self.shares_rows:
            whole[:] = content
            return
        halves, (full, rest) = _halves(whole, half), divmod(content.size, SLOTS_OF_SHARED)
        halves[:full] = content[: full * SLOTS_OF_SHARED].reshape(full, SLOTS_OF_SHARED)
        halves[full:, :rest], halves[full:, rest:] = content[content.size - rest :], 0

    @property
    def lines(self) -> int:
        """What the ring takes with its rows."""
        return lines_of(self.slots, has_rows=self.has_rows, form=self.form, shares_rows=self.shares_rows)

    @property
    def rows(self) -> int:
        """How many rows there is room for."""
        return SHARED_ROWS if self.shares_rows else self.slots


def _halves(content: NDArray[np.uint8], half: int) -> NDArray[np.uint8]:
    return content.reshape(-1, LINE_BYTES)[:, half : half + SLOTS_OF_SHARED]


def place_of(head: int) -> Place:
    """The reverse of `Place.head`."""
    has_rows = bool(head >> _HAS_ROWS_SHIFT & 1)
    form = Form(head >> _NARROW_SHIFT, (head >> _BASE_SHIFT & _BASES - 1) * _BASE_STEP)
    chunk, line = head >> _CHUNK_SHIFT & _CHUNKS - 1, head >> _LINE_SHIFT & CHUNK_LINES - 1
    shares_rows = has_rows and bool(head >> _SHARES_ROWS_SHIFT & 1)
    return Place(chunk, line, head & MAX_SLOTS, has_rows, form, shares_rows)


def slot_bytes(slots: int, form: Form, *, shares_rows: bool = False) -> int:
    """What slots take, with the numbers of shared rows: half of each line then."""
    return -(-slots // SLOTS_OF_SHARED) * LINE_BYTES if shares_rows else slots * (4 >> form.narrow)


def lines_of(slots: int, *, has_rows: bool, form: Form = WIDE, shares_rows: bool = False) -> int:
    """How many lines a ring takes."""
    rows = SHARED_ROWS if shares_rows else slots
    of_slots = slot_bytes(slots, form, shares_rows=has_rows and shares_rows)
    return -(-of_slots // LINE_BYTES) + has_rows * -(-rows // ROWS_A_LINE)


def with_rows(heads: Words) -> Numbers:
    """The indexes of the rings that have rows."""
    return np.flatnonzero(heads >> np.uint64(_HAS_ROWS_SHIFT) & np.uint64(1))


def sound(heads: Words, chunks: Iterable[int]) -> NDArray[np.bool_]:
    """Which of these heads lead to slots in one of the chunks that are no other ring's, too."""
    led = np.flatnonzero(heads)  # mostly few, of all that there may be
    found = np.zeros(heads.size, np.bool_)
    found[led] = _sound(heads[led], chunks)
    return found


def _sound(heads: Words, chunks: Iterable[int]) -> NDArray[np.bool_]:
    starts, ends = _spans(heads)
    is_there = np.zeros(1 << 16, np.bool_)
    is_there[list(chunks)] = True
    good: NDArray[np.bool_] = (ends > starts) & is_there[starts // CHUNK_LINES]
    good &= heads >> np.uint64(_NARROW_SHIFT) < 3
    good &= (ends - 1) // CHUNK_LINES == starts // CHUNK_LINES
    order = np.argsort(starts, kind="stable")
    order = order[ends[order] > starts[order]]
    if order.size > 1:
        furthest = np.maximum.accumulate(ends[order])
        clash = np.flatnonzero(starts[order][1:] < furthest[:-1])
        good[order[clash + 1]] = False
        # The ring that another one begins in is the one that reaches furthest of those before it.
        reach = np.maximum.accumulate(np.where(ends[order] == furthest, np.arange(order.size), 0))
        good[order[reach[clash]]] = False
    return good


class FreeLines:
    """The lines of chunks that no head leads to, given away from the first one on."""

    def __init__(self, heads: Words, chunks: Iterable[int]) -> None:
        self._chunks = set(chunks)
        starts, ends = _spans(heads)
        self._led_to = set((starts[ends > starts] // CHUNK_LINES).tolist())
        ends = np.minimum(ends, (starts // CHUNK_LINES + 1) * CHUNK_LINES)
        borders = np.array(sorted(self._chunks), np.int64) * CHUNK_LINES
        # The borders of each chunk are used, too, with no lines.
        starts = np.concatenate((starts, borders, borders + CHUNK_LINES))
        ends = np.concatenate((ends, borders, borders + CHUNK_LINES))
        order = np.lexsort((ends, starts))
        begin, end = np.maximum.accumulate(ends[order])[:-1], starts[order][1:]
        is_there = np.isin(begin // CHUNK_LINES, list(self._chunks))
        gaps = (end > begin) & is_there
        self._begin: list[int] = begin[gaps].tolist()
        self._end: list[int] = end[gaps].tolist()
        self._first_fit: dict[int, int] = {}

    def take(self, lines: int) -> tuple[int, int] | None:
        """Chunk and first line of as many lines in a row; None if there are none in any chunk."""
        gap = self._first_fit.get(lines, 0)  # gaps only shrink: what was too small before is so now
        while gap < len(self._begin) and self._end[gap] - self._begin[gap] < lines:
            gap += 1
        self._first_fit[lines] = gap
        if gap == len(self._begin):
            return None
        taken = self._begin[gap]
        self._begin[gap] += lines
        return divmod(taken, CHUNK_LINES)

    def next_chunk(self) -> int:
        """The index that another chunk may have: no head leads there, not even a damaged one."""
        taken = self._chunks | self._led_to
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def drop(self, chunk: int) -> None:
        """Give away nothing of a chunk that turns out not to be there."""
        self._chunks.discard(chunk)
        for gap, begin in enumerate(self._begin):
            if begin // CHUNK_LINES == chunk:
                self._end[gap] = begin

    def add(self, chunk: int) -> None:
        """Another chunk, all of it free."""
        self._chunks.add(chunk)
        self._begin.append(chunk * CHUNK_LINES)
        self._end.append((chunk + 1) * CHUNK_LINES)


def unused(heads: Words, chunks: Iterable[int]) -> list[int]:
    """The chunks that no head leads to."""
    starts, ends = _spans(heads)
    used = set(np.unique(starts[ends > starts] // CHUNK_LINES).tolist())
    return [chunk for chunk in chunks if chunk not in used]


def _spans(heads: Words) -> tuple[Numbers, Numbers]:
    """The first line of each ring and the one after its last, counted through all chunks."""
    starts = (heads >> np.uint64(_LINE_SHIFT) & np.uint64(_CHUNKS * CHUNK_LINES - 1)).astype(np.int64)
    slots = (heads & np.uint64(MAX_SLOTS)).astype(np.int64)
    has_rows = (heads >> np.uint64(_HAS_ROWS_SHIFT) & np.uint64(1)).astype(np.bool_)
    shares_rows = (heads >> np.uint64(_SHARES_ROWS_SHIFT) & np.uint64(1)).astype(np.bool_)
    of_slots = -(-(slots * 4 >> (heads >> np.uint64(_NARROW_SHIFT)).astype(np.int64)) // LINE_BYTES)
    lines = np.where(
        has_rows & shares_rows, -(-slots // SLOTS_OF_SHARED) + SHARED_ROWS // ROWS_A_LINE,
        of_slots + has_rows * -(-slots // ROWS_A_LINE),
    )  # fmt: skip
    return starts, starts + np.where(slots > 0, lines, 0)
