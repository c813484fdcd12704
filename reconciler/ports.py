# SPDX-License-Identifier: Apache-2.0
"""The ports of fullnat's source addresses: who uses how many, and pools whose server is gone.

Programs make a pool when the first connection needs it, and they alone take ports and give them back (bpf/ports.h).
What is left to do here is to read, and to give the numbers of pools back whose server no row names any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import (
    ENDPOINTS,
    ENDPOINTS6,
    POOL_NUMBERS,
    POOL_PORTS,
    PORT_POOL_MAPS,
    RING_CHUNKS,
    SNAT_MAPS,
    EndpointRowState,
)
from reconciler.dataplane.rows import Number
from reconciler.dataplane.slots import Words
from reconciler.kernel.port import Kernel

TIGHT_PERCENT = 80
"""From here on ports of a pool are tight."""
_WORDS_A_GROUP = 4
"""A word each for the ports that are taken, the tired ones of two epochs, and the epoch."""
_GROUPS = slice(-1024 * _WORDS_A_GROUP, None)
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class Pool:
    """The ports of one source address towards one server. `unrested` counts those that were taken again while the
    server may have had their former connection in TIME_WAIT, `refused` the connections that found no port."""

    source: str
    server: str
    protocol: str
    used: int
    free: int
    unrested: int
    refused: int
    number: int
    version: int

    @property
    def is_tight(self) -> bool:
        return self.used * 100 >= (self.used + self.free) * TIGHT_PERCENT


def pools(kernel: Kernel) -> list[Pool]:
    """The pools that there are, by source and server. Raises KernelError."""
    words = kernel.words(POOL_PORTS.name)
    if words is None:
        return []
    table = _table(words)
    found = []
    for version, spec in PORT_POOL_MAPS.items():
        snat = SNAT_MAPS[version]
        (row,) = kernel.lookup(snat.name, [snat.key.pack(Number(0))])
        room = snat.value.unpack(row).ports if row else 0
        for key, value in spec.unpack(kernel.dump(spec.name)):
            if value.number >= len(table):
                continue
            ports = POOL_PORTS.value.unpack(table[value.number].tobytes())
            used = _taken(table[value.number])
            address = str(ip_address(key.address))
            server = f"{address}:{key.port}" if version == 4 else f"[{address}]:{key.port}"
            protocol = _PROTOCOLS.get(key.protocol, str(key.protocol))
            found.append(Pool(
                str(ip_address(key.source)), server, protocol, used, max(room - used, 0), ports.unrested,
                ports.refused, value.number, version,
            ))  # fmt: skip
    return sorted(found, key=lambda pool: (pool.version, pool.source, pool.server, pool.protocol))


def prune(kernel: Kernel) -> int:
    """Give back the numbers of pools that have no port taken, and whose server no endpoint's row names: no connection
    can begin there. Only under the lock. Returns how many."""
    words = kernel.words(POOL_PORTS.name)
    if words is None:
        return 0
    table, servers = _table(words), set(_addresses(kernel))
    gone = [
        (spec, spec.key.pack(key), value.number)
        for spec in PORT_POOL_MAPS.values() for key, value in spec.unpack(kernel.dump(spec.name))
        if key.address not in servers and 0 < value.number < len(table) and not _taken(table[value.number])
    ]  # fmt: skip
    if not gone:
        return 0
    for spec in PORT_POOL_MAPS.values():
        kernel.delete(spec.name, [key for of, key, _ in gone if of is spec])
    kernel.wait_for_programs(RING_CHUNKS.name)
    # A program that had begun with a row of the endpoint may have taken a port until now: its number stays in use.
    free = [number for _, _, number in gone if not _taken(table[number])]
    kernel.delete(POOL_PORTS.name, [POOL_PORTS.key.pack(Number(number)) for number in free])
    for number in free:
        _clear_bit(kernel, number // 64, number % 64)
        _clear_bit(kernel, _FULL + number // 4096, number // 64 % 64)
    return len(free)


_FULL = POOL_NUMBERS.value.dtype.fields["full"][1] // 8 if POOL_NUMBERS.value.dtype.fields else 0


def _clear_bit(kernel: Kernel, word: int, bit: int) -> None:
    words = kernel.words(POOL_NUMBERS.name)
    while words is not None:
        seen = int(words[word])
        if not seen >> bit & 1 or kernel.swap_words(POOL_NUMBERS.name, [(word, seen, seen & ~(1 << bit))])[0]:
            return


def _addresses(kernel: Kernel) -> Iterator[bytes]:
    """The addresses of all rows of endpoints that are in use."""
    rows = ENDPOINTS.value.array(kernel.joined(ENDPOINTS.name)[1])
    used = rows[rows["state"] != EndpointRowState.FREE]
    yield from used["address"].tolist()
    yield from map(bytes, ENDPOINTS6.value.split(kernel.joined(ENDPOINTS6.name)[1]))


def _table(words: Words) -> Words:
    return words.reshape(-1, POOL_PORTS.value_size // 8)


def _taken(row: Words) -> int:
    """How many ports of a pool are taken."""
    taken: NDArray[np.uint64] = row[_GROUPS][::_WORDS_A_GROUP].copy()
    return int(np.unpackbits(taken.view(np.uint8)).sum())
