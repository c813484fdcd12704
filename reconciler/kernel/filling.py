# SPDX-License-Identifier: Apache-2.0
"""From the maps of one generation to those of another: rows are read, converted and written, many at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from reconciler.dataplane.convert import Convert, converter, dtype_of
from reconciler.dataplane.description import MapDescription, describe
from reconciler.dataplane.flow_memory import Buckets, of_clients, of_flows, resized
from reconciler.dataplane.layout import (
    BOUND,
    CONNECTIONS,
    CONNECTIONS6,
    ENDPOINT_FILTER,
    MAPS,
    POOL_PORTS,
    REMEMBERED,
    RETURNS,
    RETURNS6,
    TRANSLATED,
    TRANSLATED6,
    MapType,
)
from reconciler.errors import KernelError
from reconciler.kernel import bpf, cpus, maps, whole_maps
from reconciler.kernel.maps import OpenMap
from reconciler.kernel.port import Row

_OF_CPUS: Mapping[int, Callable[[], Sequence[int]]] = {
    MapType.PERCPU_ARRAY: cpus.cpu_numbers, MapType.CPU_ARRAY: lambda: range(cpus.numbered_cpus()),
}  # fmt: skip
"""The kinds of maps that have a value for each CPU, and the numbers of these CPUs."""


_FILLED_ELSEWHERE = {
    spec.name for spec in (
        CONNECTIONS, CONNECTIONS6, ENDPOINT_FILTER, TRANSLATED, TRANSLATED6, RETURNS, RETURNS6, POOL_PORTS,
    )
}  # fmt: skip


CLAIMS: Mapping[str, Callable[[Buckets], Buckets]] = {REMEMBERED.name: of_flows, BOUND.name: of_clients}
"""By map of buckets: who stays where there is too little room."""


def fill(name: str, source: OpenMap, held: MapDescription, target: OpenMap, wanted: MapDescription) -> None:
    """Write all rows of `source` into `target`, which is empty. Raises KernelError if a row does not fit."""
    if source.shape.type == MapType.ARRAY_OF_MAPS:
        _share(name, source, held, target, wanted)
        return
    if name in _FILLED_ELSEWHERE:
        return  # the places depend on the generation's secret, or on the map's size: handing.py
    if name in CLAIMS:
        content = resized(buckets_of(source), wanted.capacity, CLAIMS[name])
        whole_maps.overwrite(target, [(b"", content.tobytes())])
        return
    convert = between(name, held, wanted)
    for keys, values in whole_maps.chunks(source):
        if source.shape.type in maps.ARRAYS:
            keys, values = _used(keys, values, source)
        keys, values = convert((keys, values))
        lost = [outcome for outcome in maps.write_joined(target, keys, values) if outcome] if keys else []
        if lost:
            raise KernelError(
                f"map {name} would have room for {wanted.capacity:,} rows, and {len(lost):,} or more that are in use "
                f"don't fit: {lost[0].strerror}",
                hint="a larger capacity of the Node",
            )


def _share(name: str, source: OpenMap, held: MapDescription, target: OpenMap, wanted: MapDescription) -> None:
    """Put the inner arrays of one map into another one. Raises KernelError if they would have to be others."""
    if replace(held, capacity=0) != replace(wanted, capacity=0):
        raise KernelError(f"map {name}: no way is known from its inner arrays to those of this version")
    for keys, values in whole_maps.chunks(source):
        for key, number in cut(keys, values, len(keys) // 4):
            fd = bpf.open_map(int.from_bytes(number, sys.byteorder))
            if fd is not None:
                with bpf.closing(fd):
                    maps.update_one(target, key, fd.to_bytes(4, sys.byteorder))


def buckets_of(opened: OpenMap) -> Buckets:
    """The flows that are remembered, bucket by bucket."""
    return np.frombuffer(whole_maps.read_array(opened), np.uint64).reshape(opened.shape.capacity, -1)


def converted(name: str, held: MapDescription, rows: Sequence[Row]) -> list[Row]:
    """Rows of another layout as rows of this version's."""
    joined = b"".join(key for key, _ in rows), b"".join(value for _, value in rows)
    return list(cut(*between(name, held, describe(MAPS[name]))(joined), len(rows)))


def cut(keys: bytes, values: bytes, count: int) -> Iterator[Row]:
    """Joined rows, one by one."""
    if count:
        key, value = len(keys) // count, len(values) // count
        for row in range(count):
            yield keys[row * key : (row + 1) * key], values[row * value : (row + 1) * value]


def between(name: str, held: MapDescription, wanted: MapDescription) -> Convert:
    """The conversion of joined rows as the kernel gives and takes them: of per-CPU maps, the values of all CPUs."""
    spec = MAPS[name]
    defaults = spec.key.pack(spec.key.default), spec.value.pack(spec.value.default)
    convert = converter(name, held, wanted, defaults)
    if held.type not in _OF_CPUS or (held.type, held.value) == (wanted.type, wanted.value):
        return convert

    def each_cpu(rows: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """The kernel rounds the room for each CPU's value up to 8 bytes."""
        held_by = _OF_CPUS[held.type]()
        stride = len(rows[1]) // max(len(rows[0]) // 4 * len(held_by), 1)
        size = _size(held)
        packed = np.frombuffer(rows[1], np.uint8).reshape(-1, max(stride, 1))[:, :size].tobytes()
        keys, values = convert((rows[0], b""))[0], convert((b"", packed))[1]
        width = _size(wanted)
        made = np.zeros((len(keys) // 4, cpus.numbered_cpus(), cpus.cpu_stride(width)), np.uint8)
        made[:, held_by, :width] = np.frombuffer(values, np.uint8).reshape(len(made), len(held_by), width)
        return keys, made[:, _OF_CPUS[wanted.type]()].tobytes()

    return each_cpu


def _size(of: MapDescription) -> int:
    return dtype_of(of.value).itemsize


def _used(keys: bytes, values: bytes, source: OpenMap) -> Row:
    """The rows of an array that are not all zero."""
    rows = np.frombuffer(values, np.uint8).reshape(-1, source.row_bytes)
    used = rows.any(axis=1)
    names = np.frombuffer(keys, np.uint8).reshape(-1, source.shape.key_size)
    return names[used].tobytes(), rows[used].tobytes()
