# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error as the verbs find them: always open, able to print every character, and safe.

Texts come from manifests, from other machines and from file names. So no text controls a terminal, except lbctl's own
colours, and no line in the log of a CI job is taken for a command to that CI.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO

STDOUT = "standard output"

aside: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
"""Entered while text goes to a terminal. `cli/progress` takes its line away meanwhile."""

_SIGNS = {"→": "->", "…": "...", "—": "-", "–": "-", "×": "x", "‘": "'", "’": "'", "“": '"', "”": '"', "·": "*"}
_CONTROL = re.compile(r"\x1b\[[0-9;]{0,4}m|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CI = ("GITHUB_ACTIONS", "GITEA_ACTIONS", "TF_BUILD", "TEAMCITY_VERSION")
_COMMAND = re.compile(r"^(\s*):(?=:[A-Za-z-]+[^\n]*::)|#(?=#(?:\[|vso\[|teamcity\[))", re.MULTILINE)


class Output(io.TextIOWrapper):
    """A stream of text. `commands` prints lines as they are, as commands to a CI."""

    guards_terminal = False
    guards_ci = False

    def write(self, text: str, /) -> int:
        if self.guards_ci:
            text = _COMMAND.sub(lambda found: f"{found[1] or ''}\\x{ord(found[0][-1]):02x}", text)
        if not self.guards_terminal:
            return super().write(text)
        with aside():
            return super().write(_CONTROL.sub(_harmless, text))

    def commands(self, text: str) -> None:
        super().write(f"{text}\n")


class _Descriptor(io.FileIO):
    """A stream's file descriptor. Errors name the stream, so that people know which one is full."""

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


class _Complaints(io.FileIO):
    """Standard error. If it can't be written, there is no place to report that: errors are ignored."""

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Make the streams of this process fit; those that a caller has replaced are left as they are."""
    codecs.register_error("lbctl", _spell)
    _open_missing()
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor, for good
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Descriptor(1, "w", closefd=False), sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Complaints(2, "w", closefd=False), sys.stderr)


def log() -> TextIO:
    """Standard output without a buffer: a line that can't be written now is lost, and doesn't block later ones."""
    if not isinstance(sys.stdout, Output):
        return sys.stdout
    raw: Any = _Descriptor(1, "w", closefd=False)
    stream = Output(raw, encoding=sys.stdout.encoding, errors="lbctl", newline="\n", write_through=True)
    stream.guards_terminal, stream.guards_ci = sys.stdout.guards_terminal, sys.stdout.guards_ci
    return stream


def give_up_stdout() -> None:
    """Discard the output that is still buffered, which Python would write when it ends."""
    if isinstance(sys.stdout, Output):
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def print_commands(text: str) -> None:
    """Print lines as commands to a CI."""
    if isinstance(sys.stdout, Output):
        sys.stdout.commands(text)
    else:
        print(text)


def _open_missing() -> None:
    """Open missing descriptors 0 to 2: a process may be started without them, and the next file that it opens would
    take their place."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            with contextlib.suppress(OSError):  # as in a root directory without devices
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _stream(raw: io.FileIO, former: TextIO | None) -> Output:
    """Terminals get the encoding that they ask for; files and pipes are UTF-8 everywhere."""
    if former is not None:
        former.flush()
    is_terminal = raw.isatty()
    encoding = former.encoding if former is not None and is_terminal else "utf-8"
    stream = Output(
        io.BufferedWriter(raw), encoding=encoding, errors="lbctl", newline="\n",
        line_buffering=is_terminal or raw.fileno() == 2,
    )  # fmt: skip
    stream.guards_terminal = is_terminal
    stream.guards_ci = any(os.environ.get(name) for name in _CI)
    return stream


def _harmless(found: re.Match[str]) -> str:
    """A control sequence: a colour of `render.style` as it is, any other one made visible."""
    text = found[0]
    return text if text in _COLOURS else "".join(ascii(character)[1:-1] for character in text)


_COLOURS = {f"\x1b[{code}m" for code in ("0", "1", "2", "31", "32", "33", "1;31", "1;32", "1;33", "36", "1;36")}


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Characters that the encoding lacks, written with others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SIGNS.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing), error.end
