# SPDX-License-Identifier: Apache-2.0
"""A line at the bottom of the terminal that says what is being done and how much is left, gone when it is done.

Only people see it: it needs a terminal that can erase a line, and a command whose output no other program reads.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from reconciler import progress, safe
from reconciler.cli import streams

DELAY_S = 1.0
"""What takes less is over before anybody has read a line about it."""
PAINT_S = 0.2
MIN_COLUMNS = 20

_STDOUT, _STDERR = 1, 2
_ERASE = b"\r\x1b[K"


class _Line:
    """The line. A thread paints it, since whatever takes long has no time for that."""

    def __init__(self) -> None:
        import threading  # only here: most commands are over before they would need it

        self._lock = threading.RLock()
        self._is_there = False
        self._ended = threading.Event()
        self._painter = threading.Thread(target=self._paint, name="progress", daemon=True)

    def begin(self) -> None:
        self._painter.start()

    def end(self) -> None:
        self._ended.set()
        self._painter.join()
        self._erase()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Without the line, for text that stays."""
        with self._lock:
            self._erase()
            yield

    def _paint(self) -> None:
        since: float | None = None
        while not self._ended.wait(PAINT_S):
            doing = progress.now()
            since = (since or time.monotonic()) if doing else None
            if since and (passed_s := time.monotonic() - since) >= DELAY_S:
                self._show(f"{safe.line(doing)} · {passed_s:.0f} s")
            else:
                self._erase()

    def _show(self, text: str) -> None:
        with self._lock:
            # The last column stays free: some terminals begin a new line as soon as it is taken.
            room, spelt, more = columns() - 1, _spelt(text), _spelt("…")
            shown = spelt if len(spelt) <= room else spelt[: room - len(more)] + more
            _write(_ERASE + shown.encode(sys.stderr.encoding))
            self._is_there = True

    def _erase(self) -> None:
        with self._lock:
            if self._is_there:
                _write(_ERASE)
                self._is_there = False


def _spelt(text: str) -> str:
    """Text with the signs that the terminal has."""
    return text.encode(sys.stderr.encoding, "lbctl").decode(sys.stderr.encoding)


def _write(data: bytes) -> None:
    """Past the buffers and guards of `streams`."""
    with contextlib.suppress(OSError):  # the terminal is gone
        os.write(_STDERR, data)


def columns() -> int:
    """The width of the terminal; 80 if it doesn't say."""
    try:
        return os.get_terminal_size(_STDERR).columns or 80
    except OSError:
        return 80


def is_wanted() -> bool:
    """Whether a person sees this command at work, on a terminal that can erase a line. What another program reads
    ends up on the same terminal as a rule, say by `tee`, and nobody can tell when."""
    if not isinstance(sys.stderr, streams.Output) or not os.isatty(_STDERR) or columns() < MIN_COLUMNS:
        return False
    is_piped = stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)
    return not is_piped and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")


@contextmanager
def shown() -> Iterator[None]:
    """Show the steps that are taken in the block, if anybody is there to see them."""
    if not is_wanted():
        yield
        return
    line = _Line()
    streams.aside = line.aside
    line.begin()
    try:
        yield
    finally:
        streams.aside = contextlib.nullcontext
        line.end()
