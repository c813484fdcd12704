# SPDX-License-Identifier: Apache-2.0
"""A terminal as a screen: drawn whole, keys one by one, and left as it was, whatever ends the program."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_IN, _OUT = 0, 1
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The other screen, no cursor, and lines that are cut where the terminal ends (xterm's control sequences)."""
_LEAVE = b"\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"
_KEYS = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"\x1b[C": "right", b"\x1bOC": "right",
    b"\x1b[D": "left", b"\x1bOD": "left", b"\x1b[5~": "page up", b"\x1b[6~": "page down", b"\x1b[H": "home",
    b"\x1b[F": "end", b"\x1b": "left", b"\x7f": "left", b"\x08": "left", b"\r": "right", b"\n": "right", b"\t": "tab",
    b" ": "page down", b"k": "up", b"j": "down", b"h": "left", b"l": "right", b"g": "home", b"G": "end",
}  # fmt: skip
"""What terminals send, and the keys of vi; escape and backspace go back, as left does."""


def is_screen() -> bool:
    """Whether input and output are a terminal that can be drawn on."""
    return os.isatty(_IN) and os.isatty(_OUT) and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """The terminal while it is ours."""

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        size = os.get_terminal_size(_OUT)
        return size.columns or 80, size.lines or 24

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, as many as there is room for. They hold no control characters but those of Style."""
        room = self.size()[1]
        text = "\r\n".join(f"{line}{_REST_OF_LINE}" for line in lines[:room])
        content = (_HOME + text + _REST).encode(sys.stdout.encoding, "backslashreplace")
        while content:
            content = content[os.write(_OUT, content) :]

    def keys(self, timeout_s: float) -> list[str]:
        """The keys that were pressed; waits for the first one. Letters are themselves, others have names."""
        ready, _, _ = select.select([_IN], [], [], max(0.0, timeout_s))
        if not ready:
            return []
        typed = os.read(_IN, 1024)
        if not typed:
            raise KeyboardInterrupt  # the terminal is gone
        return list(_names(typed))


def _names(typed: bytes) -> Iterator[str]:
    while typed:
        length = next((n for n in (4, 3, 1) if typed[:n] in _KEYS and len(typed) >= n), 1)
        if typed[:1] == b"\x1b" and length == 1 and len(typed) > 1:
            return  # a sequence of a key that has no use here
        yield _KEYS.get(typed[:length], typed[:length].decode("ascii", "replace"))
        typed = typed[length:]


@contextmanager
def screen() -> Iterator[Screen]:
    """Meanwhile the terminal is ours. SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = termios.tcgetattr(_IN)
    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    resized = signal.signal(signal.SIGWINCH, signal.SIG_IGN)
    try:
        tty.setcbreak(_IN)
        ours = termios.tcgetattr(_IN)
        ours[6][termios.VSUSP] = b"\0"  # a stopped program would leave its screen behind
        termios.tcsetattr(_IN, termios.TCSANOW, ours)
        os.write(_OUT, _ENTER)
        yield Screen()
    finally:
        try:
            os.write(_OUT, _LEAVE)
            termios.tcsetattr(_IN, termios.TCSADRAIN, before)
        except (OSError, termios.error):
            pass  # the terminal is gone
        for number, handler in {**handlers, signal.SIGWINCH: resized}.items():
            signal.signal(number, handler)
