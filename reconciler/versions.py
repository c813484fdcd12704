# SPDX-License-Identifier: Apache-2.0
"""Versions of a large dictionary that changes little: what a new one costs does not depend on how much there is."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, TypeVar, overload

from reconciler.layered import GONE, Layered, change_in, folded

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class Version(Mapping[K, V]):
    """One of several versions of a dictionary, none of which changes.

    The newest one has the dictionary; an older one knows the next, and what differs from it. (Baker 1991, "Shallow
    binding makes functional arrays fast".)
    """

    __slots__ = ("_content", "_differing", "_next")

    def __init__(self, content: dict[K, V]) -> None:
        self._content: dict[Any, Any] | None = content
        self._next = self
        self._differing: dict[Any, Any] = {}

    def with_changes(self, changes: Layered[K, V]) -> Version[K, V]:
        """The version that these changes of this one lead to: made from the newest version, it costs no copy."""
        if not changes.changes:
            return self
        content = self._content
        if content is None:
            return Version(dict(changes.items()))
        self._differing = {key: content.get(key, GONE) for key in changes.changes}
        self._content = None
        changes.base = content
        self._next = Version(changes.fold())
        return self._next

    def _of(self, key: object) -> Any:
        version = self
        while version._content is None:
            found = version._differing.get(key, version)
            if found is not version:
                return found
            version = version._next
        return version._content.get(key, GONE)

    def __getitem__(self, key: K) -> V:
        found = self._of(key)
        if found is GONE:
            raise KeyError(key)
        value: V = found
        return value

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D, /) -> V | D: ...
    def get(self, key: K, default: object = None, /) -> object:
        if self._content is not None:
            return self._content.get(key, default)
        found = self._of(key)
        return default if found is GONE else found

    def __contains__(self, key: object) -> bool:
        return key in self._content if self._content is not None else self._of(key) is not GONE

    def _all(self) -> dict[K, V]:
        if self._content is not None:
            return self._content
        content: dict[K, V] = dict(self._next._all())
        change_in(content, self._differing)
        return content

    def __iter__(self) -> Iterator[K]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        if self._content is not None:
            return bool(self._content)
        return any(value is not GONE for value in self._differing.values()) or bool(self._all())

    def keys(self) -> KeysView[K]:
        return self._all().keys()

    def items(self) -> ItemsView[K, V]:
        return self._all().items()

    def values(self) -> ValuesView[V]:
        return self._all().values()


def layer(mapping: Mapping[K, V]) -> MutableMapping[K, V]:
    """For changes to a version, or to an empty mapping, that lead to another version."""
    return Layered(mapping) if mapping else {}


def version(changed: MutableMapping[K, V]) -> Version[K, V]:
    """The version that such changes have led to."""
    if not isinstance(changed, Layered):
        return Version(folded(changed))
    assert isinstance(changed.base, Version)
    return changed.base.with_changes(changed)
