# SPDX-License-Identifier: Apache-2.0
"""NAT's connections, carried from one generation's table to another one's, of any size (dataplane/connections.py).

Programs change either table all the time, so a word is changed only if it is still what was seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reconciler.dataplane import connections
from reconciler.dataplane.connections import (
    BUCKET_WORDS,
    BUSY,
    PLACES,
    Entries,
    Key,
    Pair,
    find,
    homes,
    of_pairs,
    placed,
)
from reconciler.dataplane.slots import Words
from reconciler.kernel import maps, whole_maps
from reconciler.kernel.atomic import swap
from reconciler.kernel.maps import OpenMap


def seed_of(opened: OpenMap) -> Words:
    """The secret of the hashes."""
    return np.frombuffer(whole_maps.read_array(opened), np.uint64)


def held(opened: OpenMap) -> Entries:
    """The connections that a map holds."""
    return connections.entries(connections.table_of(maps.words(opened), opened.shape.value_size // 8))


class Table:
    """A table in memory that programs may use meanwhile. `seed` is its generation's."""

    def __init__(self, opened: OpenMap, seed: Words) -> None:
        self._words, self._seed = maps.words(opened), seed
        self._width = opened.shape.value_size // 8
        self._table = connections.table_of(self._words, self._width)

    def fill(self, of: Entries) -> int:
        """Make a table that nobody uses hold these connections alone; returns how many found no room."""
        content, lost = placed(of, self._seed, len(self._table))
        self._table[:] = content
        return lost

    def carry(self, before: Mapping[Key, Pair], now: Mapping[Key, Pair], *, is_used: bool) -> int:
        """Write what differs, and return how many these are. `is_used`: what the table has not as in `before` is newer
        than `now`, since its own program wrote it."""
        changed = {key: pair for key, pair in now.items() if before.get(key) != pair}
        gone = {key: pair for key, pair in before.items() if key not in now}
        of = of_pairs(list(changed.values()))
        places = find(self._table, of, self._seed).tolist()
        both = np.stack(homes(of, self._seed, len(self._table)), axis=1).tolist()
        for (key, pair), place, buckets in zip(changed.items(), places, both, strict=True):
            if place < 0:
                self._insert(pair, buckets)
            elif not is_used or self._at(place) == before.get(key):
                self._replace(place, pair)
        places = find(self._table, of_pairs(list(gone.values())), self._seed).tolist()
        for pair, place in zip(gone.values(), places, strict=True):
            if place >= 0 and (not is_used or self._at(place) == pair):
                swap(self._words, place, int(self._words[place]), 0)
        return len(changed) + len(gone)

    def _at(self, place: int) -> Pair:
        return int(self._words[place]), *map(int, self._words[self._beside(place)])

    def _beside(self, place: int) -> list[int]:
        """Which words belong to that of a place, in the order of a Pair."""
        start, number = place - place % self._width, place % self._width
        address = start + BUCKET_WORDS + 2 * number
        return [place + PLACES, *((address, address + 1) if self._width > BUCKET_WORDS else ())]

    def _replace(self, place: int, pair: Pair) -> None:
        who = int(self._words[place])
        self._words[self._beside(place)] = pair[1:]
        swap(self._words, place, who, pair[0])

    def _insert(self, pair: Pair, buckets: list[int]) -> None:
        """Into a free place of its buckets, the emptier one first, else into that of one that matters less; if there
        is none, the connection is lost."""
        starts = [bucket * self._width for bucket in buckets]
        starts.sort(key=lambda start: int(np.count_nonzero(self._words[start : start + PLACES])))
        places = [start + place for start in starts for place in range(PLACES)]
        own = connections.worth(pair[0])
        by_worth = sorted((connections.worth(who) if who else -1, place, who) for place in places
                          if (who := int(self._words[place])) != BUSY)  # fmt: skip
        for worth, place, who in by_worth:
            if worth < own and swap(self._words, place, who, BUSY):
                self._words[self._beside(place)] = pair[1:]
                self._words[place] = pair[0]
                return
