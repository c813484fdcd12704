# SPDX-License-Identifier: Apache-2.0
"""NAT's table of connections as tests see and write it: bpf/connection.h. Independent of lbctl's own readings."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reconciler.clock import now_ns
from reconciler.dataplane.layout import CONNECTIONS, SEED, ConnectionState
from reconciler.kernel.port import Kernel
from tests.packets.frames import At

TCP, UDP = 6, 17
PLACES = 4
UNIT_NS = 1 << 33
SILENCES = 0x800
"""After so many units "seen" comes round."""

_CODES = {TCP: 1, UDP: 2}
_PROTOCOLS = {code: number for number, code in _CODES.items()}
_ALL = (1 << 64) - 1


class Ends(NamedTuple):
    """What a connection is found by; `service` is the index."""

    client: At
    service: int = 1
    protocol: int = TCP

    @property
    def key(self) -> int:
        address = int(IPv4Address(self.client.address))
        return address << 32 | self.client.port << 16 | _CODES[self.protocol] << 14


@dataclass(frozen=True, slots=True)
class Entry:
    """A connection. Numbers are what each side acknowledged, in steps of 2^18."""

    endpoint: int
    state: ConnectionState
    client_number: int = field(default=0, compare=False)
    endpoint_number: int = field(default=0, compare=False)


class Table:
    """The table of a loaded program."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.buckets = kernel.capacity(CONNECTIONS.name)

    def entries(self) -> dict[Ends, Entry]:
        """All that are there, whatever their age."""
        return {ends: entry for ends, entry, _ in self._entries()}

    def silence(self, ends: Ends) -> int:
        """For how many units a connection was silent."""
        (seen,) = (seen for other, _, seen in self._entries() if other == ends)
        return (_unit() - seen) % SILENCES

    def put(self, ends: Ends, entry: Entry, silence: int = 0) -> None:
        """Write a connection, over itself or into a place that is free. AssertionError if there is none."""
        words = self.words()
        places = [(bucket, place) for bucket in self.buckets_of(ends) for place in range(PLACES)]
        same = [at for at in places if _decode(int(words[at]), int(words[at[0], at[1] + PLACES]))[:1] == (ends,)]
        free = [at for at in places if not words[at]]
        self.put_at(*(same or free)[0], ends, entry, silence)

    def put_at(self, bucket: int, place: int, ends: Ends, entry: Entry, silence: int = 0) -> None:
        """Write a connection into this place, wherever it belongs."""
        numbers = entry.client_number % 2**14 << 14 | entry.endpoint_number % 2**14
        where = entry.endpoint << 47 | ends.service << 29 | numbers
        self._write(bucket, place, ends.key | entry.state << 11 | (_unit() - silence) % SILENCES, where)

    def remove(self, ends: Ends) -> None:
        words = self.words()
        for bucket, place in np.argwhere(words[:, :PLACES]).tolist():
            if _decode(int(words[bucket, place]), int(words[bucket, place + PLACES]))[0] == ends:
                self._write(bucket, place, 0, 0)

    def rest(self, units: int) -> None:
        """Let all connections be silent for so much longer."""
        words = self.words()
        for bucket, place in np.argwhere(words[:, :PLACES]).tolist():
            who = int(words[bucket, place])
            seen = ((who & 0x7FF) - units) % SILENCES
            self._write(bucket, place, who >> 11 << 11 | seen, int(words[bucket, place + PLACES]))

    def clear(self) -> None:
        used = np.flatnonzero(self.words().any(axis=1)).tolist()
        self._kernel.delete(CONNECTIONS.name, [struct.pack("=I", bucket) for bucket in used])

    def buckets_of(self, ends: Ends) -> tuple[int, int]:
        """The first and the second bucket of a connection."""
        (row,) = self._kernel.dump(SEED.name)
        first, second = struct.unpack("=2Q", row[1])
        mixed = _mix64((_mix64(ends.key ^ first) + second) & _ALL)
        return (mixed >> 32) * self.buckets >> 32, (mixed & 0xFFFFFFFF) * self.buckets >> 32

    def _entries(self) -> Iterator[tuple[Ends, Entry, int]]:
        words = self.words()
        for bucket, place in np.argwhere(words[:, :PLACES]).tolist():
            ends, entry, seen = _decode(int(words[bucket, place]), int(words[bucket, place + PLACES]))
            assert bucket in self.buckets_of(ends), "in a bucket where nobody looks for it"
            yield ends, entry, seen

    def words(self) -> NDArray[np.uint64]:
        """A copy of all of it: a row for each bucket, `who` of its places, then `where`."""
        _, values = self._kernel.joined(CONNECTIONS.name)
        return np.frombuffer(values, np.uint64).reshape(self.buckets, 2 * PLACES)

    def _write(self, bucket: int, place: int, who: int, where: int) -> None:
        key = struct.pack("=I", bucket)
        row = bytearray(self.words()[bucket].tobytes())
        struct.pack_into("=Q", row, 8 * place, who)
        struct.pack_into("=Q", row, 8 * (PLACES + place), where)
        assert self._kernel.update(CONNECTIONS.name, [(key, bytes(row))]) == [None]


def _unit() -> int:
    return now_ns() // UNIT_NS


def _decode(who: int, where: int) -> tuple[Ends, Entry, int]:
    if not who:
        return Ends(At("0.0.0.0", 0), 0), Entry(0, ConnectionState.OPENING), 0
    client = At(str(IPv4Address(who >> 32)), who >> 16 & 0xFFFF)
    ends = Ends(client, where >> 29 & 0x3FFFF, _PROTOCOLS[who >> 14 & 3])
    state = ConnectionState(who >> 11 & 7)
    return ends, Entry(where >> 47, state, where >> 14 & 0x3FFF, where & 0x3FFF), who & 0x7FF


def _mix64(number: int) -> int:
    """The finalizer of MurmurHash3."""
    number ^= number >> 33
    number = number * 0xFF51AFD7ED558CCD & _ALL
    number ^= number >> 33
    number = number * 0xC4CEB9FE1A85EC53 & _ALL
    return number ^ number >> 33
