# SPDX-License-Identifier: Apache-2.0
"""How much of a CPU the agent spends on questions of those who may only ask."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05
"""Of a CPU, in the long run."""
BURST_S = 2.0
"""What may be spent at once by those who asked for nothing for a while: a few questions of a person."""


class Budget:
    """CPU time that fills up again while nobody spends it. Not for several threads at once."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep,
        share: float = SHARE, burst_s: float = BURST_S,
    ) -> None:  # fmt: skip
        self._clock, self._pause = clock, pause
        self._share, self._burst_s = share, burst_s
        self._left_s, self._at_s = burst_s, clock()

    def wait(self, patience_s: float) -> bool:
        """Wait until something is left, no longer than this; whether something is."""
        missing_s = self.missing_s()
        if missing_s > patience_s:
            return False
        if missing_s > 0:
            self._pause(missing_s)
        return True

    def missing_s(self) -> float:
        """How long it takes until something is left; 0 if something is."""
        return max(0.0, -self._filled() / self._share)

    def spend(self, seconds: float) -> None:
        self._left_s = self._filled() - seconds

    def _filled(self) -> float:
        now_s = self._clock()
        self._left_s = min(self._burst_s, self._left_s + (now_s - self._at_s) * self._share)
        self._at_s = now_s
        return self._left_s
