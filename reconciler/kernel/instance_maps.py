# SPDX-License-Identifier: Apache-2.0
"""The maps of one instance: rows, and arrays of arrays. Nothing is remembered between calls."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from reconciler.dataplane.description import MapDescription, describe
from reconciler.dataplane.layout import INNER_IDS, MAPS, MapSpec, MapType
from reconciler.errors import KernelError
from reconciler.kernel import bpf, filling, holders, maps
from reconciler.kernel.instance import Instance
from reconciler.kernel.maps import OpenMap, Shape
from reconciler.kernel.port import Outcome, Row
from reconciler.kernel.refusal import refused

_INNER_A_CALL = 128  # each needs a file descriptor during the call; a process has 1,024 by default
_INDEX = struct.Struct("=I")


class InstanceMaps:
    """The part of `port.Kernel` that is about maps."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    # --- maps ------------------------------------------------------------------------------------------
    def dump(self, map_name: str) -> list[Row]:
        name = INNER_IDS[map_name].name if map_name in INNER_IDS else map_name
        with self._held(name) as held:
            if held is None or held.opened.shape.type == MapType.PROG_ARRAY:
                return []
            rows = list(maps.dump(held.opened))
            return rows if held.is_own else filling.converted(name, held.description, rows)

    def update(self, map_name: str, rows: Sequence[Row]) -> list[Outcome]:
        with self._map(map_name) as opened:
            if opened is None:
                return [_no_map(map_name)] * len(rows)
            return [outcome and _row_error(map_name, opened, outcome) for outcome in maps.update(opened, rows)]

    def delete(self, map_name: str, keys: Sequence[bytes]) -> list[Outcome]:
        with self._map(map_name) as opened:
            if opened is None:
                return [None] * len(keys)
            return [outcome and _row_error(map_name, opened, outcome) for outcome in maps.delete(opened, keys)]

    def capacity(self, map_name: str) -> int:
        with self._held(map_name) as held:
            return held.opened.shape.capacity if held else 0

    @contextmanager
    def _map(self, name: str) -> Iterator[OpenMap | None]:
        """A map of the instance whose rows are those of this version; None if there is none.

        Raises KernelError if its rows are another version's: these are read by their description, and never written.
        """
        with self._held(name) as held:
            if held and not held.is_own:
                raise KernelError(
                    f"map {name} of instance {self._instance.name} has rows of another version of lbctl",
                    hint="lbctl apply: it begins with this version's program, which takes over the rows",
                )
            yield held.opened if held else None

    @contextmanager
    def _held(self, name: str) -> Iterator[_Held | None]:
        """A map of the live generation, None if there is none."""
        with refused(f"map {name}"):
            generation = holders.live(self._instance)
            fd = generation.open(name) if generation else None
            if generation is None or fd is None:
                yield None
                return
            with bpf.closing(fd):
                yield _Held(maps.describe(fd), generation.description.maps[name], describe(MAPS[name]))

    # --- arrays of arrays ------------------------------------------------------------------------------
    def read_inner(self, outer: str, index: int) -> bytes | None:
        with self._inner(outer, index) as inner:
            return maps.read_array(inner) if inner else None

    def replace_inner(self, outer: str, contents: Mapping[int, bytes]) -> list[Outcome]:
        # Each call waits until no CPU uses the former arrays (8 ms), however many they are: so one call takes many.
        items = list(contents.items())
        return [
            outcome for start in range(0, len(items), _INNER_A_CALL)
            for outcome in self._replace_inner(outer, items[start : start + _INNER_A_CALL])
        ]  # fmt: skip

    def _replace_inner(self, outer: str, contents: Sequence[tuple[int, bytes]]) -> list[Outcome]:
        with self._map(outer) as opened, refused(outer), ExitStack() as stack:
            if opened is None:
                return [_no_map(outer)] * len(contents)
            template = inner_shape(MAPS[outer])
            rows, ids = [], []
            for index, content in contents:
                shape = replace(template, capacity=len(content) // template.value_size)
                fd = stack.enter_context(bpf.closing(maps.create(f"lbctl_{outer}", shape, flags=maps.INNER_MAP)))
                inner = maps.describe(fd)
                maps.write_array(inner, content)
                rows.append((_INDEX.pack(index), _INDEX.pack(fd)))
                ids.append((_INDEX.pack(index), _INDEX.pack(inner.id)))
            # The number is noted before the array is put in its place. If the latter fails, `_inner` sees that the
            # noted array is gone; an array without a note would never be found.
            if any(noted := self.update(INNER_IDS[outer].name, ids)):
                return noted
            return [outcome and _row_error(outer, opened, outcome) for outcome in maps.update(opened, rows)]

    def patch_inner(self, outer: str, index: int, rows: Mapping[int, bytes]) -> None:
        with self._inner(outer, index) as inner:
            if inner is None:
                raise KernelError(f"{outer} has no array {index}")
            for error in filter(None, maps.update(inner, [(_INDEX.pack(row), value) for row, value in rows.items()])):
                raise error

    def remove_inner(self, outer: str, indexes: Sequence[int]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        with self._map(outer) as opened:
            for index in indexes:  # arrays of maps know no batched delete
                try:
                    if opened:
                        maps.delete_one(opened, _INDEX.pack(index))
                    outcomes.append(None)
                except OSError as error:
                    outcomes.append(KernelError(f"{outer} {index}: {error.strerror}"))
        gone = [_INDEX.pack(index) for index, outcome in zip(indexes, outcomes, strict=True) if not outcome]
        self.delete(INNER_IDS[outer].name, gone)
        return outcomes

    @contextmanager
    def _inner(self, outer: str, index: int) -> Iterator[OpenMap | None]:
        with self._map(outer) as opened, self._map(INNER_IDS[outer].name) as ids, refused(f"{outer} {index}"):
            number = maps.lookup(ids, _INDEX.pack(index)) if ids else None
            fd = bpf.open_map(_INDEX.unpack(number)[0]) if number and any(number) else None
            # If the noted array is gone, it was replaced just now, or never got to its place: ask the outer array.
            while fd is None and opened and number and any(number):
                number = maps.lookup(opened, _INDEX.pack(index))
                fd = bpf.open_map(_INDEX.unpack(number)[0]) if number else None
            if fd is None:
                yield None
                return
            with bpf.closing(fd):
                yield maps.describe(fd)


@dataclass(frozen=True, slots=True)
class _Held:
    """A map of the live generation, its description, and the one that this version would give it."""

    opened: OpenMap
    description: MapDescription
    wanted: MapDescription

    @property
    def is_own(self) -> bool:
        return self.description.has_rows_of(self.wanted)


def inner_shape(spec: MapSpec) -> Shape:
    """The shape of the inner arrays of an array of arrays; they differ in their capacity alone."""
    return Shape(MapType.ARRAY, _INDEX.size, spec.inner.size if spec.inner else 0, 1)


def _no_map(name: str) -> KernelError:
    return KernelError(f"there is no map {name}: no program is loaded", hint="lbctl apply")


def _row_error(name: str, opened: OpenMap, error: OSError) -> KernelError:
    capacity = opened.shape.capacity
    if error.errno == errno.E2BIG and opened.shape.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        return KernelError(f"map {name} has no such row: it has {capacity:,}")
    if error.errno == errno.E2BIG:
        return KernelError(f"map {name} is full: it has room for {capacity:,} rows")
    return KernelError(f"map {name}: {error.strerror}")
