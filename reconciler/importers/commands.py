# SPDX-License-Identifier: Apache-2.0
"""Command lines as scripts and notes hold them: comments, prompts, `sudo`, lines that go on after a backslash."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from reconciler.importers.draft import InputError


def command_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The words of each command and the line where it begins. Raises InputError."""
    pending, begin = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        begin = begin or number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        joined, pending = pending + line, ""
        yield from _command(begin, joined)
        begin = 0
    if pending:
        yield from _command(begin, pending)


def _command(number: int, line: str) -> Iterator[tuple[int, list[str]]]:
    try:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
    except ValueError:
        raise InputError(number, "a quote is not closed") from None
    if words[:1] == ["sudo"]:
        del words[0]
    if words:
        yield number, words


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """The name of the program without its path, or nothing if a line begins with an option; and the rest."""
    if words[0].startswith("-"):
        return "", words
    return words[0].rpartition("/")[2], words[1:]
