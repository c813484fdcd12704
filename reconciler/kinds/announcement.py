# SPDX-License-Identifier: Apache-2.0
"""What a routing daemon is told: a route to each VIP, in a table that the kernel itself never asks.

The daemon redistributes that table, so a VIP is announced as long as its route is there, whether lbctl runs or not.
The route comes last, after everything that the VIP needs was read back, and goes first. Its metric becomes the MED.

A route of the type `local` would be of no use: daemons don't read those. It leads to the loopback, and not into a
black hole, since daemons may copy it to the table `main`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import ClassVar

from reconciler.kernel.port import Outcome, Route
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.foundation import foundation_of
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.service import ServiceRow, rows_of
from reconciler.model import Address, Service
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import Facts

_INTERFACE = "lo"
_TABLES = range(1, 253)


@dataclass(frozen=True, slots=True)
class Announcement(Resource):
    """`services` are the ids of the services at this VIP."""

    kind: ClassVar[str] = "announcement"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("foundation", "loopback"))
    announces: ClassVar[bool] = True

    address: Address
    table: int
    metric: int
    services: tuple[str, ...] = field(default=(), compare=False)

    @property
    def id(self) -> str:
        return f"{self.address} table {self.table}"

    @property
    def needs(self) -> tuple[Key, ...]:
        return foundation_of(self.address), Key(LoopbackVip.kind, str(self.address))

    @property
    def needs_any(self) -> tuple[Key, ...]:
        return tuple(Key(ServiceRow.kind, service) for service in self.services)

    @property
    def flaw(self) -> str:
        return "" if self.table in _TABLES and self.metric > 0 else f"table {self.table}, metric {self.metric}"

    def describe(self) -> dict[str, str]:
        return {"metric": str(self.metric)}

    def effect(self, after: Resource | None, context: Context) -> str:
        if after is None:
            return "routers send packets to this VIP to other balancers"
        return "routers may prefer other balancers, or this one" if after != self else ""


class AnnouncementKind(Kind):
    phase = 80  # after the VIP itself, and before it when it goes
    resource = Announcement

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        told = facts.node.announce
        if told is None:
            return
        ids: dict[Address, list[str]] = {vip: [] for vip in service.vips}
        for row in rows_of(service):
            ids[row.vip].append(row.id)
        for vip, services in ids.items():
            yield Announcement(vip, told.table, told.metric, tuple(services)), service.span

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        found = [row for row, _ in claims if isinstance(row, Announcement)]
        return replace(found[0], services=tuple(dict.fromkeys(s for row in found for s in row.services))), claims[0][1]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        asked = None if only is None else {key.id for key in only}
        known = {row.id: row for row in wanted.values() if isinstance(row, Announcement)}
        found: dict[str, Announcement] = {}
        for route in self._held():
            row = Announcement(_address(route), route.table, route.metric)
            # While a metric changes there are two routes; if that was cut off, the one too many counts.
            if (asked is None or row.id in asked) and (row.id not in found or row != known.get(row.id)):
                found[row.id] = row
        return Reading(tuple(found.values()))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(change, _route(change.after)) for change in changes if isinstance(change.after, Announcement)]
        outcomes = list(zip((c for c, _ in puts), self.kernel.add_routes([r for _, r in puts]), strict=True))
        failed = {id(change) for change, outcome in outcomes if outcome}
        by_id = {change.key.id: change for change in changes if id(change) not in failed}
        kept = {route for _, route in puts}
        gone = [
            (by_id[key], route) for route in self._held() for key in (f"{_address(route)} table {route.table}",)
            if key in by_id and route not in kept
        ]  # fmt: skip
        removed = self.kernel.remove_routes([route for _, route in gone])
        outcomes += [(c, outcome) for (c, _), outcome in zip(gone, removed, strict=True) if outcome]
        return each(changes, outcomes)

    def _held(self) -> list[Route]:
        """Our routes to single addresses, by the loopback; there are no others of ours in such tables."""
        return [route for route in self.kernel.announced_routes() if ip_network(route.to).num_addresses == 1]


def _address(route: Route) -> Address:
    return ip_address(route.to.partition("/")[0])


def _route(row: Announcement) -> Route:
    return Route(f"{row.address}/{row.address.max_prefixlen}", "", _INTERFACE, row.table, row.metric)


KIND = AnnouncementKind
