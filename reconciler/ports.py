# SPDX-License-Identifier: Apache-2.0
"""The ports of fullnat's source addresses: who uses how many, and pools whose server is gone.

Programs make a pool when the first connection needs it, and they alone take ports and give them back (bpf/ports.h).
What is left to do here is to read, and to give the numbers of pools back whose server no row names any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import (
    ENDPOINTS,
    POOL_NUMBERS,
    POOL_PORTS,
    PORT_POOLS,
    RING_CHUNKS,
    SNAT,
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

    @property
    def is_tight(self) -> bool:
        return self.used * 100 >= (self.used + self.free) * TIGHT_PERCENT


def pools(kernel: Kernel) -> list[Pool]:
    """The pools that there are, by source and server. Raises KernelError."""
    words = kernel.words(POOL_PORTS.name)
    if words is None:
        return []
    (snat,) = kernel.lookup(SNAT.name, [SNAT.key.pack(Number(0))])
    room = SNAT.value.unpack(snat).ports if snat else 0
    table = _table(words)
    found = []
    for key, value in PORT_POOLS.unpack(kernel.dump(PORT_POOLS.name)):
        if value.number >= len(table):
            continue
        row = POOL_PORTS.value.unpack(table[value.number].tobytes())
        used = _taken(table[value.number])
        server = f"{IPv4Address(key.address)}:{key.port}"
        protocol = _PROTOCOLS.get(key.protocol, str(key.protocol))
        found.append(Pool(
            str(IPv4Address(key.source)), server, protocol, used, max(room - used, 0), row.unrested, row.refused,
            value.number,
        ))  # fmt: skip
    return sorted(found, key=lambda pool: (pool.source, pool.server, pool.protocol))


def prune(kernel: Kernel) -> int:
    """Give back the numbers of pools that have no port taken, and whose server no endpoint's row names: no connection
    can begin there. Only under the lock. Returns how many."""
    words = kernel.words(POOL_PORTS.name)
    if words is None:
        return 0
    table, servers = _table(words), set(_addresses(kernel))
    gone = [
        (PORT_POOLS.key.pack(key), value.number) for key, value in PORT_POOLS.unpack(kernel.dump(PORT_POOLS.name))
        if key.address not in servers and 0 < value.number < len(table) and not _taken(table[value.number])
    ]  # fmt: skip
    if not gone:
        return 0
    kernel.delete(PORT_POOLS.name, [key for key, _ in gone])
    kernel.wait_for_programs(RING_CHUNKS.name)
    # A program that had begun with a row of the endpoint may have taken a port until now: its number stays in use.
    free = [number for _, number in gone if not _taken(table[number])]
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


def _table(words: Words) -> Words:
    return words.reshape(-1, POOL_PORTS.value_size // 8)


def _taken(row: Words) -> int:
    """How many ports of a pool are taken."""
    taken: NDArray[np.uint64] = row[_GROUPS][::_WORDS_A_GROUP].copy()
    return int(np.unpackbits(taken.view(np.uint8)).sum())
