# SPDX-License-Identifier: Apache-2.0
"""Drift that comes back again and again: another program keeps writing the objects that lbctl writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from reconciler.resource import Key

FIGHT = 5
"""A key that was mended so often within WINDOW_S is being fought over."""
WINDOW_S = 600.0
PAUSE_S = 60.0
"""A key that is being fought over is mended once in so long: two programs that overwrite each other at full speed hurt
more than a wrong value, but a wrong value must not stay. Resources that traffic needs are always mended at once."""


class Fights:
    """When each key was mended lately. Times are of any monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._mended: dict[Key, deque[float]] = {}

    def mended(self, keys: Iterable[Key], now: float) -> list[Key]:
        """Remember that drift of these keys was mended; returns the keys over which a fight began just now."""
        self._mended = {key: times for key, times in self._mended.items() if times[-1] > now - WINDOW_S}
        begun = []
        for key in keys:
            times = self._mended.setdefault(key, deque(maxlen=FIGHT))
            was_fought = _is_fight(times, now)
            times.append(now)
            if _is_fight(times, now) and not was_fought:
                begun.append(key)
        return begun

    def on(self, now: float) -> set[Key]:
        """The keys that are being fought over."""
        return {key for key, times in self._mended.items() if _is_fight(times, now)}

    def rests(self, key: Key, now: float) -> bool:
        """Whether drift of this key is left alone for now."""
        times = self._mended.get(key)
        return times is not None and _is_fight(times, now) and now < times[-1] + PAUSE_S


def _is_fight(times: deque[float], now: float) -> bool:
    return len(times) == FIGHT and times[0] > now - WINDOW_S
