# SPDX-License-Identifier: Apache-2.0
"""The loop's wakes: files have settled, an operator sent a signal, or time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from queue import Empty, SimpleQueue

from reconciler.resource import Key

QUIET_S = 0.2
"""Files count as settled after so long without a change: an editor, git or a sync tool is done by then."""
SETTLED_QUIET_S = 0.02
"""The same if what has changed is complete: a file that was renamed into its place, a checkout whose lock is gone. Of
several such changes, this is to hear of all at once."""
SETTLE_S = 2.0
"""The directory is read after so long, even if its files are still changing."""
SIGNAL_S = 0.5
"""How long a signal may go unheard. The system may give it to the thread that watches files; Python then runs
its handler only when the main thread, which a wait for a lock keeps asleep, gets up the next time."""


class Wake(StrEnum):
    FILES = "files"
    SETTLED = "settled"
    """Files have changed, and all of the change is there already; `wait` returns FILES for it."""
    RELOAD = "reload"
    STOP = "stop"
    TIME = "time"
    KEYS = "keys"
    HEALTH = "health"
    """Something was learned of endpoints; `wait` returns KEYS for it."""


class Doorbell:
    """Rung by signal handlers and by the thread that watches files; the loop waits on it.

    A SimpleQueue carries the rings: its `put` is the one way to wake a thread that is safe inside a signal
    handler.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, rings: SimpleQueue[Wake | Key] | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`alive` is called again and again during a wait."""
        self._clock = clock
        self._alive = alive
        self._rings = rings or SimpleQueue()
        self._named: set[Key] = set()
        self._heard_s: float | None = None
        self.files_s: float | None = None
        """When files were first heard to change, of the changes that `wait` returned FILES for last."""

    def ring(self, wake: Wake) -> None:
        if self._heard_s is None and wake in (Wake.FILES, Wake.SETTLED):
            self._heard_s = self._clock()
        self._rings.put(wake)

    def name(self, keys: Iterable[Key]) -> None:
        """Have these keys looked at, at once."""
        for key in keys:
            self._rings.put(key)

    def named(self) -> Collection[Key]:
        """The keys that were named before `wait` returned; they are forgotten here."""
        named, self._named = self._named, set()
        return named

    def has_rung(self) -> bool:
        """Whether `wait` would hear of something at once."""
        return not self._rings.empty()

    def wait(self, timeout_s: float) -> Wake:
        """Wait for a reason to look again: at most `timeout_s`, or SETTLE_S more if files are changing by then."""
        deadline, latest = self._clock() + timeout_s, math.inf
        moving = is_called = False
        while True:
            self._alive()
            left_s = max(0.0, deadline - self._clock())
            try:
                wake = self._rings.get(timeout=min(left_s, SIGNAL_S))
            except Empty:
                if left_s > SIGNAL_S:
                    continue
                if self._named or is_called:
                    if moving:
                        self.ring(Wake.FILES)  # they have not settled yet
                    return Wake.KEYS
                return self._of_files() if moving else Wake.TIME
            if isinstance(wake, Key) or wake is Wake.HEALTH:
                is_called = True
                if isinstance(wake, Key):
                    self._named.add(wake)
                deadline = self._clock()  # and the other keys that are named already
                continue
            if wake not in (Wake.FILES, Wake.SETTLED):
                if wake is Wake.RELOAD:
                    self._of_files()  # they are read, too
                return wake
            now = self._clock()
            if not moving:
                moving, latest = True, now + SETTLE_S
            deadline = min(now + (SETTLED_QUIET_S if wake is Wake.SETTLED else QUIET_S), latest)

    def _of_files(self) -> Wake:
        self.files_s, self._heard_s = self._heard_s, None
        return Wake.FILES
