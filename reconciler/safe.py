# SPDX-License-Identifier: Apache-2.0
"""Texts by others, made safe for the place where they are shown, and lists of any length, made short enough.

File names, arguments, names of foreign programs and the contents of snapshots may have any character in them: line
breaks that begin a new line of a log, escapes that a terminal obeys, backticks that end a block of Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MARKS = re.compile(r"[\\`*_\[\]<>&#|~!]")
SHOWN = 20
"""The most objects that an error or a report names one by one."""
MAX_MARKDOWN = 60_000
"""Characters; a comment on GitHub holds 65,536."""

_BACKTICKS = re.compile("`+")


def line(text: str) -> str:
    """Text on one line; unprintable characters are escaped as in Python, e.g. `\\n`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def block(text: str) -> str:
    """Text with its own line breaks and tabs; other unprintable characters are escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def some(names: Sequence[str], separator: str = ", ") -> str:
    """Names in a row, in the order given: all of them, or the first SHOWN and how many more there are."""
    more = [f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return separator.join([*names[:SHOWN], *more])


def code(text: str) -> str:
    """Text as code within a line of Markdown, also if it holds backticks."""
    text = line(text)
    fence = "`" * (1 + _longest(text))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def prose(text: str) -> str:
    """Text within a line of Markdown, escaped so that nothing in it becomes a link, a mark or the name of a person."""
    return _MARKS.sub(r"\\\g<0>", line(text)).replace("@", "@&#8203;")


def fenced(lines: Iterable[str], language: str) -> str:
    """Lines as a block of Markdown; no line can end the block."""
    body = block("\n".join(lines))
    fence = "`" * max(3, 1 + _longest(body))
    return f"{fence}{language}\n{body}\n{fence}"


def folded(lines: Iterable[str], title: str) -> str:
    """Lines of a diff, folded away below a title, in Markdown: as many as a comment of a merge request holds."""
    lines, room = list(lines), MAX_MARKDOWN
    for shown, text in enumerate(lines):
        room -= len(text) + 1
        if room < 0:
            lines[shown:] = [f"  ({len(lines) - shown:,} more lines are not shown)"]
            break
    return f"<details><summary>{title}</summary>\n\n{fenced(lines, 'diff')}\n\n</details>"


def _longest(text: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(text)), default=0)


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]
