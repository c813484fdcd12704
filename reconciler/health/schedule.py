# SPDX-License-Identifier: Apache-2.0
"""When each target is checked. Pure: the time is an argument, and so is chance.

At its usual interval a target is checked on a grid of its own: a hash of node and target is the phase, so the checks
of one node are spread evenly, those of two balancers don't coincide, and a restart changes nothing. Each check is
moved by up to five per cent, so that nothing else of that period stays in step with it. A check doesn't start before
the last one of the same target has ended.

When there is more to do than may be in flight, those are checked first whose answer may change something. The healthy
ones are late, but get a quarter of the room, so that they aren't forgotten.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from math import floor

from reconciler.health.lateness import Lateness
from reconciler.health.target import Target

JITTER = 0.05
_CALM_PART = 4
_FEW = 64


class _Slot:
    """`due_s`: when the next check should begin. `number` tells which entry of the heap is the slot's: the others are
    left over."""

    __slots__ = ("due_s", "is_flying", "is_urgent", "is_wanted", "number", "phase", "started_s", "target")

    def __init__(self, target: Target, phase: float) -> None:
        self.target = target
        self.phase = phase
        self.due_s = self.started_s = 0.0
        self.number = 0
        self.is_wanted = self.is_urgent = True
        self.is_flying = False


class Schedule:
    """The targets of a node, named by `seed`, and when each is due."""

    def __init__(self, seed: bytes = b"", chance: random.Random | None = None) -> None:
        self.lateness = Lateness()
        self._seed = seed
        self._chance = chance or random.Random()
        self._slots: dict[Target, _Slot] = {}
        self._heap: list[tuple[float, int, _Slot]] = []
        self._urgent: deque[tuple[int, _Slot]] = deque()
        self._calm: deque[tuple[int, _Slot]] = deque()
        self._number = 0
        self._flying = self._turn = 0

    @property
    def in_flight(self) -> int:
        return self._flying

    def add(self, targets: Iterable[Target], now_s: float, is_known: bool = False) -> None:
        """Check these from now on. New ones are spread over their fast interval; those whose state `is_known` take
        their place on the grid. Those that are there already stay as they are."""
        for target in targets:
            slot = self._slots.get(target)
            if slot is None:
                slot = self._slots[target] = _Slot(target, _phase(self._seed, target))
                slot.is_urgent = not is_known
                due_s = self._on_grid(slot, now_s) if is_known else now_s + slot.phase * target.fast_s
                self._enter(slot, due_s)
            slot.is_wanted = True

    def remove(self, targets: Iterable[Target]) -> None:
        """Check these no more. One that is in flight keeps its place until it has ended."""
        for target in targets:
            if slot := self._slots.get(target):
                slot.is_wanted = False
                if not slot.is_flying:
                    del self._slots[target]
                    slot.number = -1
        if len(self._heap) > 2 * len(self._slots) + _FEW:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].number]
            heapify(self._heap)

    def hurry(self, target: Target, now_s: float) -> None:
        """Check a target at once, unless that is being done: somebody has seen it fail."""
        slot = self._slots.get(target)
        if slot is not None and not slot.is_flying and not (slot.is_urgent and slot.due_s <= now_s):
            slot.is_urgent = True
            self._enter(slot, min(slot.due_s, now_s))

    def due(self, now_s: float, room: int) -> list[Target]:
        """The targets whose check begins now, `room` at most."""
        while self._heap and self._heap[0][0] <= now_s:
            _, number, slot = heappop(self._heap)
            if number == slot.number:
                (self._urgent if slot.is_urgent else self._calm).append((number, slot))
        begun: list[Target] = []
        while len(begun) < room and (next_one := self._take()):
            next_one.is_flying, next_one.started_s = True, now_s
            self._flying += 1
            self.lateness.record(now_s - next_one.due_s)
            begun.append(next_one.target)
        return begun

    def done(self, target: Target, now_s: float, pace_s: float, is_urgent: bool) -> bool:
        """A check has ended; the next one begins `pace_s` after it began. Whether the target is still wanted."""
        slot = self._slots[target]
        slot.is_flying = False
        self._flying -= 1
        if not slot.is_wanted:
            del self._slots[target]
            return False
        slot.is_urgent = is_urgent
        if pace_s == target.interval_s:
            self._enter(slot, self._on_grid(slot, max(now_s, slot.started_s + pace_s / 2)))
        else:
            self._enter(slot, max(now_s, slot.started_s + pace_s * self._jitter()))
        return True

    def next_s(self) -> float | None:
        """When something is due next; None if nothing is to be begun. In the past if it waits for room."""
        if self._urgent or self._calm:
            return (self._urgent or self._calm)[0][1].due_s
        while self._heap and self._heap[0][1] != self._heap[0][2].number:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due_s(self, target: Target) -> float | None:
        """When a target is due; None while it is being checked, or if it isn't here."""
        slot = self._slots.get(target)
        return None if slot is None or slot.is_flying else slot.due_s

    def _enter(self, slot: _Slot, due_s: float) -> None:
        self._number += 1
        slot.number, slot.due_s = self._number, due_s
        heappush(self._heap, (due_s, self._number, slot))

    def _take(self) -> _Slot | None:
        """The next one that waits for room: of four, three of the urgent ones if there are any."""
        while self._urgent or self._calm:
            self._turn += 1
            is_calm = not self._urgent or (self._calm and self._turn % _CALM_PART == 0)
            number, slot = (self._calm if is_calm else self._urgent).popleft()
            if number == slot.number:
                return slot
        return None

    def _on_grid(self, slot: _Slot, after_s: float) -> float:
        """The next point of a target's grid, moved a little, but not before `after_s`."""
        interval_s = slot.target.interval_s
        point_s = (floor(after_s / interval_s - slot.phase) + 1 + slot.phase) * interval_s
        return max(after_s, point_s + (self._jitter() - 1) * interval_s)

    def _jitter(self) -> float:
        return 1 + self._chance.uniform(-JITTER, JITTER)


def _phase(seed: bytes, target: Target) -> float:
    """From 0 to 1."""
    return int.from_bytes(blake2b(target.digest, key=seed[:64], digest_size=8).digest(), "big") / 2**64
