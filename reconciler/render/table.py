# SPDX-License-Identifier: Apache-2.0
"""Tables for terminals, and the same rows for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from reconciler import safe

Row = Mapping[str, str | int | float | None]
"""None is an unknown value."""


def table(rows: Sequence[Row], columns: Sequence[str], empty: str) -> str:
    """Columns as wide as their content; numbers to the right. `empty` is the text if there are no rows."""
    if not rows:
        return empty
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    heads = [column.replace("_", " ").upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    right = [not isinstance(rows[0][column], str) for column in columns]
    lines = [heads, *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([dict(row) for row in rows], indent=2)


def as_yaml(rows: Sequence[Row]) -> str:
    import yaml

    return yaml.safe_dump([dict(row) for row in rows], sort_keys=False).rstrip()


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return safe.line(value) if isinstance(value, str) else f"{value:,}"
