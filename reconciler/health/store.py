# SPDX-License-Identifier: Apache-2.0
"""The states of targets in a file of the instance, where every process reads them and a new agent finds them.

One process writes, in place and through a mapping: a check costs no system call here. Each entry carries a checksum,
so a reader that came between two bytes of a write sees that, and reads again.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError
from reconciler.health.row import KEY_BYTES, ROW_BYTES, Clocks, packed, unpacked
from reconciler.health.state import State

FILE = "health"
_MAGIC = b"lbctlH01"
_HEADER = struct.Struct("<8sIIQQIIII")
"""Magic, bytes of an entry, pid of the writer, when it last wrote this and until when it suspects itself (ms since
1970), targets, checks in flight, the 99th percentile of lateness (µs), checks so far modulo 2³²."""
_HEADER_BYTES = 64
_TAIL = struct.Struct("<QI")
"""When the next check begins, in ms since 1970, 0 for not known; CRC-32 of all before it."""
ENTRY_BYTES = KEY_BYTES + ROW_BYTES + _TAIL.size
_FREE = bytes(KEY_BYTES)
_FIRST_ENTRIES = 64
_READS = 20
_READ_AGAIN_S = 0.001


@dataclass(frozen=True, slots=True)
class Progress:
    """How the checks come along. Times are seconds of the monotonic clock."""

    pid: int = 0
    written_s: float = 0.0
    suspect_until_s: float = 0.0
    targets: int = 0
    in_flight: int = 0
    late_p99_s: float = 0.0
    checks: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """`next_s`: when the next check begins; None while it is under way, or if that is not known."""

    state: State
    next_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the file says. Keys are digests of targets."""

    entries: Mapping[bytes, Entry] = field(default_factory=dict)
    progress: Progress = Progress()


def clocks() -> Clocks:
    now_s = time.monotonic()
    return Clocks(time.time() - now_s, now_s)


def read(path: Path) -> Stored:
    """What the file says; nothing if there is none, or it is of another version. Entries that can't be read, although
    nobody is writing to them, are left out. Raises FilesError if others could have written it."""
    for _ in range(_READS):
        data = private.read(path)
        if data is None or len(data) < _HEADER_BYTES or data[:8] != _MAGIC:
            return Stored()
        _, size, pid, written, suspect, targets, in_flight, late_us, checks = _HEADER.unpack_from(data)
        if size != ENTRY_BYTES:
            return Stored()
        times = clocks()
        entries, is_whole = _entries(data, times)
        until_s = suspect / 1000 - times.offset_s if suspect else 0.0
        progress = Progress(pid, times.of_ms(written), until_s, targets, in_flight, late_us / 1e6, checks)
        if is_whole:
            break
        time.sleep(_READ_AGAIN_S)
    return Stored(entries, progress)


def _entries(data: bytes, times: Clocks) -> tuple[dict[bytes, Entry], bool]:
    """The entries, and whether all of them were whole."""
    found: dict[bytes, Entry] = {}
    is_whole = True
    for begin in range(_HEADER_BYTES, len(data) - ENTRY_BYTES + 1, ENTRY_BYTES):
        key = data[begin : begin + KEY_BYTES]
        if key == _FREE:
            continue
        tail = begin + KEY_BYTES + ROW_BYTES
        next_ms, checksum = _TAIL.unpack_from(data, tail)
        if zlib.crc32(data[begin : tail + 8]) != checksum:
            is_whole = False
        elif state := unpacked(data[begin + KEY_BYTES : tail], times):
            found[key] = Entry(state, next_ms / 1000 - times.offset_s if next_ms else None)
    return found, is_whole


class Store:
    """The file, open for its one writer. It grows as targets come, and entries that were given up are used again."""

    def __init__(self, path: Path, states: Iterable[tuple[bytes, State]] = ()) -> None:
        """Makes the file anew, with these states, in one step. Raises FilesError."""
        times, pairs = clocks(), list(states)
        room = max(_FIRST_ENTRIES, 2 * len(pairs))
        content = bytearray(_HEADER_BYTES + room * ENTRY_BYTES)
        content[:_HEADER_BYTES] = _header(Progress(os.getpid()), times)
        self._places: dict[bytes, int] = {}
        for place, (key, state) in enumerate(pairs):
            self._places[key] = place
            begin = _HEADER_BYTES + place * ENTRY_BYTES
            content[begin : begin + ENTRY_BYTES] = _entry(key, state, None, times)
        self._free = list(range(room - 1, len(pairs) - 1, -1))
        private.write(path, bytes(content))
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._map = mmap.mmap(self._handle, 0)
        except OSError as error:
            raise FilesError(f"can't map {path}: {error.strerror or error}") from error
        self._room = room

    def put(self, key: bytes, state: State, next_s: float | None, times: Clocks) -> None:
        """Raises FilesError if the file can't grow."""
        place = self._places.get(key)
        if place is None:
            if not self._free:
                self._grow()
            place = self._places[key] = self._free.pop()
        begin = _HEADER_BYTES + place * ENTRY_BYTES
        self._map[begin : begin + ENTRY_BYTES] = _entry(key, state, next_s, times)

    def drop(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if (place := self._places.pop(key, None)) is not None:
                begin = _HEADER_BYTES + place * ENTRY_BYTES
                self._map[begin : begin + ENTRY_BYTES] = bytes(ENTRY_BYTES)
                self._free.append(place)

    def tell(self, progress: Progress, times: Clocks) -> None:
        self._map[:_HEADER_BYTES] = _header(progress, times)

    def close(self) -> None:
        self._map.close()
        os.close(self._handle)

    def _grow(self) -> None:
        room = 2 * self._room
        size = _HEADER_BYTES + room * ENTRY_BYTES
        try:
            os.posix_fallocate(self._handle, 0, size)  # A full disk says so here, and not by a signal later.
            self._map.resize(size)
        except (OSError, ValueError) as error:
            raise FilesError(f"the states of checks have no room: {error}") from error
        self._free = list(range(room - 1, self._room - 1, -1))
        self._room = room


def _header(progress: Progress, times: Clocks) -> bytes:
    late_us = min(0xFFFFFFFF, round(progress.late_p99_s * 1e6))
    suspect_ms = times.to_ms(progress.suspect_until_s) if progress.suspect_until_s else 0
    return _HEADER.pack(
        _MAGIC, ENTRY_BYTES, progress.pid, times.to_ms(times.now_s), suspect_ms,
        progress.targets, progress.in_flight, late_us, progress.checks & 0xFFFFFFFF,
    ).ljust(_HEADER_BYTES, b"\0")  # fmt: skip


def _entry(key: bytes, state: State, next_s: float | None, times: Clocks) -> bytes:
    whole = key + packed(state, times) + (0 if next_s is None else times.to_ms(next_s)).to_bytes(8, "little")
    return whole + zlib.crc32(whole).to_bytes(4, "little")


def forget(path: Path) -> None:
    """Remove the file, if there is one."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
