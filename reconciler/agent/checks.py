# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the checks: starts the process that checks, tells it what to check, and hears what it found.

Nothing here waits for that process: one thread writes to it, another reads. If it dies, it is started again, a little
later each time, and learns all it needs from the agent.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from reconciler import children, notes, private
from reconciler.errors import FilesError
from reconciler.health import roster, store
from reconciler.health.state import Health, State
from reconciler.health.target import Target, Use
from reconciler.health.wire import Edit, Messages, News, packed
from reconciler.reconcile import RECORD
from reconciler.wish.announcing import Leaving
from reconciler.wish.drains import FILE as DRAINS
from reconciler.wish.drains import Drain
from reconciler.wish.drains import damage as damage_of
from reconciler.wish.drains import read as read_drains
from reconciler.wish.known import leaving
from reconciler.wish.wish import Wish

FIRST_WAIT_S, LAST_WAIT_S = 0.2, 10.0
LOOK_S = 0.025
"""How long a drain may go unheard."""
_PIPE_BYTES = 1 << 16


UNCHANGED = Leaving("", 0.0)


@dataclass(slots=True)
class Found:
    """What has come since somebody asked. `drains` None, and `leaving` UNCHANGED: they are as before.
    `suspect_until_s`: until when the node suspects itself, by the monotonic clock; 0: it doesn't any more, None: as
    before; `suspect_why`: what of it is the matter, if that is known."""

    states: dict[bytes, State] = field(default_factory=dict)
    drains: tuple[Drain, ...] | None = None
    suspect_until_s: float | None = None
    suspect_why: str = ""
    troubles: list[str] = field(default_factory=list)
    leaving: Leaving | None = UNCHANGED


class Checks:
    """The checks of one instance. `ring` is called, from another thread, when something has come; `take` gives it."""

    def __init__(self, instance_dir: Path, ring: Callable[[], None]) -> None:
        self._directory, self._ring = instance_dir, ring
        self._roster = roster.Roster(instance_dir / roster.FILE)
        self._lock = threading.Lock()
        self._targets: dict[Use, Target] = {}
        self._states: dict[bytes, State] = {}
        self._found = Found()
        self._mark = private.mark(instance_dir / DRAINS)
        self._leaving_mark = private.mark(notes.path_of(instance_dir, notes.Leaving))
        self._process: subprocess.Popen[bytes] | None = None
        self._edits: SimpleQueue[bytes | None] = SimpleQueue()
        self._ends = threading.Event()
        self._begins = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for work in (self._keep, self._watch):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the process that checks, and wait for it."""
        self._ends.set()
        self._begins.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.kill()
        for thread in self._threads:
            thread.join()

    def want(self, wish: Wish) -> None:
        """Have checked what the wish asks for, and write down who that is. Raises FilesError."""
        edits = wish.take_edits()
        if edits.targets:
            with self._lock:
                for use, target in edits.targets.items():
                    if target is None:
                        self._targets.pop(use, None)
                    else:
                        self._targets[use] = target
                self._states = wish.states
                self._edits.put(packed(Edit(edits.targets, edits.states)))
                is_begun = self._process is not None
            if not is_begun:
                self._keep_what_was_inherited(edits.states, wish)
            self._begins.set()
        if edits.lines:
            self._roster.write(edits.lines, wish.lines)

    def _keep_what_was_inherited(self, coming: Mapping[Target, State], wish: Wish) -> None:
        """Before the process that checks is there to do it, write down what is known by checks that were edited: the
        roster names the new ones from now on, and the next agent, should this one be killed, would find nothing of
        them. Raises FilesError."""
        path = self._directory / store.FILE
        known = [target.digest for target, state in coming.items() if state.health is not Health.UNKNOWN]
        if known and not store.read(path).entries.keys() >= set(known):
            store.Store(path, wish.states.items()).close()

    def take(self) -> Found | None:
        """What has come; None if nothing has."""
        with self._lock:
            found = self._found
            if found == Found():
                return None
            self._found = Found()
            return found

    def _keep(self) -> None:
        """Keep the process going as long as there is something to check."""
        wait_s = FIRST_WAIT_S
        self._begins.wait()
        while not self._ends.is_set():
            began_s = time.monotonic()
            try:
                said = self._run_once()
            except OSError as error:
                said = f"can't be started: {error.strerror}"
            if self._ends.is_set():
                return
            if time.monotonic() - began_s > LAST_WAIT_S:
                wait_s = FIRST_WAIT_S
            with self._lock:
                self._found.troubles.append(f"the process that checks {said}; it is started again in {wait_s:g} s")
            self._ring()
            self._ends.wait(wait_s)
            wait_s = min(2 * wait_s, LAST_WAIT_S)

    def _run_once(self) -> str:
        """Start the process, and listen to it to its end. How it ended, in words. Raises OSError."""
        with self._lock:
            if self._ends.is_set():
                return "ended"
            process = self._process = subprocess.Popen(
                children.module("reconciler.health.checker", str(self._directory.absolute() / store.FILE), RECORD),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=children.DIRECTORY, env=children.ENVIRONMENT,
                bufsize=0,
            )  # fmt: skip
            edits = self._edits = SimpleQueue()
            known = {t: state for t in self._targets.values() if (state := self._states.get(t.digest)) is not None}
            edits.put(packed(Edit(dict(self._targets), known, is_all=True)))
        assert process.stdin is not None
        assert process.stdout is not None
        writer = threading.Thread(target=_write, args=(process.stdin, edits), daemon=True)
        writer.start()
        self._listen(process.stdout)
        process.kill()
        code = process.wait()
        edits.put(None)
        writer.join()
        process.stdout.close()
        with self._lock:
            self._process = None
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _listen(self, stream: IO[bytes]) -> None:
        messages = Messages()
        while data := stream.read(_PIPE_BYTES):
            for news in messages.feed(data):
                if not isinstance(news, News):
                    continue
                with self._lock:
                    self._found.states.update(news.states)
                    if news.suspect_until_s is not None:
                        self._found.suspect_until_s, self._found.suspect_why = news.suspect_until_s, news.suspect_why
                    if news.trouble:
                        self._found.troubles.append(news.trouble)
                self._ring()

    def _watch(self) -> None:
        """Look at the files of drains, which others write."""
        while not self._ends.wait(LOOK_S):
            self._look_at_drains()
            self._look_at_leaving()

    def _look_at_drains(self) -> None:
        path = self._directory / DRAINS
        mark = private.mark(path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            drains, damage = read_drains(path), damage_of(path)
        except FilesError as error:
            with self._lock:
                self._found.troubles.append(str(error))
        else:
            with self._lock:
                self._found.drains = drains
                if damage:
                    self._found.troubles.append(damage)
        self._ring()

    def _look_at_leaving(self) -> None:
        mark = private.mark(notes.path_of(self._directory, notes.Leaving))
        if mark == self._leaving_mark:
            return
        self._leaving_mark = mark
        try:
            found = leaving(self._directory)
        except FilesError as error:
            with self._lock:
                self._found.troubles.append(str(error))
        else:
            with self._lock:
                self._found.leaving = found
        self._ring()


def _write(stream: IO[bytes], edits: SimpleQueue[bytes | None]) -> None:
    try:
        while (data := edits.get()) is not None:
            left = memoryview(data)
            while left:
                left = left[stream.write(left) :]
    except OSError:
        pass  # it is gone, which the other thread sees
    finally:
        with suppress(OSError):
            stream.close()
