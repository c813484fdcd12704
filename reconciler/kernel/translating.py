# SPDX-License-Identifier: Apache-2.0
"""The connections of fullnat, carried to the tables of a new generation, of any size (bpf/fullnat.h).

A connection is in three maps: its entry, the word that replies find it by, and its port's bit. The last two are made
anew from the entries, so a new generation has a port taken if and only if a connection has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane import connections
from reconciler.dataplane.connections import BUCKET_WORDS, PLACES, Entries
from reconciler.dataplane.layout import POOL_PORTS, RETURNS, SEED, SNAT, TRANSLATED
from reconciler.dataplane.rows import Number
from reconciler.dataplane.slots import Words
from reconciler.kernel import bpf, maps
from reconciler.kernel.connections import seed_of
from reconciler.kernel.generations import Generation
from reconciler.kernel.maps import OpenMap

REBUILT = (TRANSLATED.name, RETURNS.name, POOL_PORTS.name)
"""The maps that are filled here."""
_WORDS = TRANSLATED.value_size // 8
_RETURN_WORDS = RETURNS.value_size // 8
_POOL_WORDS = POOL_PORTS.value_size // 8
_POOL_MASK = np.uint64(0x7FFF)
_NUMBERS = -4096  # where the words of ports begin in a row of `pool_ports`, with taken, tired and tired, epoch of each
_PORT_WORDS = 1024
_USED, _FULL = 2, slice(6, 22)  # in such a row
_HALF, _HALF_MASK = np.uint64(32), np.uint64(0xFFFF_FFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Translated:
    """Connections of fullnat: the three words of each."""

    who: Words
    where: Words
    way: Words

    @property
    def pools(self) -> NDArray[np.intp]:
        return (self.way & _POOL_MASK).astype(np.intp)

    @property
    def ports(self) -> NDArray[np.intp]:
        return (self.way >> np.uint64(16) & np.uint64(0xFFFF)).astype(np.intp)


def held(words: Words) -> Translated:
    """Those of a table, but for those that are being written at this instant."""
    table = words.reshape(-1, _WORDS).copy()
    who, where, way = (table[:, at : at + PLACES] for at in (0, PLACES, BUCKET_WORDS))
    taken = (who >> np.uint64(14) != 0) & (way & _POOL_MASK != 0)
    return Translated(who[taken], where[taken], way[taken])


def table_of(of: Translated, seed: Words, buckets: int) -> tuple[Words, NDArray[np.intp], NDArray[np.intp]]:
    """A table with these connections; which of them are in there, by their numbers, and at which places."""
    numbered, _ = connections.placed(Entries(of.who, np.arange(of.who.size, dtype=np.uint64)), seed, buckets)
    bucket, place = np.nonzero(numbered[:, :PLACES])
    numbers = numbered[bucket, PLACES + place].astype(np.intp)
    table = np.zeros((buckets, _WORDS), np.uint64)
    for at, words in ((0, of.who), (PLACES, of.where), (BUCKET_WORDS, of.way)):
        table[bucket, at + place] = words[numbers]
    places: NDArray[np.intp] = bucket * PLACES + place
    return table, numbers, places


def returns_of(of: Translated, places: NDArray[np.intp], seed: Words, buckets: int) -> Words:
    """The words that replies find connections at these places by. A connection without a word is lost to replies; with
    half of the room free, that is none."""
    key = of.pools.astype(np.uint64) << np.uint64(16) | of.ports.astype(np.uint64)
    hash_ = connections.mixed(connections.mixed(key ^ seed[1]) + seed[0])
    first = ((hash_ >> _HALF) * np.uint64(buckets) >> _HALF).tolist()
    second = ((hash_ & _HALF_MASK) * np.uint64(buckets) >> _HALF).tolist()
    content = (key << np.uint64(27) | (places + 1).astype(np.uint64)).tolist()
    taken = [0] * buckets
    table = np.zeros((buckets, _RETURN_WORDS), np.uint64)
    for one, other, word in zip(first, second, content, strict=True):
        bucket = one if taken[one] <= taken[other] else other
        if taken[bucket] < _RETURN_WORDS:
            table[bucket, taken[bucket]] = word
            taken[bucket] += 1
    return table


def ports_of(of: Translated, former: Words, pools: int, first_port: int, ports: int) -> Words:
    """The rows of pools, as they were but with the ports taken that these connections have."""
    rows = np.zeros((pools, _POOL_WORDS), np.uint64)
    known = min(len(former), pools)
    rows[:known] = former[:known]
    number = of.ports - first_port
    fits = (of.pools < pools) & (number >= 0) & (number < ports)
    bits = np.uint64(1) << (number[fits] & 63).astype(np.uint64)
    flat = np.zeros(pools * _PORT_WORDS, np.uint64)
    np.bitwise_or.at(flat, of.pools[fits] * _PORT_WORDS + number[fits] // 64, bits)
    taken = flat.reshape(pools, _PORT_WORDS)
    rows[:, _NUMBERS::4] = taken
    rows[:, _USED] = np.bincount(of.pools[fits], minlength=pools).astype(np.uint64)
    has = np.packbits(np.arange(_PORT_WORDS * 64) < ports, bitorder="little").view(np.uint64)
    is_full = (taken & has == has) & (has != 0)
    rows[:, _FULL] = np.packbits(is_full, axis=1, bitorder="little").view(np.uint64)
    return rows


def fill(live: Generation, opened: Callable[[str], OpenMap]) -> None:
    """Carry the connections of the live generation to a new one, which nobody uses; `opened` opens maps of that. Maps
    that both have stay as they are."""
    targets = {name: opened(name) for name in REBUILT}
    if all(target.id == live.description.ids.get(name) for name, target in targets.items()):
        return
    words, former = (_read(live, name) for name in (TRANSLATED.name, POOL_PORTS.name))
    if words is None or former is None:
        return
    seed = seed_of(opened(SEED.name))
    snat = maps.lookup(opened(SNAT.name), SNAT.key.pack(Number(0)))
    row = SNAT.value.unpack(snat) if snat else SNAT.value.default
    table, numbers, places = table_of(found := held(words), seed, targets[TRANSLATED.name].shape.capacity)
    kept = Translated(found.who[numbers], found.where[numbers], found.way[numbers])
    made = {
        TRANSLATED.name: table,
        RETURNS.name: returns_of(kept, places, seed, targets[RETURNS.name].shape.capacity),
        POOL_PORTS.name: ports_of(
            kept, former.reshape(-1, _POOL_WORDS), targets[POOL_PORTS.name].shape.capacity, row.first_port, row.ports
        ),
    }
    for name, content in made.items():
        maps.words(targets[name])[:] = content.reshape(-1)


def _read(live: Generation, name: str) -> Words | None:
    fd = live.open(name)
    if fd is None:
        return None
    with bpf.closing(fd):
        return maps.words(maps.describe(fd)).copy()
