# SPDX-License-Identifier: Apache-2.0
"""Maps in memory, with the rules of those of the kernel: sizes of rows, capacities, arrays that have every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reconciler.dataplane.layout import MAPS, NUMBER, MapType
from reconciler.dataplane.rows import Number
from reconciler.dataplane.slots import Words
from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome, Row

_FIXED = (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.CPU_ARRAY)


@dataclass(kw_only=True)
class FakeMaps:
    """`writes` lists every write, in order: the name of the method and what it was about. `on_write` is called after
    each one: tests use it to check every state that packets would see. `inner` are arrays in arrays."""

    maps: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    inner: dict[str, dict[int, Words]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    writes: list[tuple[str, object]] = field(default_factory=list)
    on_write: Callable[[], None] = lambda: None

    def _wrote(self, method: str, what: object) -> None:
        self.writes.append((method, what))
        self.on_write()

    def dump(self, map_name: str) -> list[Row]:
        if map_name in self.inner:
            return [(NUMBER.pack(Number(index)), bytes(4)) for index in sorted(self.inner[map_name])]
        return list(self.maps.get(map_name, {}).items())

    def joined(self, map_name: str) -> Row:
        rows = self.maps.get(map_name, {})
        return b"".join(rows.keys()), b"".join(rows.values())

    def lookup(self, map_name: str, keys: Sequence[bytes]) -> list[bytes | None]:
        rows, spec = self.maps.get(map_name), MAPS[map_name]
        absent = bytes(spec.value_size) if rows is not None and spec.type in _FIXED else None
        return [(rows or {}).get(key, absent) for key in keys]

    def update(self, map_name: str, rows: Sequence[Row]) -> list[Outcome]:
        return [self._update(map_name, key, value) for key, value in rows]

    def _update(self, map_name: str, key: bytes, value: bytes) -> Outcome:
        spec = MAPS[map_name]
        rows = self.maps.get(map_name)
        if rows is None:
            return KernelError(f"map {map_name} does not exist")
        if (len(key), len(value)) != (spec.key_size, spec.value_size):
            raise AssertionError(f"{map_name}: a row of {len(key)} + {len(value)} bytes")
        capacity = self.sizes.get(map_name, spec.capacity)
        if spec.type in _FIXED and NUMBER.unpack(key).number >= capacity:
            return KernelError(f"map {map_name} has no row {key.hex()}")
        if key not in rows and len(rows) >= capacity:
            return KernelError(f"map {map_name} is full")
        rows[key] = value
        if spec.type in _FIXED and not any(value):
            del rows[key]
        self._wrote("update", (map_name, key))
        return None

    def delete(self, map_name: str, keys: Sequence[bytes]) -> list[Outcome]:
        return [self._delete(map_name, key) for key in keys]

    def _delete(self, map_name: str, key: bytes) -> Outcome:
        rows = self.maps.get(map_name, {})
        if key in rows:
            del rows[key]
            self._wrote("delete", (map_name, key))
        return None

    def capacity(self, map_name: str) -> int:
        return self.sizes.get(map_name, 0) if map_name in self.maps else 0

    # --- memory that programs and processes share ------------------------------------------------------
    def words(self, map_name: str) -> Words | None:
        rows = self.maps.get(map_name)
        if rows is None or not self.capacity(map_name):
            return None
        content = np.zeros((self.capacity(map_name), MAPS[map_name].value_size // 8), np.uint64)
        for key, value in rows.items():
            content[NUMBER.unpack(key).number] = np.frombuffer(value, np.uint64)
        return content.reshape(-1)

    def swap_words(self, map_name: str, swaps: Sequence[tuple[int, int, int]]) -> list[bool]:
        return [self._swap(map_name, *swap) for swap in swaps]

    def _swap(self, map_name: str, index: int, seen: int, wanted: int) -> bool:
        row = MAPS[map_name].value_size // 8
        key = NUMBER.pack(Number(index // row))
        if index // row >= self.capacity(map_name):
            return False
        words = np.frombuffer(self.maps[map_name].get(key, bytes(row * 8)), np.uint64).copy()
        if int(words[index % row]) != seen:
            return False
        words[index % row] = wanted
        return self._update(map_name, key, words.tobytes()) is None

    def chunk(self, outer: str, index: int) -> Words | None:
        return self.inner.get(outer, {}).get(index)

    def add_chunk(self, outer: str, index: int) -> Words:
        spec = MAPS[outer]
        if outer not in self.maps or index >= self.capacity(outer) or not spec.inner:
            raise KernelError(f"map {outer} has no room for {index}")
        assert index not in self.inner.get(outer, {})
        made = np.zeros(spec.inner_capacity * spec.inner.size // 8, np.uint64)
        self.inner.setdefault(outer, {})[index] = made
        self._wrote("add_chunk", (outer, index))
        return made

    def remove_chunks(self, outer: str, indexes: Sequence[int]) -> None:
        for index in indexes:
            if self.inner.get(outer, {}).pop(index, None) is not None:
                self._wrote("remove_chunks", (outer, index))

    def words_elsewhere(self, map_name: str) -> list[Words]:
        return []
