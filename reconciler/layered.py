# SPDX-License-Identifier: Apache-2.0
"""Changes on top of a mapping, which cost nothing but themselves until they are folded into it."""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

GONE: Any = object()
"""In the place of a value: there is none."""


class Layered(MutableMapping[K, V]):
    """A mapping and changes on top of it, which leave it as it is until they are folded into it."""

    __slots__ = ("_changes", "base")

    def __init__(self, base: Mapping[K, V]) -> None:
        self.base: Any = base
        self._changes: dict[Any, Any] = {}

    @property
    def changes(self) -> Collection[K]:
        """The keys that were written or deleted."""
        return self._changes.keys()

    def __getitem__(self, key: K) -> V:
        found = self._changes.get(key, self)
        if found is self:
            found = self.base[key]
        if found is GONE:
            raise KeyError(key)
        value: V = found
        return value

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D, /) -> V | D: ...
    def get(self, key: K, default: object = None, /) -> object:
        found = self._changes.get(key, self)
        if found is self:
            return self.base.get(key, default)
        return default if found is GONE else found

    def __contains__(self, key: object) -> bool:
        found = self._changes.get(key, self)
        return key in self.base if found is self else found is not GONE

    def __setitem__(self, key: K, value: V) -> None:
        self._changes[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._changes[key] = GONE

    def __iter__(self) -> Iterator[K]:
        yield from (key for key in self.base if key not in self._changes)
        yield from (key for key, value in self._changes.items() if value is not GONE)

    def __len__(self) -> int:
        there = sum(value is not GONE for value in self._changes.values())
        return len(self.base) + there - sum(key in self.base for key in self._changes)

    def _all(self) -> dict[K, V]:
        content: dict[K, V] = self.base.copy() if isinstance(self.base, dict) else dict(self.base.items())
        change_in(content, self._changes)
        return content

    def items(self) -> ItemsView[K, V]:
        return self._all().items()

    def values(self) -> ValuesView[V]:
        return self._all().values()

    def fold(self) -> dict[K, V]:
        """Make the changes in the dictionary below, and return it. For its owner only."""
        base = folded(self.base)
        change_in(base, self._changes)
        return base


def change_in(content: dict[Any, Any], changes: Mapping[Any, Any]) -> None:
    """Make changes in a dictionary; GONE stands for a key that goes."""
    for key, value in changes.items():
        if value is GONE:
            content.pop(key, None)
        else:
            content[key] = value


def folded(mapping: Mapping[K, V]) -> dict[K, V]:
    """A mapping as a dictionary: the one below its layers, which has all changes from now on."""
    if isinstance(mapping, Layered):
        return mapping.fold()
    return mapping if isinstance(mapping, dict) else dict(mapping)
