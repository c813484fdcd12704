# SPDX-License-Identifier: Apache-2.0
"""The syntax of keepalived.conf(5): a keyword and its words on a line, and blocks in braces.

`keepalived_source` reads the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from reconciler.importers.draft import WRONG_FILE, InputError, Notices, TooMuch

MAX_DEPTH = 16
MAX_STATEMENTS = 1_000_000  # which take half a GiB; 100,000 real servers with their checks have fewer

_TOKEN = re.compile(r'\s+|(?P<brace>[{}])|"(?P<quoted>[^"]*)"|(?P<word>[^\s{}"]+)')


@dataclass(slots=True)
class Statement:
    """`words` are the keyword and what follows it."""

    line: int
    words: list[str]
    block: list[Statement] | None = None

    @property
    def keyword(self) -> str:
        return self.words[0]

    @property
    def value(self) -> str:
        """The first word after the keyword; empty if there is none."""
        return self.words[1] if len(self.words) > 1 else ""

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(slots=True)
class _Open:
    """A block whose end has not been read yet."""

    line: int
    statements: list[Statement] = field(default_factory=list)


def parse(lines: Iterable[tuple[int, str]], notices: Notices) -> list[Statement]:
    """The statements of the lines. Raises InputError."""
    stack = [_Open(0)]
    count = 0
    for line, text in lines:
        words = _words(line, text, notices)
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
                count += 1
                if count > MAX_STATEMENTS:
                    raise TooMuch(line, f"up to here there are {MAX_STATEMENTS:,} statements", hint=WRONG_FILE)
                stack[-1].statements.append(current)
            else:
                current.words.append(word)
    if len(stack) > 1:
        raise InputError(stack[-1].line, "the block that begins here is not closed")
    return stack[0].statements


def _words(line: int, text: str, notices: Notices) -> list[tuple[str, bool]]:
    """The words of a line, and whether each is a brace."""
    words: list[tuple[str, bool]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            with notices.leaving_out("the rest of the line"):
                raise InputError(line, "a quote is not closed")
            break
        position = match.end()
        if match["brace"]:
            words.append((match["brace"], True))
        elif match["word"] is not None or match["quoted"] is not None:
            words.append((match["word"] or match["quoted"] or "", False))
    return words
