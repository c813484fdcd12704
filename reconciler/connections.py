# SPDX-License-Identifier: Apache-2.0
"""NAT's connections on a node, and what keeps numbers of endpoints and services from being used for others.

A connection that is over, or was silent for too long, is none to the program, but stays in its place until the place
is needed. Times come round after five hours, and it would seem young again: so somebody has to look through the table
more often than that (`sweep`), which takes no more than that now and then.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconciler import clock
from reconciler.dataplane import connections
from reconciler.dataplane.connections import BUCKET_WORDS, BUSY, PLACES, Entries, unit_of
from reconciler.dataplane.layout import CONNECTIONS, FRONTS
from reconciler.dataplane.slots import Words
from reconciler.kernel.port import Kernel


def fronts(kernel: Kernel) -> NDArray[np.void]:
    """The fronts of services by number; all zeros where there is none."""
    keys, values = kernel.joined(FRONTS.name)
    numbers, rows = FRONTS.key.array(keys)["number"], FRONTS.value.array(values)
    room = int(numbers.max()) + 1 if numbers.size else 0
    found = np.zeros(max(kernel.capacity(FRONTS.name), room), FRONTS.value.dtype)
    found[numbers] = rows
    return found


def live(kernel: Kernel, known: NDArray[np.void] | None = None) -> Entries:
    """The connections that there are for the program. `known` are the fronts, if they were read."""
    entries = connections.entries(_table(kernel))
    if not entries.size:
        return entries
    idle = (fronts(kernel) if known is None else known)["idle"]
    return entries.part(entries.is_live(unit_of(clock.now_ns()), idle))


def used(kernel: Kernel) -> int:
    """How many places of the table are taken; among them are those that anybody may have now."""
    words = kernel.words(CONNECTIONS.name)
    return connections.used(connections.table_of(words)) if words is not None else 0


def numbers_in_use(kernel: Kernel) -> tuple[set[int], set[int]]:
    """The numbers of the endpoints and of the services that connections have."""
    entries = live(kernel)
    return _distinct(entries.endpoints), _distinct(entries.services)


def _distinct(numbers: NDArray[np.uint32]) -> set[int]:
    return set(np.flatnonzero(np.bincount(numbers)).tolist())


def forget(kernel: Kernel, *, endpoints: Collection[int] = (), services: Collection[int] = ()) -> None:
    """Clear the places of connections that are no more, of numbers that go to others: they would seem young again."""
    words = kernel.words(CONNECTIONS.name)
    if words is None or not (endpoints or services):
        return
    table = connections.table_of(words)
    who, where = table[:, :PLACES].copy(), table[:, PLACES:].copy()
    flat = Entries(who.reshape(-1), where.reshape(-1))
    theirs = np.isin(flat.endpoints, list(endpoints)) | np.isin(flat.services, list(services))
    _clear(kernel, flat.who, theirs & (flat.who != 0) & (flat.who != BUSY), 0)


def sweep(kernel: Kernel, first: int, count: int) -> int:
    """Clear the places of connections that are no more, in `count` buckets from the `first` on; returns how many."""
    words = kernel.words(CONNECTIONS.name)
    if words is None:
        return 0
    table = connections.table_of(words)[first : first + count]
    who, where = table[:, :PLACES].reshape(-1), table[:, PLACES:].reshape(-1)
    entries = Entries(who.copy(), where.copy())
    is_taken = (entries.who != 0) & (entries.who != BUSY)
    if not entries.who.any():
        return 0
    gone = is_taken & ~entries.is_live(unit_of(clock.now_ns()), fronts(kernel)["idle"])
    cleared = _clear(kernel, entries.who, gone, first)
    # Whoever was writing a place was done long before this; else it was killed while it did.
    still = (entries.who == BUSY) & (table[:, :PLACES].reshape(-1) == BUSY)
    return cleared + _clear(kernel, entries.who, still, first)


def _clear(kernel: Kernel, who: Words, chosen: NDArray[np.bool_], first: int) -> int:
    """Clear these places, of those from a bucket on, unless somebody has changed them since."""
    places = np.flatnonzero(chosen)
    words = (first + places // PLACES) * BUCKET_WORDS + places % PLACES
    swaps = [(word, seen, 0) for word, seen in zip(words.tolist(), who[places].tolist(), strict=True)]
    return sum(kernel.swap_words(CONNECTIONS.name, swaps)) if swaps else 0


def _table(kernel: Kernel) -> NDArray[Any]:
    return connections.table_of(np.frombuffer(kernel.joined(CONNECTIONS.name)[1], np.uint64))
