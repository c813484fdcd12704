# SPDX-License-Identifier: Apache-2.0
"""The process that checks: `python -m reconciler.health.checker FILE RECORD`.

A process of its own, so that checks are on time whatever the agent works at, and the agent's rounds wait for no check.
It hears on standard input what is to be checked, says on standard output what has changed, writes all it knows to
FILE, and ends when the agent does, however that ends. RECORD is the name of the file beside it that is written with
each change of the node.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from reconciler.errors import FilesError
from reconciler.health.descriptors import raise_limit
from reconciler.health.monitor import Monitor
from reconciler.health.prober import Prober
from reconciler.health.row import Clocks
from reconciler.health.schedule import Schedule
from reconciler.health.state import Health
from reconciler.health.store import Progress, Store, clocks
from reconciler.health.target import Target
from reconciler.health.through import Through
from reconciler.health.unanswered import Unanswered
from reconciler.health.wire import Edit, Messages, News, packed
from reconciler.kernel import next_hop

LISTEN_S = 0.05
"""How long edits may go unheard."""
TELL_S = 1.0
"""How often the progress is written down."""
LATENESS_S = 10.0
"""For how long lateness is counted until that is told, and counted anew."""
CALM_ROWS = 1000
"""So many states in which nothing has changed but when they were seen are written down in TELL_S: for more than that,
`get health` may be late, and checks are worth more."""
_PIPE_BYTES = 1 << 16


class Checker:
    """The checks of one agent. `hear` and `say` are the descriptors of its pipes."""

    def __init__(self, path: Path, record: str, hear: int, say: int) -> None:
        self._path, self._hear, self._say = path, hear, say
        self._messages = Messages()
        self._schedule = Schedule(socket.gethostname().encode(), random.Random())
        self._prober = Prober()
        self._through = Through(path.parent, record)
        self._unanswered = Unanswered(path.parent, record)
        self._monitor = Monitor(self._prober, self._schedule, way_of=self._through.way, lack_of_way=_lack_of_way)
        self._store: Store | None = None
        self._told_s = self._suspect_s = 0.0
        self._counts_since_s = time.monotonic()
        self._late_p99_s: float | None = None
        self._trouble = ""
        self._calm_rows = CALM_ROWS
        self._written: dict[Target, tuple[object, ...]] = {}
        """What was written down last."""
        self._checks = 0
        os.set_blocking(hear, False)

    def run(self) -> None:
        """Check until the agent is gone."""
        while self._listen():
            if servers := self._unanswered.look():
                self._monitor.hurry(servers)
            transitions = self._monitor.run(LISTEN_S)
            learned = self._monitor.take_learned()
            self._checks += len(learned)
            if any(target.vip is not None and _has_begun_to_fail(self._monitor, target) for target in learned):
                self._through.doubt()
            times = clocks()
            if self._store is not None:
                try:
                    for target in learned:
                        self._write(target, self._store, times)
                    self._tell()
                except FilesError as error:
                    self._complain(str(error))
            suspicion = self._monitor.suspicion
            suspect_s = suspicion.until_s if suspicion is not None and self._monitor.is_suspect() else 0.0
            is_new, self._suspect_s = suspect_s != self._suspect_s, suspect_s
            if transitions or is_new:
                changed = {change.target.digest: change.after for change in transitions}
                why = suspicion.why if suspicion is not None else ""
                self._send(News(changed, suspect_s if is_new else None, why))

    def _write(self, target: Target, store: Store, times: Clocks) -> None:
        state = self._monitor.states.get(target)
        if state is None:
            return
        facts = state.health, state.streak, state.shown_share, state.error, state.is_held
        if self._written.get(target) == facts:
            if not self._calm_rows:
                return
            self._calm_rows -= 1
        self._written[target] = facts
        store.put(target.digest, state, self._monitor.next_check_s(target), times)

    def _listen(self) -> bool:
        """Heed what the agent said meanwhile; False if it is gone."""
        while True:
            try:
                data = os.read(self._hear, _PIPE_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            for message in self._messages.feed(data):
                if isinstance(message, Edit):
                    self._heed(message)

    def _heed(self, edit: Edit) -> None:
        before = set(self._monitor.states)
        self._monitor.edit(edit.targets, edit.states)
        self._monitor.max_in_flight = raise_limit(len(self._monitor.states))
        try:
            if self._store is None or edit.is_all:
                if self._store is not None:
                    self._store.close()
                    self._store = None
                self._written.clear()
                self._store = Store(self._path, ((t.digest, state) for t, state in self._monitor.states.items()))
            else:
                times = clocks()
                gone = before - self._monitor.states.keys()
                for target in self._monitor.states.keys() - before:
                    self._store.put(target.digest, self._monitor.states[target], None, times)
                self._store.drop(target.digest for target in gone)  # last: whoever reads meanwhile knows one of them
                for target in gone:
                    self._written.pop(target, None)
        except FilesError as error:
            self._complain(str(error))
        gc.collect()
        gc.freeze()  # Targets stay: to look for cycles among them would take longer than many checks.

    def _tell(self) -> None:
        now_s = time.monotonic()
        if self._store is not None and now_s - self._told_s >= TELL_S:
            self._told_s, self._calm_rows = now_s, CALM_ROWS
            self._store.tell(
                Progress(
                    os.getpid(), now_s, self._suspect_s, len(self._monitor.states), self._schedule.in_flight,
                    self._lateness_s(now_s), self._checks,
                ), clocks(),
            )  # fmt: skip

    def _lateness_s(self, now_s: float) -> float:
        """The lateness that 99 % of checks stay below, of the last ten seconds or so."""
        lateness = self._schedule.lateness
        if now_s - self._counts_since_s >= LATENESS_S:
            self._late_p99_s, self._counts_since_s = lateness.quantile_s(0.99), now_s
            lateness.clear()
        return lateness.quantile_s(0.99) if self._late_p99_s is None else self._late_p99_s

    def _complain(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            self._send(News(trouble=text))

    def _send(self, news: News) -> None:
        data = packed(news)
        while data:
            data = data[os.write(self._say, data) :]


def _has_begun_to_fail(monitor: Monitor, target: Target) -> bool:
    state = monitor.states.get(target)
    if state is None:
        return False
    return state.streak > 0 if state.health is Health.UP else state.since_s == state.checked_s


def _lack_of_way(target: Target) -> str:
    return next_hop.lack_of_way(target.address)


def main() -> None:
    # A terminal, or systemd, sends them to all processes of an agent; the agent's end is ours.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    say = os.dup(1)
    os.dup2(2, 1)
    with suppress(BrokenPipeError):  # the agent is gone
        Checker(Path(sys.argv[1]), sys.argv[2], 0, say).run()


if __name__ == "__main__":
    main()
