# SPDX-License-Identifier: Apache-2.0
"""NAT's table of connections as tests see and write it: bpf/connection.h. Independent of lbctl's own readings."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reconciler.clock import now_ns
from reconciler.dataplane.layout import CONNECTIONS, CONNECTIONS6, SEED, ConnectionState, MapSpec
from reconciler.kernel.port import Kernel
from tests.packets.frames import At

TCP, UDP, SCTP = 6, 17, 132
PLACES = 4
UNIT_NS = 1 << 33
SILENCES = 0x800
"""After so many units "seen" comes round."""

_CODES = {TCP: 1, UDP: 2, SCTP: 3}
_PROTOCOLS = {code: number for number, code in _CODES.items()}
_ALL = (1 << 64) - 1


class Ends(NamedTuple):
    """What a connection is found by; `service` is the index."""

    client: At
    service: int = 1
    protocol: int = TCP

    @property
    def packed(self) -> bytes:
        return ip_address(self.client.address).packed

    @property
    def spec(self) -> MapSpec:
        """The table that it is in."""
        return CONNECTIONS6 if ":" in self.client.address else CONNECTIONS

    @property
    def key(self) -> int:
        return _fold(self.packed) << 32 | self.client.port << 16 | _CODES[self.protocol] << 14


@dataclass(frozen=True, slots=True)
class Entry:
    """A connection. Numbers are what each side acknowledged, in steps of 2^18; of SCTP, bits of the tag of each."""

    endpoint: int
    state: ConnectionState
    client_number: int = field(default=0, compare=False)
    endpoint_number: int = field(default=0, compare=False)


class Table:
    """The tables of a loaded program."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.buckets = kernel.capacity(CONNECTIONS.name)
        program = kernel.loaded_program()
        has_ipv6 = program is not None and "NAT6" in (program.features or ())
        self._specs = (CONNECTIONS, CONNECTIONS6) if has_ipv6 else (CONNECTIONS,)

    def entries(self) -> dict[Ends, Entry]:
        """All that are there, whatever their age."""
        return {ends: entry for ends, entry, _ in self._entries()}

    def silence(self, ends: Ends) -> int:
        """For how many units a connection was silent."""
        (seen,) = (seen for other, _, seen in self._entries() if other == ends)
        return (_unit() - seen) % SILENCES

    def put(self, ends: Ends, entry: Entry, silence: int = 0) -> None:
        """Write a connection, over itself or into a place that is free. AssertionError if there is none."""
        words = self.words(ends.spec)
        places = [(bucket, place) for bucket in self.buckets_of(ends) for place in range(PLACES)]
        same = [at for at in places if _decode(words, *at)[:1] == (ends,)]
        free = [at for at in places if not words[at]]
        self.put_at(*(same or free)[0], ends, entry, silence)

    def put_at(
        self, bucket: int, place: int, ends: Ends, entry: Entry, silence: int = 0, address: bytes = b""
    ) -> None:  # fmt: skip
        """Write a connection into this place, wherever it belongs; with another IPv6 address beside it, if given."""
        numbers = entry.client_number % 2**14 << 14 | entry.endpoint_number % 2**14
        where = entry.endpoint << 47 | ends.service << 29 | numbers
        who = ends.key | entry.state << 11 | (_unit() - silence) % SILENCES
        self._write(ends.spec, bucket, place, who, where, address or ends.packed)

    def remove(self, ends: Ends) -> None:
        words = self.words(ends.spec)
        for bucket, place in np.argwhere(words[:, :PLACES]).tolist():
            if _decode(words, bucket, place)[0] == ends:
                self._write(ends.spec, bucket, place, 0, 0)

    def rest(self, units: int) -> None:
        """Let all connections be silent for so much longer."""
        for spec in self._specs:
            words = self.words(spec)
            for bucket, place in np.argwhere(words[:, :PLACES]).tolist():
                who = int(words[bucket, place])
                seen = ((who & 0x7FF) - units) % SILENCES
                self._write(spec, bucket, place, who >> 11 << 11 | seen, int(words[bucket, place + PLACES]))

    def clear(self) -> None:
        for spec in self._specs if self.buckets else ():
            used = np.flatnonzero(self.words(spec).any(axis=1)).tolist()
            self._kernel.delete(spec.name, [struct.pack("=I", bucket) for bucket in used])

    def buckets_of(self, ends: Ends) -> tuple[int, int]:
        """The first and the second bucket of a connection."""
        (row,) = self._kernel.dump(SEED.name)
        first, second = struct.unpack("=2Q", row[1])
        if ends.spec is CONNECTIONS:
            mixed = _mix64((_mix64(ends.key ^ first) + second) & _ALL)
        else:
            words = struct.unpack("<4I", ends.packed)
            mixed = _mix64(ends.key & 0xFFFFFFFF ^ first)
            mixed = _mix64((mixed + (words[0] << 32 | words[1])) & _ALL) ^ second
            mixed = _mix64((mixed + (words[2] << 32 | words[3])) & _ALL)
        return (mixed >> 32) * self.buckets >> 32, (mixed & 0xFFFFFFFF) * self.buckets >> 32

    def _entries(self) -> Iterator[tuple[Ends, Entry, int]]:
        for spec in self._specs:
            words = self.words(spec)
            for bucket, place in np.argwhere(words[:, :PLACES]).tolist():
                ends, entry, seen = _decode(words, bucket, place)
                assert bucket in self.buckets_of(ends), "in a bucket where nobody looks for it"
                assert int(words[bucket, place]) >> 14 == ends.key >> 14
                yield ends, entry, seen

    def words(self, spec: MapSpec = CONNECTIONS) -> NDArray[np.uint64]:
        """A copy of all of it: a row for each bucket, `who` of its places, then `where`, then addresses."""
        _, values = self._kernel.joined(spec.name)
        return np.frombuffer(values, np.uint64).reshape(self.buckets, -1)

    def _write(self, spec: MapSpec, bucket: int, place: int, who: int, where: int, address: bytes = b"") -> None:
        key = struct.pack("=I", bucket)
        row = bytearray(self.words(spec)[bucket].tobytes())
        struct.pack_into("=Q", row, 8 * place, who)
        struct.pack_into("=Q", row, 8 * (PLACES + place), where)
        if spec is CONNECTIONS6 and address:
            row[64 + 16 * place : 80 + 16 * place] = address
        assert self._kernel.update(spec.name, [(key, bytes(row))]) == [None]


def _unit() -> int:
    return now_ns() // UNIT_NS


def _decode(words: NDArray[np.uint64], bucket: int, place: int) -> tuple[Ends, Entry, int]:
    who, where = int(words[bucket, place]), int(words[bucket, place + PLACES])
    if not who:
        return Ends(At("0.0.0.0", 0), 0), Entry(0, ConnectionState.OPENING), 0
    address = str(IPv4Address(who >> 32))
    if words.shape[1] > 2 * PLACES:
        address = str(IPv6Address(words[bucket].tobytes()[64 + 16 * place :][:16]))
    ends = Ends(At(address, who >> 16 & 0xFFFF), where >> 29 & 0x3FFFF, _PROTOCOLS[who >> 14 & 3])
    state = ConnectionState(who >> 11 & 7)
    return ends, Entry(where >> 47, state, where >> 14 & 0x3FFF, where & 0x3FFF), who & 0x7FF


def _fold(address: bytes) -> int:
    """An address as 32 bits: that of IPv4 itself, a hash of that of IPv6."""
    if len(address) == 4:
        return int.from_bytes(address, "big")
    high, low = (int.from_bytes(half, "big") for half in (address[:8], address[8:]))
    high = (high ^ high >> 29) * 0xFF51AFD7ED558CCD
    low = (low ^ low >> 29) * 0xC4CEB9FE1A85EC53
    return ((high ^ low) & _ALL) >> 32


def _mix64(number: int) -> int:
    """The finalizer of MurmurHash3."""
    number ^= number >> 33
    number = number * 0xFF51AFD7ED558CCD & _ALL
    number ^= number >> 33
    number = number * 0xC4CEB9FE1A85EC53 & _ALL
    return number ^ number >> 33
