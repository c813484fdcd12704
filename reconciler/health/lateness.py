# SPDX-License-Identifier: Apache-2.0
"""How late things are: a histogram whose buckets are an eighth of a power of two wide."""

from __future__ import annotations

from math import log2

_BUCKETS = 256
_PARTS = 8
_FIRST_S = 1e-5


class Lateness:
    """Counts of times in seconds, from 10 µs to beyond an hour."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.counts = [0] * _BUCKETS
        self.total = 0
        self.max_s = 0.0

    def record(self, late_s: float) -> None:
        self.total += 1
        if late_s > _FIRST_S:
            self.max_s = max(self.max_s, late_s)
            self.counts[min(_BUCKETS - 1, 1 + int(log2(late_s / _FIRST_S) * _PARTS))] += 1
        else:
            self.counts[0] += 1

    def quantile_s(self, part: float) -> float:
        """A time that this part of all stays below, e.g. 0.99; up to 9 % too high."""
        left = part * self.total
        for bucket, count in enumerate(self.counts):
            left -= count
            if left <= 0:
                return min(self.max_s, _FIRST_S * 2.0 ** (bucket / _PARTS)) if bucket else 0.0
        return self.max_s
