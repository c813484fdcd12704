# SPDX-License-Identifier: Apache-2.0
"""The syntax of keepalived.conf(5): a keyword and its words on a line, and blocks in braces.

Parameters (`$NAME=VALUE`) are filled in. What depends on the machine (lines that begin with `@`, files that are
included) can't be known here: a statement carries its condition, and inclusion is a statement like others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from reconciler.config.diagnostic import quote
from reconciler.importers.draft import InputError

MAX_DEPTH = 16
MAX_LINE = 10_000  # characters, after parameters are filled in
MAX_REPLACEMENTS = 100  # in a line

_TOKEN = re.compile(r'\s+|(?P<comment>[#!].*)|(?P<brace>[{}])|"(?P<quoted>[^"]*)"|(?P<word>[^\s{}"#!]+)')
_DEFINITION = re.compile(r"\s*\$([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_USE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*)(?=\s|$))")


@dataclass(slots=True)
class Statement:
    """`words` are the keyword and what follows it; `condition` is the @-word before it, or empty."""

    line: int
    words: list[str]
    condition: str = ""
    block: list[Statement] | None = None

    @property
    def keyword(self) -> str:
        return self.words[0]

    @property
    def value(self) -> str:
        """The first word behind the keyword, or nothing."""
        return self.words[1] if len(self.words) > 1 else ""

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(slots=True)
class _Open:
    """A block whose end has not come yet."""

    line: int
    statements: list[Statement] = field(default_factory=list)


def parse(text: str) -> list[Statement]:
    """The statements of a file. Raises InputError."""
    stack = [_Open(0)]
    for line, words in _lines(text):
        current: Statement | None = None
        for word, is_brace in words:
            if is_brace and word == "{":
                opened = current or (stack[-1].statements[-1] if stack[-1].statements else None)
                if opened is None or opened.block is not None:
                    raise InputError(line, "a '{' follows no keyword")
                if len(stack) > MAX_DEPTH:
                    raise InputError(line, f"blocks are nested more than {MAX_DEPTH} levels deep")
                opened.block = []
                stack.append(_Open(line, opened.block))
                current = None
            elif is_brace:
                if len(stack) == 1:
                    raise InputError(line, "a '}' closes no block")
                stack.pop()
                current = None
            elif current is None:
                current = Statement(line, [word])
                stack[-1].statements.append(current)
            else:
                current.words.append(word)
    if len(stack) > 1:
        raise InputError(stack[-1].line, "the block that begins here is not closed")
    return list(_conditions(stack[0].statements))


def _conditions(statements: list[Statement]) -> Iterator[Statement]:
    for statement in statements:
        if statement.keyword.startswith("@") and len(statement.words) > 1:
            statement.condition = statement.words.pop(0)
        if statement.block:
            statement.block = list(_conditions(statement.block))
        yield statement


def _lines(text: str) -> Iterator[tuple[int, list[tuple[str, bool]]]]:
    """The words of each line, and whether each is a brace."""
    parameters: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if definition := _DEFINITION.fullmatch(line):
            if line.rstrip().endswith("\\"):
                hint = "write out what it stands for"
                raise InputError(number, "parameters of several lines are not understood", hint=hint)
            parameters[definition[1]] = definition[2].strip()
            continue
        filled = _fill_in(line, number, parameters) if "$" in line else line
        words: list[tuple[str, bool]] = []
        position = 0
        while position < len(filled):
            match = _TOKEN.match(filled, position)
            if match is None:
                raise InputError(number, "a quote is not closed")
            position = match.end()
            if match["brace"]:
                words.append((match["brace"], True))
            elif match["word"] is not None or match["quoted"] is not None:
                words.append((match["word"] or match["quoted"] or "", False))
        yield number, words


def _fill_in(line: str, number: int, parameters: dict[str, str]) -> str:
    """Put the values of parameters in their places, and of those that are in these, as often as it takes."""
    start = 0
    for _ in range(MAX_REPLACEMENTS):
        match = _USE.search(line, start)
        if match is None:
            return line
        name = match[1] or match[2]
        if name in parameters:
            line, start = line[: match.start()] + parameters[name] + line[match.end() :], match.start()
        else:
            start = match.end()
        if len(line) > MAX_LINE:
            break
    raise InputError(number, f"too much is to be filled in here: {quote(line[:40])}")
