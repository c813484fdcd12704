# SPDX-License-Identifier: Apache-2.0
"""Which balancers send to which endpoints, kept up to date while pools and services change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reconciler.config.rules.parts import Members, Reach
from reconciler.config.rules.sorted_numbers import SortedNumbers
from reconciler.config.rules.surroundings import Surroundings
from reconciler.model import Labels, Mode, Service

Selectors = frozenset[Labels]


@dataclass(slots=True)
class _Group:
    """The pools whose services have the same node selectors."""

    pools: dict[str, Members] = field(default_factory=dict)
    numbers: SortedNumbers = field(default_factory=SortedNumbers)
    sizes: Counter[int] = field(default_factory=Counter)
    """How many pools have so many endpoints."""
    gone: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)


class Reaches:
    """Groups of pools by the node selectors of their services in some `modes`. A pool is in one group at most."""

    def __init__(self, modes: Iterable[Mode]) -> None:
        self._modes = frozenset(modes)
        self._groups: dict[Selectors, _Group] = {}
        self._selectors: dict[str, Selectors] = {}

    def change(self, uses: Iterable[tuple[str, Members | None, Sequence[Service]]]) -> None:
        """Take notice of pools, and services, that are others than before: a name, the pool and its users."""
        changed: dict[Selectors, _Group] = {}
        for name, pool, services in uses:
            before = self._selectors.pop(name, None)
            now = frozenset([s.node_selector for s in services if s.mode in self._modes]) if pool else frozenset()
            old = None
            if before is not None:
                old = self._groups[before].pools[name]
                if not now or before != now or pool is None or old.numbers != pool.numbers:
                    group = changed[before] = self._groups[before]
                    del group.pools[name]
                    group.gone += old.numbers
                    group.sizes[len(old.numbers)] -= 1
                    old = None
            if pool is not None and now:
                group = self._groups.get(now) or self._groups.setdefault(now, _Group())
                group.pools[name] = pool
                self._selectors[name] = now
                if old is None:
                    changed[now] = group
                    group.new += pool.numbers
                    group.sizes[len(pool.numbers)] += 1
        for selectors, group in changed.items():
            group.numbers.change(group.gone, group.new)
            group.gone, group.new, group.sizes = [], [], +group.sizes
            if not group.pools:
                del self._groups[selectors]

    def groups(self, around: Surroundings) -> list[Reach]:
        """Each group with the balancers that carry its services."""
        found = []
        for selectors in sorted(self._groups, key=sorted):
            group = self._groups[selectors]
            nodes = {id(node): node for selector in sorted(selectors) for node in around.carriers(selector)}
            found.append(Reach(tuple(nodes.values()), group.numbers.all, group.pools, frozenset(group.sizes)))
        return found
