# SPDX-License-Identifier: Apache-2.0
"""BPF maps by file descriptor: create, describe, read whole, write many rows at once.

Keys and values are bytes. A write of many rows gives one outcome a row and goes on after a row that fails; the
kernel's own batches stop there. Any other call that the kernel refuses raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import MMAPABLE, MapType
from reconciler.dataplane.slots import Words
from reconciler.kernel.bpf import NAME_BYTES, Command, call, closing, memory, object_info

_NO_EXIST = 1  # BPF_NOEXIST
_BYTES_PER_CALL = 1 << 17
_ROWS_PER_BLOCK = 64
_WORD = struct.Struct("=Q")
_INDEX = struct.Struct("=I")
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.CPU_ARRAY)
"""Their rows are always there, zeros if nobody wrote them."""
_CPUS = Path("/sys/devices/system/cpu/possible")

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


def dump(opened: OpenMap) -> Iterator[Row]:
    """All rows; of arrays, those that are not all zero.

    The dump may or may not show rows that somebody else writes meanwhile.
    """
    shape = opened.shape
    sparse = shape.type in ARRAYS
    for keys, values in _chunks(opened):
        yield from _rows(keys, values, shape.key_size, opened.row_bytes, sparse=sparse)


def _chunks(opened: OpenMap) -> Iterator[Row]:
    """Keys and values of many rows at a time, each joined."""
    rows = min(opened.rows_per_call, opened.shape.capacity)
    key_size, row_bytes = opened.shape.key_size, opened.row_bytes
    if opened.shape.type == MapType.CPU_ARRAY:
        held = by_cpu(opened)
        for start in range(0, opened.shape.capacity, rows):
            some = held[:, start : start + rows].swapaxes(0, 1)
            yield np.arange(start, start + len(some), dtype=np.uint32).tobytes(), some.tobytes()
        return
    # The position is a key or, in hash maps, a 32-bit number.
    position, started = memory(max(key_size, 8)), False
    while True:
        keys, values = memory(key_size * rows), memory(row_bytes * rows)
        attributes = memory(struct.pack(
            "=QQQQIIQQ", ctypes.addressof(position) if started else 0, ctypes.addressof(position),
            ctypes.addressof(keys), ctypes.addressof(values), rows, opened.fd, 0, 0))  # fmt: skip
        ended = False
        try:
            call(Command.MAP_LOOKUP_BATCH, attributes)
        except FileNotFoundError:
            ended = True
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            rows *= 2  # A bucket of the hash table holds more rows than the buffer.
            continue
        (count,) = struct.unpack_from("=I", attributes, 32)
        yield keys.raw[: count * key_size], values.raw[: count * row_bytes]
        if ended:
            return
        started = True


def _rows(keys: bytes, values: bytes, key_size: int, row_bytes: int, *, sparse: bool) -> Iterator[Row]:
    """Cut joined rows apart. Arrays are mostly zeros: whole blocks of them are skipped at once."""
    count = len(keys) // key_size
    zero, zeros = bytes(row_bytes), bytes(row_bytes * _ROWS_PER_BLOCK)
    for block in range(0, count, _ROWS_PER_BLOCK):
        if sparse and values[block * row_bytes : (block + _ROWS_PER_BLOCK) * row_bytes] == zeros:
            continue
        for row in range(block, min(block + _ROWS_PER_BLOCK, count)):
            value = values[row * row_bytes : (row + 1) * row_bytes]
            if not (sparse and value == zero):
                yield keys[row * key_size : (row + 1) * key_size], value


def read_array(opened: OpenMap) -> bytes:
    """All values of an array, joined."""
    return b"".join(values for _, values in _chunks(opened))


def write_array(opened: OpenMap, values: bytes) -> None:
    """Overwrite a whole array with joined values."""
    keys = array("I", range(len(values) // opened.row_bytes)).tobytes()
    for error in filter(None, _batches(Command.MAP_UPDATE_BATCH, opened, keys, values)):
        raise error


def read_whole(opened: OpenMap) -> list[Row]:
    """All rows, as pairs of many joined keys and as many joined values: what `overwrite` takes."""
    return [read_joined(opened)] if _is_in_memory(opened) else list(_chunks(opened))


def mapped(opened: OpenMap) -> mmap.mmap:
    """The memory of an array that can be mapped; rows take multiples of eight bytes in it."""
    size = opened.shape.capacity * cpu_stride(opened.shape.value_size)
    return mmap.mmap(opened.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)


def read_joined(opened: OpenMap) -> Row:
    """All keys and all values, each joined; of arrays, rows of zeros too. An array that can be mapped into memory is
    read there: by system calls each row takes a third of a microsecond."""
    if _is_in_memory(opened):
        with mapped(opened) as memory_of_map:
            values = memory_of_map[: opened.shape.capacity * opened.shape.value_size]
        return np.arange(opened.shape.capacity, dtype=np.uint32).tobytes(), values
    chunks = read_whole(opened)
    return b"".join(keys for keys, _ in chunks), b"".join(values for _, values in chunks)


def overwrite(opened: OpenMap, rows: Sequence[Row]) -> None:
    """Make a map that nobody else uses hold these rows, as `read_whole` gives them, and no others.

    For an array, `rows` are all its rows; an array that can be mapped into memory is written there. OSError if a row
    does not fit.
    """
    if _is_in_memory(opened):
        words(opened)[:] = np.frombuffer(b"".join(values for _, values in rows), np.uint64)
        return
    if opened.shape.type not in ARRAYS:
        delete(opened, [key for key, _ in dump(opened)])
    for keys, values in rows:
        for error in filter(None, _batches(Command.MAP_UPDATE_BATCH, opened, keys, values)):
            raise error


def _is_in_memory(opened: OpenMap) -> bool:
    return bool(opened.flags & MMAPABLE) and opened.shape.type == MapType.ARRAY and opened.shape.value_size % 8 == 0


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
    return _batches(Command.MAP_UPDATE_BATCH, opened, keys, values)


def chunks(opened: OpenMap) -> Iterator[Row]:
    """All rows, many at a time: their keys and their values, each joined."""
    return _chunks(opened)


def write_joined(opened: OpenMap, keys: bytes, values: bytes) -> list[OSError | None]:
    """Write rows whose keys, and whose values, are joined; an outcome for each row."""
    return _batches(Command.MAP_UPDATE_BATCH, opened, keys, values)


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
    outcomes = _batches(Command.MAP_DELETE_BATCH, opened, joined, None)
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


def _batches(command: Command, opened: OpenMap, keys: bytes, values: bytes | None) -> list[OSError | None]:
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


def possible_cpus() -> int:
    """How many CPUs the kernel has room for: per-CPU maps hold a value for each."""
    return len(cpu_numbers())


def numbered_cpus() -> int:
    """One more than the highest number of a CPU: a CPU_ARRAY has rows for each, even for one that is nobody's."""
    return cpu_numbers()[-1] + 1


@functools.cache
def cpu_numbers() -> tuple[int, ...]:
    """The numbers of the CPUs that there may be, in ascending order."""
    numbers: set[int] = set()
    for part in _CPUS.read_text(encoding="utf-8").strip().split(","):  # e.g. 0-3,8-11
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def cpu_stride(value_size: int) -> int:
    """Bytes from one CPU's value to the next: the kernel rounds up to 8."""
    return (value_size + 7) & ~7
