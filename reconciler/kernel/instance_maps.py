# SPDX-License-Identifier: Apache-2.0
"""The maps of one instance: rows, and arrays of arrays. Nothing is remembered between calls."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from reconciler.dataplane.description import MapDescription, describe
from reconciler.dataplane.layout import (
    CONNECTIONS,
    FRONTS,
    INNER_IDS,
    MAPS,
    MMAPABLE,
    RING_NAMES,
    RINGS,
    SERVICE_CHANGES,
    SERVICE_MAPS,
    STAGES,
    SWEPT_MAPS,
    VIP_MAPS,
    MapSpec,
    MapType,
)
from reconciler.dataplane.slots import Words
from reconciler.dataplane.stages import StageNumber
from reconciler.errors import KernelError
from reconciler.kernel import atomic, bpf, filling, generations, handing, holders, maps, stages, whole_maps, xdp
from reconciler.kernel.generations import Generation
from reconciler.kernel.instance import Instance
from reconciler.kernel.maps import OpenMap, Shape
from reconciler.kernel.port import Outcome, Row
from reconciler.kernel.refusal import refused

_INDEX = struct.Struct("=I")
_KEPT = {*(spec.name for spec in SERVICE_MAPS.values()), *(spec.name for spec in VIP_MAPS.values())}


class InstanceMaps:
    """The part of `port.Kernel` that is about maps."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._kept: Generation | None = None
        """The live generation, while nobody else can change it."""
        self._grace: Grace | None = None
        """Began after rings were written last, while nobody else can write them."""
        self._ring_names: Row | None = None
        """All names of rings as they were read last, while nobody else can write them."""

    @contextmanager
    def steady(self) -> Iterator[None]:
        with refused(f"instance {self._instance.name}"):
            self._kept = holders.live(self._instance)
        self._grace = Grace() if self._kept else None
        try:
            yield
        finally:
            self._unsettle()

    def _note_write(self, map_name: str) -> None:
        """What rings have left just now programs may still read: a wait that began before says nothing of that."""
        if map_name == RING_NAMES.name:
            self._ring_names = None
        if map_name == RINGS.name and self._grace is not None:
            self._grace.join()
            self._grace = None

    def _unsettle(self) -> None:
        """From now on everything is found out when it is needed."""
        grace, self._kept, self._grace, self._ring_names = self._grace, None, None, None
        if grace is not None:
            grace.join()

    # --- maps ------------------------------------------------------------------------------------------
    def dump(self, map_name: str) -> list[Row]:
        name = INNER_IDS[map_name].name if map_name in INNER_IDS else map_name
        with self._held(name) as held:
            if held is None or held.opened.shape.type == MapType.PROG_ARRAY:
                return []
            rows = list(whole_maps.dump(held.opened))
            return rows if held.is_own else filling.converted(name, held.description, rows)

    def joined(self, map_name: str) -> Row:
        if self._kept is None or map_name != RING_NAMES.name:
            return self._joined(map_name)
        if self._ring_names is None:
            self._ring_names = self._joined(map_name)
        return self._ring_names

    def _joined(self, map_name: str) -> Row:
        with self._held(map_name) as held:
            if held and held.is_own:
                return whole_maps.read_joined(held.opened)
        if map_name in (CONNECTIONS.name, FRONTS.name) and held is None:
            with refused(f"map {map_name}"):
                generation = holders.live(self._instance)
                if generation and handing.has_former(generation):
                    return handing.read(generation, map_name)
        rows = self.dump(map_name)
        return b"".join(key for key, _ in rows), b"".join(value for _, value in rows)

    def lookup(self, map_name: str, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._held(map_name) as held:
            if held is None or held.is_own:
                return [maps.lookup(held.opened, key) if held else None for key in keys]
            absent = bytes(MAPS[map_name].value_size) if held.opened.shape.type == MapType.ARRAY else None
        rows = dict(self.dump(map_name))
        return [rows.get(key, absent) for key in keys]

    def update(self, map_name: str, rows: Sequence[Row]) -> list[Outcome]:
        self._note_write(map_name)
        with self._map(map_name) as opened:
            if opened is None:
                return [_no_map(map_name)] * len(rows)
            outcomes = maps.update(opened, rows)
            self._changed(map_name)
            return [outcome and _row_error(map_name, opened, outcome) for outcome in outcomes]

    def delete(self, map_name: str, keys: Sequence[bytes]) -> list[Outcome]:
        self._note_write(map_name)
        with self._map(map_name) as opened:
            if opened is None:
                return [None] * len(keys)
            outcomes = maps.delete(opened, keys)
            self._changed(map_name)
            return [outcome and _row_error(map_name, opened, outcome) for outcome in outcomes]

    def _changed(self, map_name: str) -> None:
        """Have programs forget what they know of services and VIPs, if it was one of their tables that was changed."""
        if map_name not in _KEPT:
            return
        with self._held(SERVICE_CHANGES.name) as held:
            if held:
                maps.words(held.opened)[0] += np.uint64(1)

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
            generation = self._kept or holders.live(self._instance)
            fd = generation.open(name) if generation else None
            if generation is None or fd is None:
                yield None
                return
            with bpf.closing(fd):
                held = generation.description.maps[name]
                yield _Held(maps.describe(fd, held.type), held, describe(MAPS[name]))

    # --- memory that programs and processes share ------------------------------------------------------
    def words(self, map_name: str) -> Words | None:
        with self._map(map_name) as opened:
            return maps.words(opened) if opened else None

    def words_elsewhere(self, map_name: str) -> list[Words]:
        with refused(f"map {map_name}"):
            live = self._kept or holders.live(self._instance)
            return [] if live is None else list(_elsewhere(live, map_name))

    def swap_words(self, map_name: str, swaps: Sequence[tuple[int, int, int]]) -> list[bool]:
        with self._map(map_name) as opened:
            if opened is None:
                return [False] * len(swaps)
            words = maps.words(opened)
            return [index < words.size and atomic.swap(words, index, seen, wanted) for index, seen, wanted in swaps]

    def sweep_translated(self, version: int, buckets: int) -> int:
        number = {4: StageNumber.SWEEP, 6: StageNumber.SWEEP6}[version]
        with self._map(SWEPT_MAPS[version].name) as swept, self._map(STAGES.name) as array:
            if swept is None or array is None:
                return 0
            count = maps.words(swept)
            before = int(count[1])
            with refused("the sweep of connections"):
                stages.run(array, number, buckets)
            return int(count[1]) - before

    def chunk(self, outer: str, index: int) -> Words | None:
        with self._inner(outer, index) as inner:
            return maps.words(inner) if inner else None

    def add_chunk(self, outer: str, index: int) -> Words:
        with self._map(outer) as opened, refused(f"{outer} {index}"):
            if opened is None:
                raise _no_map(outer)
            with bpf.closing(maps.create(f"lbctl_{outer}", inner_shape(MAPS[outer]), flags=MMAPABLE)) as fd:
                inner = maps.describe(fd)
                # The note goes last: an array without one counts as absent, and another one may take its place.
                maps.update_one(opened, _INDEX.pack(index), _INDEX.pack(fd))
                note = _INDEX.pack(index), _INDEX.pack(inner.id)
                for error in filter(None, self.update(INNER_IDS[outer].name, [note])):
                    raise error
                return maps.words(inner)

    def remove_chunks(self, outer: str, indexes: Sequence[int]) -> None:
        with self._map(outer) as opened, refused(outer):
            for error in filter(None, self.delete(INNER_IDS[outer].name, [_INDEX.pack(index) for index in indexes])):
                raise error
            for index in indexes:
                if opened:
                    maps.delete_one(opened, _INDEX.pack(index))

    def wait_for_programs(self, outer: str) -> None:
        """The kernel waits for all programs when an array of maps is written (maybe_wait_bpf_programs in its
        kernel/bpf/syscall.c), so an inner array is put to where it is already."""
        grace, self._grace = self._grace, None
        if grace is not None and grace.has_passed():
            return
        with self._map(outer) as opened, refused(outer):
            for key, _ in self.dump(outer):
                with self._inner(outer, _INDEX.unpack(key)[0]) as inner:
                    if inner and opened:
                        maps.update_one(opened, key, _INDEX.pack(inner.fd))
                        return

    @contextmanager
    def _inner(self, outer: str, index: int) -> Iterator[OpenMap | None]:
        with self._map(outer) as opened, self._map(INNER_IDS[outer].name) as ids, refused(f"{outer} {index}"):
            number = maps.lookup(ids, _INDEX.pack(index)) if ids else None
            if opened is None or number is None or not any(number):
                yield None
                return
            with ExitStack() as stack:
                inner = _open_inner(outer, number, stack)
                if inner is None:  # the note was damaged
                    number = maps.lookup(opened, _INDEX.pack(index))
                    inner = _open_inner(outer, number, stack) if number else None
                yield inner


def _elsewhere(live: Generation, map_name: str) -> Iterator[Words]:
    """As `words_elsewhere`; each map once."""
    seen = {live.description.ids.get(map_name)}
    for held in xdp.running():
        if held.program is None or held.id == live.program.id or not holders.are_kin(live.program, held.program):
            continue
        generation = generations.of_program(held.program)
        number = generation.description.ids.get(map_name) if generation else None
        if generation is None or number is None or number in seen or (fd := generation.open(map_name)) is None:
            continue
        seen.add(number)
        with bpf.closing(fd):
            described = generation.description.maps[map_name]
            rows = whole_maps.read_joined(maps.describe(fd, described.type))
        yield np.frombuffer(filling.between(map_name, described, describe(MAPS[map_name]))(rows)[1], np.uint64)


def _open_inner(outer: str, number: bytes, stack: ExitStack) -> OpenMap | None:
    fd = bpf.open_map(_INDEX.unpack(number)[0])
    if fd is None:
        return None
    inner = maps.describe(stack.enter_context(bpf.closing(fd)))
    return inner if inner.shape == inner_shape(MAPS[outer]) and inner.flags & MMAPABLE else None


class Grace(threading.Thread):
    """Waits until every program has ended that was under way when it began. That takes some 15 ms, in which others can
    work."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._is_over = False
        self.start()

    def run(self) -> None:
        with suppress(OSError), maps.grace() as passed:
            passed()
            self._is_over = True

    def has_passed(self) -> bool:
        """Wait for it; False if the kernel refused."""
        self.join()
        return self._is_over


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
    """The shape of the inner arrays of an array of arrays."""
    return Shape(MapType.ARRAY, _INDEX.size, spec.inner.size if spec.inner else 0, spec.inner_capacity)


def _no_map(name: str) -> KernelError:
    return KernelError(f"there is no map {name}: no program is loaded", hint="lbctl apply")


def _row_error(name: str, opened: OpenMap, error: OSError) -> KernelError:
    capacity = opened.shape.capacity
    if error.errno == errno.E2BIG and opened.shape.type in maps.ARRAYS:
        return KernelError(f"map {name} has no such row: it has {capacity:,}")
    if error.errno == errno.E2BIG:
        return KernelError(f"map {name} is full: it has room for {capacity:,} rows")
    return KernelError(f"map {name}: {error.strerror}")
