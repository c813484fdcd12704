# SPDX-License-Identifier: Apache-2.0
"""Tables for terminals, and the same rows for machines."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reconciler import safe

Row = Mapping[str, str | int | float | None]
"""None is an unknown value."""
MIN_TEXT = 24
"""Columns; text in less than that is hard to read."""


def table(rows: Sequence[Row], columns: Sequence[str], empty: str, width: int | None = None) -> str:
    """Columns as wide as their content; numbers to the right. `empty` is the text if there are no rows.

    If that is more than the `width` of a terminal, a last column of text goes on below itself; and if even that is too
    wide, each row becomes a block with a line for each column.
    """
    if not rows:
        return empty
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    heads = [column.replace("_", " ").upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    right = [not any(isinstance(row[column], str) for row in rows) for column in columns]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        room = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
        if right[-1] or room < MIN_TEXT:
            return _blocks(heads, cells, width)
        cells = [part for line in cells for part in _folded(line, room)]
        widths[-1] = room
    lines = [heads, *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _folded(line: Sequence[str], room: int) -> Iterator[list[str]]:
    """A line whose last cell goes on in lines of their own."""
    first, *rest = textwrap.wrap(line[-1], room) or [""]
    yield [*line[:-1], first]
    yield from ([""] * (len(line) - 1) + [part] for part in rest)


def _blocks(heads: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> str:
    """Each row as a block of lines, one a column."""
    label = max(map(len, heads)) + 2
    blocks = []
    for line in cells:
        pieces = (
            textwrap.wrap(cell, max(MIN_TEXT, width - label), break_long_words=False, break_on_hyphens=False) or [""]
            for cell in line
        )
        blocks.append("\n".join(
            f"{head if not number else '':<{label}}{piece}".rstrip()
            for head, parts in zip(heads, pieces, strict=True) for number, piece in enumerate(parts)
        ))  # fmt: skip
    return "\n\n".join(blocks)


def as_json(document: Mapping[str, Any]) -> str:
    """Indented, in ASCII. Python's own `json` indents in Python, which takes several times as long."""
    import msgspec

    return msgspec.json.format(json.dumps(document), indent=2)


def as_yaml(document: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(document, sort_keys=False).rstrip()


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return safe.line(value) if isinstance(value, str) else f"{value:,}"
