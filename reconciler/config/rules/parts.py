# SPDX-License-Identifier: Apache-2.0
"""The parts of the manifests that rules look at, apart from single services and nodes, see `rule`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address
from operator import is_

from reconciler.config.rules.rule import place
from reconciler.config.rules.segments import IPV6
from reconciler.config.rules.surroundings import Surroundings
from reconciler.model import Labels, Mode, Node, Pool, Service


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """A pool, and the facts about its endpoints that many rules need: the `numbers` of their addresses, the least and
    the greatest of these (0 and -1 if there is none), and their ports."""

    pool: Pool
    numbers: Sequence[int]
    least: int
    greatest: int
    ports: frozenset[int | None]

    @staticmethod
    def of(pool: Pool) -> Members:
        numbers = [int(e.address) if type(e.address) is IPv4Address else IPV6 + int(e.address) for e in pool.endpoints]
        ports = frozenset([endpoint.port for endpoint in pool.endpoints])
        return Members(pool, numbers, min(numbers, default=0), max(numbers, default=-1), ports)


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A name of a pool: all pools that have it, all pools that have it as their fallback, and all services whose
    connections may go to it, since they name it or one of the latter; in order of their places.

    `may_be_declared`, `may_be_named`: a document that is broken or unread may do so.
    """

    name: str
    pools: Sequence[Members]
    fallback_of: Sequence[Members]
    services: Sequence[Service]
    may_be_declared: bool
    may_be_named: bool

    @property
    def pool(self) -> Members | None:
        """Of several with one name, the first."""
        return self.pools[0] if self.pools else None


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """A service, and the nodes that may carry it."""

    service: Service
    around: Surroundings

    @property
    def carriers(self) -> tuple[Node, ...]:
        return self.around.carriers(self.service.node_selector)


@dataclass(frozen=True, slots=True, eq=False)
class Vip:
    """The number of a VIP, and all services that have it, in order of their places. `endpoint`: the first pool that
    has it as an endpoint, and its position there."""

    number: int
    services: Sequence[Service]
    around: Surroundings
    endpoint: tuple[Members, int] | None = None


@dataclass(frozen=True)
class Reach:
    """Balancers, and the endpoints that each of them sends to. `numbers` are those of the endpoints' addresses,
    sorted; an endpoint of several pools occurs several times."""

    balancers: tuple[Node, ...]
    numbers: Sequence[int]
    unsorted: Mapping[str, Members]
    """The pools, by name."""
    sizes: frozenset[int]
    """The counts of endpoints that these pools have."""

    @cached_property
    def pools(self) -> Sequence[Members]:
        """In order of their places."""
        return sorted(self.unsorted.values(), key=lambda members: place(members.pool))


@dataclass(frozen=True, slots=True)
class Need:
    """The services of one mode with one node selector: the first, their number, the rows that they take, the first one
    that takes most, and the first one with a VIP of each family (4 and 6)."""

    first: Service
    count: int
    rows: int
    largest: Service
    families: Mapping[int, Service]

    @staticmethod
    def of(services: Sequence[Service]) -> Need:
        families: dict[int, Service] = {}
        for service in services:
            for vip in service.vips:
                families.setdefault(vip.version, service)
        rows = list(map(rows_of, services))
        return Need(services[0], len(services), sum(rows), services[rows.index(max(rows))], families)

    def is_same(self, other: Need) -> bool:
        """Whether this is the need of the very same services, in the same places."""
        own, others = ((need.first, need.largest, *need.families.values()) for need in (self, other))
        is_same = (self.count, self.rows, [*self.families]) == (other.count, other.rows, [*other.families])
        return is_same and all(map(is_, own, others))

    @staticmethod
    def sum(needs: Sequence[Need]) -> Need:
        """Of needs in order of their places."""
        families: dict[int, Service] = {}
        for need in needs:
            families = {**need.families, **families} if len(families) < 2 else families
        largest = max((need.largest for need in needs), key=rows_of)
        rows = sum(need.rows for need in needs)
        return Need(needs[0].first, sum(need.count for need in needs), rows, largest, families)


Needs = Mapping[tuple[Labels, Mode], Need]


def rows_of(service: Service) -> int:
    """How many rows a service takes: one for each pair of VIP and port, pings counting as a port."""
    return len(service.vips) * (len(service.ports) + service.takes_pings)


@dataclass(frozen=True, slots=True, eq=False)
class FileParts:
    """The parts that one file declares, in order of their places. Of its documents that are broken: the kinds and
    names that they may declare, the names that they may refer to, and whether one was not read at all."""

    services: tuple[Service, ...] = ()
    pools: tuple[Members, ...] = ()
    nodes: tuple[Node, ...] = ()
    needs: Needs = field(default_factory=dict)
    declared: frozenset[tuple[str, str]] = frozenset()
    named: frozenset[str] = frozenset()
    is_unread: bool = False
