# SPDX-License-Identifier: Apache-2.0
"""YAML of other tools, in the form that `json_text` gives JSON: objects that know the line of each key, in any
case."""

from __future__ import annotations

from typing import Any

from reconciler.config.document import Map, Seq
from reconciler.config.document import parse as parse_documents
from reconciler.importers.draft import InputError, Notices
from reconciler.importers.json_text import Object

MAX_CHARACTERS = 4 << 20  # YAML takes a hundred times its size in memory


def parse(text: str, notices: Notices) -> list[Any]:
    """The documents of a text; broken ones are left out. Raises InputError if it is too large."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(0, f"more than {MAX_CHARACTERS >> 20} MiB of YAML", hint="import it in parts, or as JSON")
    found = []
    for document in parse_documents("", text):
        if document.start is None:
            problem = document.diagnostics[0]
            with notices.leaving_out("the document"):
                raise InputError(problem.span.line, problem.message)
        else:
            found.append(_plain(document.root, document.span.line))
    return found


def _plain(value: Any, line: int) -> Any:
    if isinstance(value, Map):
        found = Object(line)
        for name, content in value.items():
            key, at = name.lower(), value.events[name]
            found[key] = _plain(content, at[1].start_mark.line + 1)
            found.lines[key], found.names[key] = at[0].start_mark.line + 1, name
        return found
    if isinstance(value, Seq):
        return [_plain(item, at.start_mark.line + 1) for item, at in zip(value, value.events, strict=True)]
    return value
