# SPDX-License-Identifier: Apache-2.0
"""The fingerprints of the resources that were last applied: with them a plan can say "drift" instead of "config".

If the file is lost, only that word is lost; the kernel is the record of a node's resources.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError
from reconciler.plan import fingerprint
from reconciler.resource import Desired, Key


def load(path: Path) -> dict[Key, str]:
    """The fingerprints of the resources that were last applied; empty if there are none, or the file is damaged."""
    try:
        rows = json.loads(_read(path) or b"[]")
        return {Key(kind, id_): print_ for kind, id_, print_ in rows}
    except (ValueError, TypeError):
        return {}


def save(path: Path, desired: Desired, before: Mapping[Key, str], open_keys: Collection[Key]) -> None:
    """Write down `desired` as applied. Keys that are still open keep their fingerprints from `before`."""
    kept = {key: before[key] for key in open_keys if key in before}
    done = {key: fingerprint(r) for key, r in desired.resources.items() if key not in open_keys}
    text = json.dumps([[key.kind, key.id, print_] for key, print_ in sorted((done | kept).items())])
    if _read(path) != text.encode():
        private.write(path, text.encode())


def _read(path: Path) -> bytes | None:
    try:
        return private.read(path)
    except FilesError:
        return None
