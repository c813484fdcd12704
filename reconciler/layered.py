# SPDX-License-Identifier: Apache-2.0
"""Large dictionaries that change little: what a change costs does not depend on how much there is besides."""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_GONE: Any = object()
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
        if found is _GONE:
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
        return default if found is _GONE else found

    def __contains__(self, key: object) -> bool:
        found = self._changes.get(key, self)
        return key in self.base if found is self else found is not _GONE

    def __setitem__(self, key: K, value: V) -> None:
        self._changes[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._changes[key] = _GONE

    def __iter__(self) -> Iterator[K]:
        yield from (key for key in self.base if key not in self._changes)
        yield from (key for key, value in self._changes.items() if value is not _GONE)

    def __len__(self) -> int:
        there = sum(value is not _GONE for value in self._changes.values())
        return len(self.base) + there - sum(key in self.base for key in self._changes)

    def _all(self) -> dict[K, V]:
        content: dict[K, V] = self.base.copy() if isinstance(self.base, dict) else dict(self.base.items())
        _change(content, self._changes)
        return content

    def items(self) -> ItemsView[K, V]:
        return self._all().items()

    def values(self) -> ValuesView[V]:
        return self._all().values()

    def fold(self) -> dict[K, V]:
        """Make the changes in the dictionary below, and return it. For its owner only."""
        base = folded(self.base)
        _change(base, self._changes)
        return base


def _change(content: dict[Any, Any], changes: Mapping[Any, Any]) -> None:
    for key, value in changes.items():
        if value is _GONE:
            content.pop(key, None)
        else:
            content[key] = value


def folded(mapping: Mapping[K, V]) -> dict[K, V]:
    """A mapping as a dictionary: the one below its layers, which has all changes from now on."""
    if isinstance(mapping, Layered):
        return mapping.fold()
    return mapping if isinstance(mapping, dict) else dict(mapping)


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
        self._differing = {key: content.get(key, _GONE) for key in changes.changes}
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
        return version._content.get(key, _GONE)

    def __getitem__(self, key: K) -> V:
        found = self._of(key)
        if found is _GONE:
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
        return default if found is _GONE else found

    def __contains__(self, key: object) -> bool:
        return key in self._content if self._content is not None else self._of(key) is not _GONE

    def _all(self) -> dict[K, V]:
        if self._content is not None:
            return self._content
        content: dict[K, V] = dict(self._next._all())
        _change(content, self._differing)
        return content

    def __iter__(self) -> Iterator[K]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return bool(self._content) or any(True for _ in self)

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
