# SPDX-License-Identifier: Apache-2.0
"""The syntax of keepalived.conf(5): a keyword and its words on a line, and blocks in braces.

`keepalived_source` has the lines. What depends on the machine (lines that begin with `@`) can't be known here:
a statement carries its condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from reconciler.importers.draft import InputError

MAX_DEPTH = 16

_TOKEN = re.compile(r'\s+|(?P<brace>[{}])|"(?P<quoted>[^"]*)"|(?P<word>[^\s{}"]+)')


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


def parse(lines: Iterable[tuple[int, str]]) -> list[Statement]:
    """The statements of the lines. Raises InputError."""
    stack = [_Open(0)]
    for line, text in lines:
        words = _words(line, text)
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


def _words(line: int, text: str) -> list[tuple[str, bool]]:
    """The words of a line, and whether each is a brace."""
    words: list[tuple[str, bool]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InputError(line, "a quote is not closed")
        position = match.end()
        if match["brace"]:
            words.append((match["brace"], True))
        elif match["word"] is not None or match["quoted"] is not None:
            words.append((match["word"] or match["quoted"] or "", False))
    return words
