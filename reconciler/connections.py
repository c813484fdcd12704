# SPDX-License-Identifier: Apache-2.0
"""NAT's connections on a node, a table for each version of IP, and what keeps numbers of endpoints and services from
being used for others.

A connection that is over, or was silent for too long, is none to the program, but stays in its place until the place
is needed. Times come round after five hours, and it would seem young again: so somebody has to look through the table
more often than that (`sweep`), which takes no more than that now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from reconciler import clock
from reconciler.dataplane import connections
from reconciler.dataplane.connections import BUSY, PLACES, Entries, unit_of
from reconciler.dataplane.layout import CONNECTION_MAPS, FRONTS, TRANSLATED_MAPS, ConnectionState, MapSpec
from reconciler.dataplane.slots import Words
from reconciler.kernel.objects import Client
from reconciler.kernel.port import Kernel

_TCP = 1
"""As the table numbers protocols."""
_LOWEST_HALF = 0xFFFF_FFFF

_TABLES: Mapping[int, Sequence[MapSpec]] = {
    version: (spec, TRANSLATED_MAPS[version]) for version, spec in CONNECTION_MAPS.items()
}
"""By version of IP: that of nat and, where there is one, that of fullnat, whose places only programs write."""

_MODES: Mapping[str, Mapping[int, MapSpec]] = {"nat": CONNECTION_MAPS, "fullnat": TRANSLATED_MAPS}


def fronts(kernel: Kernel) -> NDArray[np.void]:
    """The fronts of services by number; all zeros where there is none."""
    keys, values = kernel.joined(FRONTS.name)
    numbers, rows = FRONTS.key.array(keys)["number"], FRONTS.value.array(values)
    room = int(numbers.max()) + 1 if numbers.size else 0
    found = np.zeros(max(kernel.capacity(FRONTS.name), room), FRONTS.value.dtype)
    found[numbers] = rows
    return found


def tables(kernel: Kernel) -> list[int]:
    """The versions of IP for which the node has a table."""
    return [version for version, specs in _TABLES.items() if any(kernel.capacity(spec.name) for spec in specs)]


def modes(kernel: Kernel) -> list[tuple[int, str]]:
    """The versions of IP and the modes that have a table of their own on the node."""
    return [
        (version, mode) for version in _TABLES for mode, maps in _MODES.items() if kernel.capacity(maps[version].name)
    ]


def live(kernel: Kernel, version: int, known: NDArray[np.void] | None = None, *, mode: str = "") -> Entries:
    """The connections over a version of IP that there are for the program, of all modes or of one. `known` are the
    fronts, if they were read."""
    read = [
        connections.entries(_table(spec, np.frombuffer(kernel.joined(spec.name)[1], np.uint64)))
        for spec in ([_MODES[mode][version]] if mode else _TABLES[version])
    ]
    entries = connections.together(read)
    if not entries.size:
        return entries
    idle = (fronts(kernel) if known is None else known)["idle"]
    return entries.part(entries.is_live(unit_of(clock.now_ns()), idle))


def slices(kernel: Kernel, buckets: int) -> Iterator[Entries]:
    """The connections of all tables that there are for the program, of so many buckets at a time."""
    for spec in chain.from_iterable(_TABLES.values()):
        words = kernel.words(spec.name)
        table = _table(spec, words if words is not None else np.zeros(0, np.uint64))
        for first in range(0, len(table), buckets):
            some = connections.entries(table[first : first + buckets])
            yield some.part(some.is_live(unit_of(clock.now_ns()), fronts(kernel)["idle"])) if some.size else some


def used(kernel: Kernel, version: int, mode: str) -> int:
    """How many places of a table are taken; among them are those that anybody may have now."""
    spec = _MODES[mode][version]
    words = kernel.words(spec.name)
    return 0 if words is None else connections.used(_table(spec, words))


def numbers_in_use(kernel: Kernel) -> tuple[set[int], set[int]]:
    """The numbers of the endpoints and of the services that connections have."""
    both = [live(kernel, version) for version in CONNECTION_MAPS]
    return (
        set().union(*(_distinct(each.endpoints) for each in both)),
        set().union(*(_distinct(each.services) for each in both)),
    )


MOST_CLIENTS = 50_000
"""They take half a second; others learn with their next packet that their endpoint is gone."""
_GOES_ON = ConnectionState.OPEN, ConnectionState.CLIENT_CLOSED


def clients_of(kernel: Kernel, endpoints: Collection[int]) -> list[Client]:
    """Who has connections of TCP to endpoints with these numbers, and may be waiting for an answer; MOST_CLIENTS at
    most."""
    if not tables(kernel):
        return []
    known = fronts(kernel)
    found: list[Client] = []
    for version in CONNECTION_MAPS:
        held = live(kernel, version, known)
        is_theirs = np.isin(held.endpoints, list(endpoints)) & np.isin(held.states, _GOES_ON)
        is_theirs &= (held.protocols == _TCP) & (held.services < known.size)
        part = held.part(np.flatnonzero(is_theirs)[: MOST_CLIENTS - len(found)])
        rows = zip(part.clients.tolist(), part.ports.tolist(), part.services.tolist(), part.acknowledged.tolist(),
                   strict=True)  # fmt: skip
        for (high, low), port, service, expects in rows:
            front = FRONTS.value.unpack(known[service].tobytes())
            address, vip = ((IPv4Address(low & _LOWEST_HALF), IPv4Address(front.vip[:4])) if version == 4
                            else (IPv6Address(high << 64 | low), IPv6Address(front.vip)))  # fmt: skip
            found.append(Client(address, port, vip, front.port, expects))
    return found


def _distinct(numbers: NDArray[np.uint32]) -> set[int]:
    return set(np.flatnonzero(np.bincount(numbers)).tolist())


def forget(kernel: Kernel, *, endpoints: Collection[int] = (), services: Collection[int] = ()) -> None:
    """Clear the places of connections that are no more, of numbers that go to others: they would seem young again."""
    if not (endpoints or services):
        return
    for version, table in TRANSLATED_MAPS.items():
        if buckets := kernel.capacity(table.name):
            kernel.sweep_translated(version, buckets)
    for spec in CONNECTION_MAPS.values():
        words = kernel.words(spec.name)
        if words is None:
            continue
        held = connections.places(_table(spec, words))
        theirs = np.isin(held.endpoints, list(endpoints)) | np.isin(held.services, list(services))
        _clear(kernel, spec, held.who, theirs & (held.who != 0) & (held.who != BUSY), 0)


def sweep(kernel: Kernel, version: int, first: int, count: int) -> int:
    """Clear the places of connections that are no more, in `count` buckets of a table from the `first` on; returns how
    many."""
    spec = CONNECTION_MAPS[version]
    words = kernel.words(spec.name)
    if words is None:
        return 0
    table = _table(spec, words)[first : first + count]
    held = connections.places(table)
    is_taken = (held.who != 0) & (held.who != BUSY)
    if not held.who.any():
        return 0
    gone = is_taken & ~held.is_live(unit_of(clock.now_ns()), fronts(kernel)["idle"])
    cleared = _clear(kernel, spec, held.who, gone, first)
    # Whoever was writing a place was done long before this; else it was killed while it did.
    still = (held.who == BUSY) & (table[:, :PLACES].reshape(-1) == BUSY)
    return cleared + _clear(kernel, spec, held.who, still, first)


def _clear(kernel: Kernel, spec: MapSpec, who: Words, chosen: NDArray[np.bool_], first: int) -> int:
    """Clear these places, of those from a bucket on, unless somebody has changed them since."""
    places = np.flatnonzero(chosen)
    words = (first + places // PLACES) * (spec.value_size // 8) + places % PLACES
    swaps = [(word, seen, 0) for word, seen in zip(words.tolist(), who[places].tolist(), strict=True)]
    return sum(kernel.swap_words(spec.name, swaps)) if swaps else 0


def _table(spec: MapSpec, words: Words) -> Words:
    """The buckets, of fullnat without what only programs need."""
    width = connections.WIDE_WORDS if spec in _TABLES[6] else connections.BUCKET_WORDS
    return connections.table_of(words, spec.value_size // 8)[:, :width]
