# SPDX-License-Identifier: Apache-2.0
"""What programs write into maps, carried from a map of one generation to the same map of another one.

`prepare` and `follow` are for the time in which nobody uses the target: it becomes what the source is. `finish` is for
the time after that, when only the target is used: it gets what came to the source since, and nothing that its own
program wrote into it is lost.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from reconciler.dataplane.connections import Entries, Key, Pair
from reconciler.dataplane.convert import dtype_of
from reconciler.dataplane.description import MapDescription
from reconciler.dataplane.flow_memory import Buckets, homes, place_for, resized
from reconciler.dataplane.layout import (
    BOUND,
    CONNECTIONS,
    CONNECTIONS6,
    ENDPOINT_COUNTERS,
    ENDPOINTS,
    FRONTS,
    REMEMBERED,
    RING_TURNS,
    SEED,
    SERVICE_COUNTERS,
    VERDICTS,
    MapType,
)
from reconciler.dataplane.row import COUNTER
from reconciler.dataplane.slots import Words
from reconciler.kernel import connections, cpus, filling, former_flows, maps, whole_maps
from reconciler.kernel.maps import OpenMap

Rows = dict[bytes, bytes]
Beside = Callable[[str], OpenMap]
"""Opens another map of a generation, by its name."""


class Carrier(ABC):
    """One map. `beside` opens the other maps of the generation that the target belongs to."""

    def __init__(
        self, name: str, source: OpenMap, held: MapDescription, target: OpenMap, wanted: MapDescription, beside: Beside
    ) -> None:
        self.name, self.source, self.target = name, source, target
        self._held, self._wanted, self._beside = held, wanted, beside

    @abstractmethod
    def prepare(self) -> None:
        """Make the target what the source is, whatever it was."""

    @abstractmethod
    def follow(self) -> int:
        """Make the target again what the source is; returns the number of rows that were written or removed."""

    @abstractmethod
    def finish(self) -> int:
        """Add to the target what came to the source since; returns the number of rows that this was about."""


class Counters(Carrier):
    """Numbers that only grow; all fields of 64 bits are such numbers, and other fields stay as they are. What was
    counted since is added. What the new program counts in the instant between the reading and the writing of a row is
    lost.

    `seen` are the rows of the source that the target has, as the source has them; None: not known."""

    def __init__(
        self, name: str, source: OpenMap, held: MapDescription, target: OpenMap, wanted: MapDescription, beside: Beside
    ) -> None:
        super().__init__(name, source, held, target, wanted, beside)
        self._convert = filling.between(name, held, wanted)
        self.seen: Rows | None = None

    def prepare(self) -> None:
        rows = self._rows()
        stale = self._all(self.target).keys() - self.converted(rows).keys()
        maps.delete(self.target, list(stale))
        self._write(rows)
        self.seen = rows

    def follow(self) -> int:
        seen, rows = self.seen or {}, self._rows()
        changed = {key: row for key, row in rows.items() if seen.get(key) != row}
        gone = {key: seen[key] for key in seen.keys() - rows.keys()}
        maps.delete(self.target, list(self.converted(gone)))
        self._write(changed)
        self.seen = rows
        return len(changed) + len(gone)

    def finish(self) -> int:
        if self.seen is None:  # nobody knows any more how much of it is there already
            return 0
        seen = self.seen
        rows = {key: row for key, row in self._rows().items() if seen.get(key) != row}
        former, now = self.converted({key: seen[key] for key in rows if key in seen}), self.converted(rows)
        if self.target.shape.type == MapType.CPU_ARRAY:
            self._add(former, now)
            return len(now)
        for key, row in now.items():
            held = maps.lookup(self.target, key)
            if held is not None:
                content = self._words(held).copy()
                content += (self._words(row) - self._words(former.get(key, bytes(len(row))))) * self._is_counter
                maps.update_one(self.target, key, content.tobytes())
        return len(now)

    def converted(self, rows: Mapping[bytes, bytes]) -> Rows:
        """Rows of the source as rows of the target, in the same order."""
        joined = self._convert((b"".join(rows), b"".join(rows.values())))
        return dict(filling.cut(*joined, len(rows)))

    def _write(self, rows: Rows) -> None:
        made = self.converted(rows)
        for error in filter(None, maps.update(self.target, list(made.items()))):
            raise error

    def _rows(self) -> Rows:
        return self._all(self.source)

    @staticmethod
    def _all(opened: OpenMap) -> Rows:
        return dict(whole_maps.dump(opened))

    def _add(self, former: Rows, now: Rows) -> None:
        """Add to counters where they lie, all at once."""
        numbers = np.frombuffer(b"".join(now), np.uint32)
        zeros = bytes(self.target.row_bytes)
        given = b"".join(former.get(key, zeros) for key in now)
        more = self._words(b"".join(now.values())) - self._words(given)
        held = maps.by_cpu(self.target).view(np.uint64)
        by_cpu = more.reshape(numbers.size, *held.shape[::2]).swapaxes(0, 1)
        fits = numbers < self.target.shape.capacity
        for counter in np.flatnonzero(self._is_counter):
            held[:, numbers[fits], counter] += by_cpu[:, fits, counter]

    @functools.cached_property
    def _is_counter(self) -> Words:
        """For each word of a value 1 if it is a counter, else 0."""
        of_row: Words = np.zeros(cpus.cpu_stride(self.target.shape.value_size) // 8, np.uint64)
        place = 0
        for field in self._wanted.value:
            if field[1] == COUNTER:
                of_row[place // 8] = 1
            place += dtype_of((field,)).itemsize
        return of_row

    def _words(self, row: bytes) -> Words:
        """A line of words for the value of each CPU."""
        return np.frombuffer(row, np.uint64).reshape(-1, self._is_counter.size)


class FlowMemory(Carrier):
    """The flows that are remembered in a transition, or the clients for affinity. `seen` are those that the target was
    given; None: not known."""

    seen: Buckets | None = None

    def prepare(self) -> None:
        self.seen = filling.buckets_of(self.source)
        content = resized(self.seen, self.target.shape.capacity, filling.CLAIMS[self.name]).tobytes()
        whole_maps.overwrite(self.target, [(b"", content)])

    def follow(self) -> int:
        return self.finish()

    def finish(self) -> int:
        now = filling.buckets_of(self.source)
        before = self.seen if self.seen is not None else np.zeros_like(now)
        self.seen = now
        return self._carry(before, now)

    def _carry(self, before: Buckets, now: Buckets) -> int:
        size, count = now.shape[0], self.target.shape.capacity
        moved = 0
        with maps.mapped(self.target) as content:
            there = np.frombuffer(content, np.uint64).reshape(count, -1)
            for bucket, place in np.argwhere(now != before).tolist():
                former, flow = int(before[bucket, place]), int(now[bucket, place])
                for home in homes(bucket, size, count):
                    chosen = place_for(there[home], former, flow)
                    if chosen is not None:
                        there[home, chosen] = flow
                        moved += 1
            del there
        return moved


class Connections(Carrier):
    """NAT's connections. What the new program knows better stays as it is; what it removed and the former one made
    anew comes back. `seen` are those of the source that the target was given; empty: not known."""

    def __init__(
        self, name: str, source: OpenMap, held: MapDescription, target: OpenMap, wanted: MapDescription, beside: Beside
    ) -> None:
        super().__init__(name, source, held, target, wanted, beside)
        if name != former_flows.FLOWS:
            filling.between(name, held, wanted)  # raises KernelError if the table is another version's
        self._table = connections.Table(target, connections.seed_of(beside(SEED.name)))
        self.seen: Mapping[Key, Pair] = {}

    def prepare(self) -> None:
        entries = self._entries()
        self._table.fill(entries)
        self.seen = entries.by_key()

    def follow(self) -> int:
        return self._carry(is_used=False)

    def finish(self) -> int:
        return self._carry(is_used=True)

    def _carry(self, *, is_used: bool) -> int:
        before, self.seen = self.seen, self._entries().by_key()
        return self._table.carry(before, self.seen, is_used=is_used)

    def _entries(self) -> Entries:
        return connections.held(self.source)


class FormerConnections(Connections):
    """Those of a program that has a row for each direction of a connection."""

    def _entries(self) -> Entries:
        fronts = former_flows.Fronts(whole_maps.read_joined(self._beside(FRONTS.name))[1])
        endpoints = whole_maps.read_joined(self._beside(ENDPOINTS.name))[1]
        found = former_flows.entries(self.source, self._held, endpoints, fronts)
        fronts.write(self._beside(FRONTS.name))
        return found


CARRIED: Mapping[str, tuple[str, type[Carrier]]] = {
    former_flows.FLOWS: (CONNECTIONS.name, FormerConnections),
    CONNECTIONS.name: (CONNECTIONS.name, Connections),
    CONNECTIONS6.name: (CONNECTIONS6.name, Connections),
    SERVICE_COUNTERS.name: (SERVICE_COUNTERS.name, Counters),
    ENDPOINT_COUNTERS.name: (ENDPOINT_COUNTERS.name, Counters),
    VERDICTS.name: (VERDICTS.name, Counters),
    RING_TURNS.name: (RING_TURNS.name, Counters),
    BOUND.name: (BOUND.name, FlowMemory),
    REMEMBERED.name: (REMEMBERED.name, FlowMemory),
}
"""The maps that programs write, but for caches, and those of another program to which they are carried. The last is
carried over last before the swap."""
