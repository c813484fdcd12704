# SPDX-License-Identifier: Apache-2.0
"""Manifests as YAML for people to edit: the canonical form, a line for each endpoint and interface."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from reconciler import progress
from reconciler.config.fmt import canonical
from reconciler.config.load import no_garbage_collection
from reconciler.config.source import SourceFile
from reconciler.importers.draft import Manifest

FILES = {"Node": "nodes.yaml", "Pool": "pools.yaml", "Service": "services.yaml"}

AT_ONCE = 100
"""Documents of a text that is written: the events of all would take much memory."""
_BLOCKS = ("spec",)
_LISTS = ("endpoints", "interfaces")


def files(manifests: Iterable[Manifest], origin: str) -> dict[str, str]:
    """File name → YAML, a file for each kind that there is. `origin` names the source of the import."""
    by_file: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        by_file.setdefault(FILES[manifest["kind"]], []).append(manifest)
    return {name: text(by_file[name], origin) for name in FILES.values() if name in by_file}


def text(manifests: Iterable[Manifest], origin: str) -> str:
    """All documents in one text, below a comment that names the source of the import."""
    comment = "".join(c if c.isprintable() else "?" for c in origin)
    left, head, forms = list(manifests), f"# Imported from {comment}.\n", []
    with no_garbage_collection(), progress.step("writing manifests", len(left)) as advance:
        for first in range(0, max(len(left), 1), AT_ONCE):
            some = left[first : first + AT_ONCE]
            documents = "---\n".join("\n".join(_mapping(manifest, "")) + "\n" for manifest in some)
            form, problems = canonical(SourceFile("", head + documents))
            assert not problems, problems
            forms.append(form)
            head = ""
            advance(len(some))
    return "---\n".join(forms)


def _mapping(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Plain YAML, with the quotes of JSON; the canonical form removes the needless ones."""
    for key, value in values.items():
        if key in _BLOCKS:
            yield f"{indent}{key}:"
            yield from _mapping(value, indent + "  ")
        elif key in _LISTS and value:
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {json.dumps(item)}" for item in value)
        else:
            yield f"{indent}{key}: {json.dumps(value)}"
