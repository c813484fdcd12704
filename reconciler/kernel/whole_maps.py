# SPDX-License-Identifier: Apache-2.0
"""Whole BPF maps: all rows read, or written, at a time; by calls for many rows, or in the map's own memory."""

from __future__ import annotations

import ctypes
import errno
import struct
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from reconciler.dataplane.layout import MMAPABLE, MapType
from reconciler.kernel.bpf import Command, call, memory
from reconciler.kernel.maps import ARRAYS, OpenMap, Row, batches, by_cpu, delete, mapped, words

_ROWS_PER_BLOCK = 64


def dump(opened: OpenMap) -> Iterator[Row]:
    """All rows; of arrays, those that are not all zero.

    The dump may or may not show rows that somebody else writes meanwhile.
    """
    shape = opened.shape
    sparse = shape.type in ARRAYS
    for keys, values in chunks(opened):
        yield from _rows(keys, values, shape.key_size, opened.row_bytes, sparse=sparse)


def chunks(opened: OpenMap) -> Iterator[Row]:
    """All rows, many at a time: their keys and their values, each joined."""
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
    return b"".join(values for _, values in chunks(opened))


def write_array(opened: OpenMap, values: bytes) -> None:
    """Overwrite a whole array with joined values."""
    keys = array("I", range(len(values) // opened.row_bytes)).tobytes()
    for error in filter(None, batches(Command.MAP_UPDATE_BATCH, opened, keys, values)):
        raise error


def read_whole(opened: OpenMap) -> list[Row]:
    """All rows, as pairs of many joined keys and as many joined values: what `overwrite` takes."""
    return [read_joined(opened)] if _is_in_memory(opened) else list(chunks(opened))


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
        for error in filter(None, batches(Command.MAP_UPDATE_BATCH, opened, keys, values)):
            raise error


def _is_in_memory(opened: OpenMap) -> bool:
    return bool(opened.flags & MMAPABLE) and opened.shape.type == MapType.ARRAY and opened.shape.value_size % 8 == 0
