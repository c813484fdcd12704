# SPDX-License-Identifier: Apache-2.0
"""Sorted numbers, of which a few change at a time."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Sequence

_FEW = 200  # to move the rest of a list of 100,000 takes some ten microseconds, to sort it anew some milliseconds


class SortedNumbers:
    """A sorted list in which a number may occur several times."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    @property
    def all(self) -> Sequence[int]:
        return self._numbers

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._numbers, number)
        return at < len(self._numbers) and self._numbers[at] == number

    def change(self, gone: Collection[int], new: Collection[int]) -> None:
        """Take numbers out, which must be there, and put others in."""
        if len(gone) + len(new) > _FEW:
            rest = self._numbers
            if gone:
                left = Counter(rest)
                left.subtract(gone)
                rest = list(left.elements())
            self._numbers = sorted([*rest, *new])
            return
        for number in gone:
            at = bisect_left(self._numbers, number)
            assert self._numbers[at] == number, number
            del self._numbers[at]
        for number in new:
            insort(self._numbers, number)
