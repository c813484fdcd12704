# SPDX-License-Identifier: Apache-2.0
"""Colours, if the output is a terminal and NO_COLOR is not set (https://no-color.org), and lines that fit it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

MIN_COLUMNS = 40
"""A terminal that says that it is narrower than that gets lines of this length: a word a line helps nobody."""
DEFAULT_COLUMNS = 80


@dataclass(frozen=True, slots=True)
class Style:
    """Wraps text in colours, or not. `columns` is the width of the terminal; None: no terminal, and lines stay whole,
    so that a log can be searched."""

    colour: bool = False
    columns: int | None = None

    @classmethod
    def for_stream(cls, stream: TextIO, no_color: bool) -> Style:
        if not stream.isatty():
            return cls()
        plain = no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(not plain, _columns(stream))

    def _wrap(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def bold(self, text: str) -> str:
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        return self._wrap("2", text)

    def good(self, text: str) -> str:
        return self._wrap("32", text)

    def bad(self, text: str) -> str:
        return self._wrap("31", text)

    def warn(self, text: str) -> str:
        return self._wrap("33", text)

    @staticmethod
    def chosen(text: str) -> str:
        """The line of a list that keys act on, in reverse: no colour, so NO_COLOR doesn't concern it."""
        return f"\033[7m{text}\033[0m"

    def fitted(self, text: str, indent: str = "") -> str:
        """Text without colours, its lines broken at words where the terminal ends; what is broken off goes on
        below, indented by `indent`."""
        if self.columns is None:
            return text
        width = max(self.columns, MIN_COLUMNS)
        return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, width, indent))

    def labelled(self, paint: Callable[[str], str], label: str, text: str) -> str:
        """`label: text`, fitted, with the label painted."""
        return paint(f"{label}:") + self.fitted(f"{label}: {text}", "  ").removeprefix(f"{label}:")


def _pieces(line: str, width: int, indent: str) -> list[str]:
    if len(line) <= width:
        return [line]
    own = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.lstrip(), width, initial_indent=own, subsequent_indent=own + indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except OSError:
        return DEFAULT_COLUMNS
