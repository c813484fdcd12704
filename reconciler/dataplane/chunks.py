# SPDX-License-Identifier: Apache-2.0
"""Where rings lie in their chunks (bpf/maps.h): heads, and the lines that are free.

Nobody keeps account of free lines: whatever no head leads to is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import CHUNK_LINES
from reconciler.dataplane.slots import MAX_SLOTS, Words

SLOTS_A_LINE, ROWS_A_LINE = 16, 8
WORDS_A_LINE = 8
_HAS_ROWS_SHIFT, _LINE_SHIFT, _CHUNK_SHIFT = 31, 32, 48

Numbers = NDArray[np.int64]


class Place(NamedTuple):
    """Where a ring lies: its first line in a chunk, its count of slots, whether rows lie behind the slots."""

    chunk: int
    line: int
    slots: int
    has_rows: bool

    @property
    def head(self) -> int:
        """The word of `rings` that leads there."""
        return self.chunk << _CHUNK_SHIFT | self.line << _LINE_SHIFT | self.has_rows << _HAS_ROWS_SHIFT | self.slots

    @property
    def first_word(self) -> int:
        """Of the slots, in the words of the chunk; two slots are one word."""
        return self.line * WORDS_A_LINE

    @property
    def first_row(self) -> int:
        """The word of the chunk that is the first row."""
        return (self.line + -(-self.slots // SLOTS_A_LINE)) * WORDS_A_LINE


def place_of(head: int) -> Place:
    """The reverse of `Place.head`."""
    has_rows = bool(head >> _HAS_ROWS_SHIFT & 1)
    return Place(head >> _CHUNK_SHIFT, head >> _LINE_SHIFT & CHUNK_LINES - 1, head & MAX_SLOTS, has_rows)


def lines_of(slots: int, *, has_rows: bool) -> int:
    """How many lines a ring takes."""
    return -(-slots // SLOTS_A_LINE) + has_rows * -(-slots // ROWS_A_LINE)


def with_rows(heads: Words) -> Numbers:
    """The indexes of the rings that have rows."""
    return np.flatnonzero(heads >> np.uint64(_HAS_ROWS_SHIFT) & np.uint64(1))


def sound(heads: Words, chunks: Iterable[int]) -> NDArray[np.bool_]:
    """Which of these heads lead to slots in one of the chunks that are no other ring's, too."""
    starts, ends = _spans(heads)
    is_there = np.zeros(1 << 16, np.bool_)
    is_there[list(chunks)] = True
    good: NDArray[np.bool_] = (ends > starts) & is_there[starts // CHUNK_LINES]
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
    starts = (heads >> np.uint64(_LINE_SHIFT)).astype(np.int64)
    slots = (heads & np.uint64(MAX_SLOTS)).astype(np.int64)
    rows = (heads >> np.uint64(_HAS_ROWS_SHIFT) & np.uint64(1)).astype(np.int64)
    return starts, starts + -(-slots // SLOTS_A_LINE) + rows * -(-slots // ROWS_A_LINE)
