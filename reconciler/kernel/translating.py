# SPDX-License-Identifier: Apache-2.0
"""The connections of fullnat, carried to the tables of a new generation, of any size (bpf/fullnat.h).

A connection is in three maps: its entry, the word that replies find it by, and its port's bit. The last two are made
anew from the entries, so a new generation has a port taken if and only if a connection has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane import connections
from reconciler.dataplane.connections import BUCKET_WORDS, PLACES, WIDE_WORDS, Entries
from reconciler.dataplane.layout import POOL_PORTS, RETURN_MAPS, RETURNS, SEED, SNAT_MAPS, TRANSLATED_MAPS
from reconciler.dataplane.rows import Number, Snat, Snat6
from reconciler.dataplane.slots import Words
from reconciler.kernel import bpf, maps
from reconciler.kernel.connections import seed_of
from reconciler.kernel.generations import Generation
from reconciler.kernel.maps import OpenMap

REBUILT = (*(spec.name for spec in (*TRANSLATED_MAPS.values(), *RETURN_MAPS.values())), POOL_PORTS.name)
"""The maps that are filled here."""
_WORDS = {version: spec.value_size // 8 for version, spec in TRANSLATED_MAPS.items()}
_WAY = {4: BUCKET_WORDS, 6: WIDE_WORDS}
"""By version of IP: the words of a bucket, and the first of them that says a way."""
_RETURN_WORDS = RETURNS.value_size // 8
_POOL_WORDS = POOL_PORTS.value_size // 8
_POOL_MASK = np.uint64(0x7FFF)
_NUMBERS = -4096  # where the words of ports begin in a row of `pool_ports`, with taken, tired and tired, epoch of each
_PORT_WORDS = 1024
_USED, _FULL = 2, slice(6, 22)  # in such a row
_HALF, _HALF_MASK = np.uint64(32), np.uint64(0xFFFF_FFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Translated:
    """Connections of fullnat over one version of IP: the three words of each, and of IPv6 also those of the client's
    address."""

    who: Words
    where: Words
    way: Words
    addresses: Words | None = None

    @property
    def pools(self) -> NDArray[np.intp]:
        return (self.way & _POOL_MASK).astype(np.intp)

    @property
    def ports(self) -> NDArray[np.intp]:
        return (self.way >> np.uint64(16) & np.uint64(0xFFFF)).astype(np.intp)


    def part(self, numbers: NDArray[np.intp]) -> Translated:
        addresses = None if self.addresses is None else self.addresses[numbers]
        return Translated(self.who[numbers], self.where[numbers], self.way[numbers], addresses)


def held(words: Words, version: int = 4) -> Translated:
    """Those of a table, but for those that are being written at this instant."""
    table = words.reshape(-1, _WORDS[version])
    who, where, way = (table[:, at : at + PLACES] for at in (0, PLACES, _WAY[version]))
    taken = _taken(who, way)
    wide = table[:, BUCKET_WORDS:WIDE_WORDS].reshape(-1, PLACES, 2)[taken] if version == 6 else None
    return Translated(who[taken], where[taken], way[taken], wide)


def places_in(words: Words, version: int = 4) -> NDArray[np.intp]:
    """The places of the same connections."""
    table = words.reshape(-1, _WORDS[version])
    return np.flatnonzero(_taken(table[:, :PLACES], table[:, _WAY[version] : _WAY[version] + PLACES]))


def _taken(who: Words, way: Words) -> NDArray[np.bool_]:
    taken: NDArray[np.bool_] = (who >> np.uint64(14) != 0) & (way & _POOL_MASK != 0)
    return taken


def table_of(of: Translated, seed: Words, buckets: int) -> tuple[Words, NDArray[np.intp], NDArray[np.intp]]:
    """A table with these connections; which of them are in there, by their numbers, and at which places."""
    version = 4 if of.addresses is None else 6
    entries = Entries(of.who, np.arange(of.who.size, dtype=np.uint64), of.addresses)
    numbered, _ = connections.placed(entries, seed, buckets)
    bucket, place = np.nonzero(numbered[:, :PLACES])
    numbers = numbered[bucket, PLACES + place].astype(np.intp)
    table = np.zeros((buckets, _WORDS[version]), np.uint64)
    for at, words in ((0, of.who), (PLACES, of.where), (_WAY[version], of.way)):
        table[bucket, at + place] = words[numbers]
    if of.addresses is not None:
        for half in range(2):
            table[bucket, BUCKET_WORDS + 2 * place + half] = of.addresses[numbers, half]
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


def ports_of(every: Sequence[Translated], former: Words, pools: int, first_port: int, ports: int) -> Words:
    """The rows of pools, as they were but with the ports taken that these connections have; of all versions of IP,
    since they share the pools' numbers."""
    rows = np.zeros((pools, _POOL_WORDS), np.uint64)
    known = min(len(former), pools)
    rows[:known] = former[:known]
    pool = np.concatenate([of.pools for of in every])
    number = np.concatenate([of.ports for of in every]) - first_port
    fits = (pool < pools) & (number >= 0) & (number < ports)
    bits = np.uint64(1) << (number[fits] & 63).astype(np.uint64)
    flat = np.zeros(pools * _PORT_WORDS, np.uint64)
    np.bitwise_or.at(flat, pool[fits] * _PORT_WORDS + number[fits] // 64, bits)
    taken = flat.reshape(pools, _PORT_WORDS)
    rows[:, _NUMBERS::4] = taken
    rows[:, _USED] = np.bincount(pool[fits], minlength=pools).astype(np.uint64)
    has = np.packbits(np.arange(_PORT_WORDS * 64) < ports, bitorder="little").view(np.uint64)
    is_full = (taken & has == has) & (has != 0)
    rows[:, _FULL] = np.packbits(is_full, axis=1, bitorder="little").view(np.uint64)
    return rows


def fill(live: Generation, opened: Callable[[str], OpenMap], names: Collection[str]) -> None:
    """Carry the connections of the live generation to a new one, which nobody uses and which has maps of these
    `names`; `opened` opens them. Maps that both have stay as they are."""
    targets = {name: opened(name) for name in REBUILT if name in names}
    new = {name for name, target in targets.items() if target.id != live.description.ids.get(name)}
    if not new:
        return
    former = _read(live, POOL_PORTS.name)
    if former is None:
        return
    seed = seed_of(opened(SEED.name))
    made: dict[str, Words] = {}
    carried: list[Translated] = []
    first_port = ports = 0
    for version, spec in TRANSLATED_MAPS.items():
        returns, words = RETURN_MAPS[version].name, _read(live, spec.name)
        if spec.name not in targets or words is None:
            continue
        kept = held(words, version)
        if spec.name in new:
            made[spec.name], numbers, places = table_of(kept, seed, targets[spec.name].shape.capacity)
            kept = kept.part(numbers)
        else:
            places = places_in(words, version)
        carried.append(kept)
        made[returns] = returns_of(kept, places, seed, targets[returns].shape.capacity)
        if (row := _sources(opened(SNAT_MAPS[version].name), version)).used:
            first_port, ports = row.first_port, row.ports
    if carried:
        pools = targets[POOL_PORTS.name].shape.capacity
        made[POOL_PORTS.name] = ports_of(carried, former.reshape(-1, _POOL_WORDS), pools, first_port, ports)
    for name in new & made.keys():
        maps.words(targets[name])[:] = made[name].reshape(-1)


def _sources(snat: OpenMap, version: int) -> Snat | Snat6:
    """What a version of IP has for sources. All have the same ports."""
    held_row = maps.lookup(snat, SNAT_MAPS[version].key.pack(Number(0)))
    row: Snat | Snat6 = SNAT_MAPS[version].value.unpack(held_row or bytes(SNAT_MAPS[version].value_size))
    return row


def _read(live: Generation, name: str) -> Words | None:
    fd = live.open(name)
    if fd is None:
        return None
    with bpf.closing(fd):
        return maps.words(maps.describe(fd)).copy()
