# SPDX-License-Identifier: Apache-2.0
"""BPF maps by file descriptor: create, describe, read and write rows, many at once. `whole_maps` is about all rows.

Keys and values are bytes. A write of many rows gives one outcome a row and goes on after a row that fails; the
kernel's own batches stop there. Any other call that the kernel refuses raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import MMAPABLE, MapType
from reconciler.dataplane.slots import Words
from reconciler.kernel.bpf import NAME_BYTES, Command, call, closing, memory, object_info
from reconciler.kernel.cpus import cpu_stride, numbered_cpus, possible_cpus

_NO_EXIST = 1  # BPF_NOEXIST
_BYTES_PER_CALL = 1 << 17
_WORD = struct.Struct("=Q")
_INDEX = struct.Struct("=I")
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.CPU_ARRAY)
"""Their rows are always there, zeros if nobody wrote them."""

Row = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Shape:
    """Type and sizes of a map: a map can replace another one only if their shapes are equal."""

    type: int
    key_size: int
    value_size: int
    capacity: int

    def __str__(self) -> str:
        kind = MapType(self.type).name if self.type in set(MapType) else f"type {self.type}"
        return f"{kind}, keys of {self.key_size} bytes, values of {self.value_size}, {self.capacity} rows"


@dataclass(frozen=True, slots=True)
class OpenMap:
    """A map that is open: its file descriptor, its number, its shape, the flags that it was made with, and as much
    of its name as the kernel keeps."""

    fd: int
    id: int
    shape: Shape
    flags: int = 0
    name: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes that one value takes in a call: of a per-CPU map, the values of all CPUs."""
        if self.shape.type == MapType.PERCPU_ARRAY:
            return cpu_stride(self.shape.value_size) * possible_cpus()
        if self.shape.type == MapType.CPU_ARRAY:
            return cpu_stride(self.shape.value_size) * numbered_cpus()
        return self.shape.value_size

    @property
    def rows_per_call(self) -> int:
        """How many rows go into one batch."""
        return max(_BYTES_PER_CALL // (self.shape.key_size + self.row_bytes), 1)


def create(name: str, shape: Shape, *, flags: int = 0, inner: int | None = None) -> int:
    """Make a map and return its file descriptor; `inner` is a template for the maps in an array of maps."""
    if shape.type == MapType.CPU_ARRAY:
        shape, flags = replace(shape, type=MapType.ARRAY, capacity=shape.capacity * numbered_cpus()), flags | MMAPABLE
    return call(Command.MAP_CREATE, memory(struct.pack(
        "=7I16s", shape.type, shape.key_size, shape.value_size, shape.capacity, flags, inner or 0, 0,
        name[:NAME_BYTES].encode(),
    )))  # fmt: skip


@contextmanager
def grace() -> Iterator[Callable[[], None]]:
    """A function that returns when all packets are through that programs had begun with before the call.

    The kernel waits for running programs whenever user space writes an element of an array of maps (commit
    1ae80cf31938).
    """
    with closing(create("lbctl_grace", Shape(MapType.ARRAY, 4, 4, 1))) as inner:
        outer = create("lbctl_grace", Shape(MapType.ARRAY_OF_MAPS, 4, 4, 1), inner=inner)
        with closing(outer):
            opened = describe(outer)
            yield lambda: update_one(opened, bytes(4), struct.pack("=I", inner))


def describe(fd: int, type_: int = MapType.ARRAY) -> OpenMap:
    """The number and the shape of an open map. The kernel has no CPU_ARRAY, and calls it an array: who knows better
    says so."""
    info = memory(88)
    object_info(fd, info)
    kernels_type, number, key_size, value_size, capacity, flags = struct.unpack_from("=6I", info)
    name = info.raw[24:40].split(b"\0")[0].decode("ascii", "replace")
    shape = Shape(kernels_type, key_size, value_size, capacity)
    if type_ == MapType.CPU_ARRAY:
        shape = replace(shape, type=type_, capacity=capacity // numbered_cpus())
    return OpenMap(fd, number, shape, flags, name)


def lookup(opened: OpenMap, key: bytes) -> bytes | None:
    """The value of one key, None if there is none. Of a map of maps: the number of the inner map."""
    wanted, found = _key(opened, key), memory(opened.row_bytes)
    if opened.shape.type == MapType.CPU_ARRAY:
        row = _INDEX.unpack(key)[0]
        return by_cpu(opened)[:, row].tobytes() if row < opened.shape.capacity else None
    try:
        call(Command.MAP_LOOKUP_ELEM, memory(struct.pack(
            "=IIQQQ", opened.fd, 0, ctypes.addressof(wanted), ctypes.addressof(found), 0)))  # fmt: skip
    except FileNotFoundError:
        return None
    return found.raw


def mapped(opened: OpenMap) -> mmap.mmap:
    """The memory of an array that can be mapped; rows take multiples of eight bytes in it."""
    size = opened.shape.capacity * cpu_stride(opened.shape.value_size)
    return mmap.mmap(opened.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)


def by_cpu(opened: OpenMap) -> NDArray[np.uint8]:
    """The content of a CPU_ARRAY, in place: bytes by number of the CPU, row, and place in the row."""
    shape = opened.shape
    stride = cpu_stride(shape.value_size)
    size = stride * shape.capacity * numbered_cpus()
    shared = mmap.mmap(opened.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    return np.frombuffer(shared, np.uint8, size).reshape(numbered_cpus(), shape.capacity, stride)


def words(opened: OpenMap) -> Words:
    """The content of an array that can be mapped into memory, in place: values of 64-bit words."""
    shape = opened.shape
    size = shape.value_size * shape.capacity
    shared = mmap.mmap(opened.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    return np.frombuffer(shared, np.uint64, size // _WORD.size)  # holds `shared`, and the map


def update(opened: OpenMap, rows: Sequence[Row]) -> list[OSError | None]:
    """Write rows, each of which replaces what is there. ValueError if a row has not the map's sizes.

    Rows of one word in an array that can be mapped are written with one store each; the kernel copies byte by byte.
    """
    if opened.flags & MMAPABLE and opened.shape.value_size == _WORD.size:
        return _store(opened, rows)
    keys = _joined([key for key, _ in rows], opened.shape.key_size, "key")
    values = _joined([value for _, value in rows], opened.row_bytes, "value")
    return batches(Command.MAP_UPDATE_BATCH, opened, keys, values)


def write_joined(opened: OpenMap, keys: bytes, values: bytes) -> list[OSError | None]:
    """Write rows whose keys, and whose values, are joined; an outcome for each row."""
    return batches(Command.MAP_UPDATE_BATCH, opened, keys, values)


def _store(opened: OpenMap, rows: Sequence[Row]) -> list[OSError | None]:
    values = np.frombuffer(_joined([value for _, value in rows], _WORD.size, "value"), np.uint64)
    indexes = np.frombuffer(_joined([key for key, _ in rows], opened.shape.key_size, "key"), np.uint32)
    fits = indexes < opened.shape.capacity
    words(opened)[indexes[fits]] = values[fits]
    return _outcomes(fits)


def delete(opened: OpenMap, keys: Sequence[bytes]) -> list[OSError | None]:
    """Remove rows; what is absent is no error. Rows of an array are filled with zeros instead."""
    if opened.shape.type in ARRAYS:
        zero = bytes(opened.row_bytes)
        return update(opened, [(key, zero) for key in keys])
    joined = _joined(keys, opened.shape.key_size, "key")
    outcomes = batches(Command.MAP_DELETE_BATCH, opened, joined, None)
    return [None if isinstance(outcome, FileNotFoundError) else outcome for outcome in outcomes]


def update_one(opened: OpenMap, key: bytes, value: bytes, flags: int = 0) -> None:
    """Write one row. Into a map of maps or programs, `value` is the descriptor of one."""
    if opened.shape.type == MapType.CPU_ARRAY:
        for error in filter(None, update(opened, [(key, value)])):
            raise error
        return
    where, what = _key(opened, key), memory(_joined([value], opened.row_bytes, "value"))
    call(Command.MAP_UPDATE_ELEM, memory(struct.pack(
        "=IIQQQ", opened.fd, 0, ctypes.addressof(where), ctypes.addressof(what), flags)))  # fmt: skip


def insert_one(opened: OpenMap, key: bytes, value: bytes) -> bool:
    """Write one row unless there is one; returns whether it was written."""
    try:
        update_one(opened, key, value, _NO_EXIST)
    except FileExistsError:
        return False
    return True


def delete_one(opened: OpenMap, key: bytes) -> None:
    """Remove one row; no error if it is absent."""
    where = _key(opened, key)
    try:
        call(Command.MAP_DELETE_ELEM, memory(struct.pack(
            "=IIQQQ", opened.fd, 0, ctypes.addressof(where), 0, 0)))  # fmt: skip
    except FileNotFoundError:
        return


def batches(command: Command, opened: OpenMap, keys: bytes, values: bytes | None) -> list[OSError | None]:
    """Have the kernel write or delete many rows, whose keys and values are joined; an outcome for each row."""
    key_size, row_bytes = opened.shape.key_size, opened.row_bytes
    count = len(keys) // key_size
    if opened.shape.type == MapType.CPU_ARRAY:
        return _store_by_cpu(opened, keys, values or b"")
    outcomes: list[OSError | None] = [None] * count
    start = 0
    while start < count:
        rows = min(opened.rows_per_call, count - start)
        key_memory = memory(keys[start * key_size : (start + rows) * key_size])
        value_memory = memory(values[start * row_bytes : (start + rows) * row_bytes] if values is not None else b"")
        attributes = memory(struct.pack(
            "=QQQQIIQQ", 0, 0, ctypes.addressof(key_memory),
            ctypes.addressof(value_memory) if values is not None else 0, rows, opened.fd, 0, 0,
        ))  # fmt: skip
        try:
            call(command, attributes)
            start += rows
        except OSError as error:
            # The kernel writes how many rows it has done, and stops at the row after them. If it refused
            # the call as a whole, it doesn't touch the count.
            (done,) = struct.unpack_from("=I", attributes, 32)
            if done >= rows:
                raise
            outcomes[start + done] = error
            start += done + 1
    return outcomes


def _store_by_cpu(opened: OpenMap, keys: bytes, values: bytes) -> list[OSError | None]:
    held, indexes = by_cpu(opened), np.frombuffer(keys, np.uint32)
    fits = indexes < opened.shape.capacity
    rows = np.frombuffer(values, np.uint8).reshape(indexes.size, *held.shape[::2])
    held[:, indexes[fits]] = rows[fits].swapaxes(0, 1)
    return _outcomes(fits)


def _outcomes(fits: NDArray[np.bool_]) -> list[OSError | None]:
    return [None if fit else OSError(errno.E2BIG, os.strerror(errno.E2BIG)) for fit in fits.tolist()]


def _joined(parts: Sequence[bytes], size: int, what: str) -> bytes:
    """The kernel trusts sizes: a part that is too short would have it read beyond the end."""
    for part in parts:
        if len(part) != size:
            raise ValueError(f"a {what} of {len(part)} bytes for a map whose {what}s have {size}")
    return b"".join(parts)


def _key(opened: OpenMap, key: bytes) -> ctypes.Array[ctypes.c_char]:
    return memory(_joined([key], opened.shape.key_size, "key"))
