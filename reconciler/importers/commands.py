# SPDX-License-Identifier: Apache-2.0
"""Command lines in scripts and notes: with comments, prompts, `sudo`, lines that go on after a backslash.

Words are split as a shell does, in one pass: the time is proportional to the length of the line, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reconciler.importers.draft import WRONG_FILE, InputError, TooMuch
from reconciler.importers.values import lines_of

MAX_COMMANDS = 500_000  # lines; a table of 10,000 services with 100,000 servers has a quarter of them

_PIECE = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<plain>[^\s'\"\\]+)"
    r"|'(?P<single>[^']*)'"
    r'|"(?P<double>[^"\\]*(?:\\.[^"\\]*)*)"'
    r"|\\(?P<escaped>.?)",
    re.DOTALL,
)
_ESCAPED_IN_QUOTES = re.compile(r'\\([$`"\\])')


def command_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each command as one line, with the number of the line where it begins."""
    pending: list[str] = []
    begin = count = 0
    for number, line in enumerate(lines_of(text), start=1):
        begin = begin or number
        goes_on = line.endswith("\\")
        pending.append(line[:-1] if goes_on else line)
        if not goes_on:
            count += bool(line.strip())
            if count > MAX_COMMANDS:
                raise TooMuch(begin, f"up to here there are {MAX_COMMANDS:,} commands", hint=WRONG_FILE)
            yield begin, " ".join(pending)
            pending, begin = [], 0
    if pending:
        yield begin, " ".join(pending)


def words_of(number: int, line: str) -> list[str]:
    """The words of a command without its prompt and `sudo`; none of an empty line. Raises InputError."""
    words = _split(number, line.strip().removeprefix("$ "))
    return words[1:] if words[:1] == ["sudo"] else words


def _split(number: int, text: str) -> list[str]:
    words: list[str] = []
    pieces: list[str] = []  # of the word that has begun; an empty piece is one, too: '' is an empty word
    position = 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None:
            raise InputError(number, "a quote is not closed")
        position = match.end()
        match match.lastgroup:
            case "space":
                if pieces:
                    words.append("".join(pieces))
                    pieces = []
            case "plain":
                if not pieces and match["plain"].startswith("#"):
                    break  # a comment, to the end of the line
                pieces.append(match["plain"])
            case "double":
                pieces.append(_ESCAPED_IN_QUOTES.sub(r"\1", match["double"]))
            case kind:
                pieces.append(match[kind or 0])
    return [*words, "".join(pieces)] if pieces else words


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """The program's name without its path, empty if the line begins with an option; and the remaining words."""
    if words[0].startswith("-"):
        return "", words
    return words[0].rpartition("/")[2], words[1:]
