# SPDX-License-Identifier: Apache-2.0
"""The demo's output on a terminal: titles, commands with their real output, and claims that must hold."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TextIO

from reconciler.errors import LbctlError
from reconciler.lab.lab import Lab
from reconciler.render.style import Style

_ESCAPES = re.compile(r"\033\[[0-9;]*m")
_COMMAND_WAIT_S = 60.0


class ExpectationError(LbctlError):
    """Something that the demo shows does not hold."""


class Screen:
    """Writes lines as they come; several threads may."""

    def __init__(self, out: TextIO) -> None:
        self.style = Style.for_stream(out, no_color=False)
        self._out = out
        self._lock = threading.Lock()

    def line(self, text: str = "", indent: int = 4) -> None:
        with self._lock:
            print(f"{'':{indent}}{text}".rstrip(), file=self._out, flush=True)

    def title(self, text: str) -> None:
        self.line()
        self.line(self.style.bold(text), indent=0)
        self.line(self.style.dim("─" * len(text)), indent=0)

    def command(self, argv: Sequence[str]) -> None:
        self.line()
        self.line(self.style.bold(f"$ {shlex.join(argv)}"), indent=2)

    def expect(self, holds: bool, text: str) -> None:
        """Say whether `text` holds. Raises ExpectationError if it does not."""
        self.line(f"{self.style.good('✓') if holds else self.style.bad('✗')} {text}", indent=2)
        if not holds:
            raise ExpectationError(f"this was to hold: {text}")


class Output:
    """A command's output: shown as it comes, and kept without colours."""

    def __init__(self, screen: Screen, start: Callable[[IO[bytes]], subprocess.Popen[bytes]]) -> None:
        # Commands use colours on a terminal only, so they get one if this screen is one.
        source, sink = pty.openpty() if screen.style.colour else os.pipe()
        with os.fdopen(sink, "wb") as output:
            self.process = start(output)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(source, screen), daemon=True)
        self._reader.start()

    def _read(self, source: int, screen: Screen) -> None:
        with os.fdopen(source, "rb", buffering=0) as stream:
            for line in _lines(stream):
                screen.line(line)
                self._lines.append(_ESCAPES.sub("", line))

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def wait(self) -> str:
        """Wait for the command to end; returns its whole output. Raises ExpectationError if it failed."""
        try:
            code = self.process.wait(_COMMAND_WAIT_S)
        except subprocess.TimeoutExpired:
            raise ExpectationError(f"the command takes longer than {_COMMAND_WAIT_S:.0f} s") from None
        self._reader.join(_COMMAND_WAIT_S)
        if code:
            raise ExpectationError(f"the command ended with exit code {code}")
        return self.text


def _lines(stream: IO[bytes]) -> Iterator[str]:
    rest = b""
    while True:
        try:
            chunk = stream.read(65_536)
        except OSError:  # a terminal ends with this error, not with empty output as a pipe
            chunk = b""
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def start(lab: Lab, screen: Screen, *args: str) -> Output:
    """Show an lbctl command and start it."""
    screen.command(lab.lbctl_argv(*args))
    return Output(screen, lambda output: lab.start_lbctl(*args, output=output))


def run(lab: Lab, screen: Screen, *args: str) -> str:
    """Show an lbctl command, run it, show and return what it prints. Raises ExpectationError if it fails."""
    return start(lab, screen, *args).wait()
