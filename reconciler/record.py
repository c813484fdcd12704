# SPDX-License-Identifier: Apache-2.0
"""The fingerprints of the resources that were last applied: with them a plan can say "drift" instead of "config".

The first line of the file has all of them, in JSON; each further line has those that a later round changed, with null
for a resource that nobody asks for any more. If the file is lost, only that word is lost; the kernel is the record of
a node's resources.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError
from reconciler.plan import fingerprint
from reconciler.resource import Desired, Key, Resource

MAX_BYTES = 64 << 20
"""A file that has grown so far is written anew."""


class Record(Mapping[Key, str]):
    """The fingerprints in a file, which is read when somebody asks for one: most rounds find nothing to explain."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _prints(self) -> dict[Key, str]:
        return _load(self._path)

    def __getitem__(self, key: Key) -> str:
        return self._prints[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._prints)

    def __len__(self) -> int:
        return len(self._prints)


class Prints(Mapping[Key, str]):
    """The fingerprints of resources, each made when somebody asks for it; those of the `open` ones, which are not in
    place, as they were `before`."""

    def __init__(
        self, resources: Mapping[Key, Resource], open_keys: Collection[Key], before: Mapping[Key, str]
    ) -> None:
        self._resources, self._open, self._before = resources, open_keys, before

    def __getitem__(self, key: Key) -> str:
        return self._before[key] if key in self._open else fingerprint(self._resources[key])

    def __contains__(self, key: object) -> bool:
        return key in (self._before if key in self._open else self._resources)

    def __iter__(self) -> Iterator[Key]:
        return (key for key in self._resources.keys() | self._before.keys() if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:  # without counting
        return bool(self._resources) or any(key in self for key in self._open)


def load(path: Path) -> Record:
    """The fingerprints of the resources that were last applied; empty if there are none, or the file is damaged."""
    return Record(path)


def save(path: Path, desired: Desired, before: Mapping[Key, str], open_keys: Collection[Key]) -> None:
    """Write down `desired` as applied. Keys that are still open keep their fingerprints from `before`."""
    kept = {key: before[key] for key in open_keys if key in before}
    done = {key: fingerprint(r) for key, r in desired.resources.items() if key not in open_keys}
    text = _text(done | kept)
    if _read(path) != text:
        private.write(path, text)


def add(path: Path, desired: Desired, keys: Collection[Key]) -> None:
    """Write down that `desired` was applied as far as these keys are concerned. Raises FilesError."""
    prints = {key: fingerprint(desired.resources[key]) if key in desired.resources else None for key in keys}
    if prints and private.append(path, b"\n" + _text(prints)) > MAX_BYTES:
        private.write(path, _text(_load(path)))


def _text(prints: Mapping[Key, str | None]) -> bytes:
    return json.dumps([[key.kind, key.id, print_] for key, print_ in prints.items()]).encode()


def _load(path: Path) -> dict[Key, str]:
    found: dict[Key, str] = {}
    for number, line in enumerate((_read(path) or b"[]").split(b"\n")):
        try:
            rows = [(Key(kind, id_), print_) for kind, id_, print_ in json.loads(line or b"[]")]
        except (ValueError, TypeError):
            if number == 0:
                return {}
            continue  # a round was cut off
        found.update((key, print_) for key, print_ in rows if print_ is not None)
        for key, print_ in rows:
            if print_ is None:
                found.pop(key, None)
    return found


def _read(path: Path) -> bytes | None:
    try:
        return private.read(path)
    except FilesError:
        return None
