# SPDX-License-Identifier: Apache-2.0
"""What a routing daemon is told: a route to each VIP, in a table that the kernel itself never asks.

The daemon redistributes these routes, so a VIP is announced as long as its route is there, whether lbctl runs or not.
The route comes last, after everything that the VIP needs was read back, and goes first. Its metric becomes the MED.

A route of the type `local` would be of no use: daemons don't read those. It leads to the loopback, and not into a
black hole, since daemons may copy it to the table `main`. There it is from the beginning if lbctl configures FRR,
which has no good eye for other tables (see `config/bgp`); the kernel finds the VIP in the table `local` first.

A VIP that must not be announced as things are (see `telling`) is an announcement without a route, so that a plan
says why. One that leaves has a metric of its own, which the daemon turns into a community.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from math import inf
from typing import ClassVar

from reconciler.kernel.objects import MAIN_TABLE, Route
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.foundation import foundation_of
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.service_row import ServiceRow, rows_of
from reconciler.kinds.snat import table_of
from reconciler.model import LEAVING_METRIC, Address, Mode, Service
from reconciler.resource import Cause, Causes, Change, Concern, Context, Key, Reading, Reason, Resource
from reconciler.safe import some
from reconciler.telling import Form, telling_of
from reconciler.view import Facts, sources_of

_INTERFACE = "lo"
_TABLES = (*range(1, 253), MAIN_TABLE)


@dataclass(frozen=True, slots=True)
class Announcement(Resource):
    """`services` are the ids of the services at this VIP. `metric` 0: it is withdrawn, and there is no route. `why`:
    what speaks against it, as things are; `is_drained`: somebody wants it so."""

    kind: ClassVar[str] = "announcement"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("foundation", "loopback"))
    announces: ClassVar[bool] = True

    address: Address
    table: int
    metric: int
    services: tuple[str, ...] = field(default=(), compare=False, repr=False)
    why: tuple[str, ...] = field(default=(), compare=False, repr=False)
    is_drained: bool = field(default=False, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.address} table {self.table}"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (foundation_of(self.address), Key(LoopbackVip.kind, str(self.address))) if self.metric else ()

    @property
    def needs_any(self) -> tuple[Key, ...]:
        return tuple(Key(ServiceRow.kind, service) for service in self.services) if self.metric else ()

    @property
    def withdraws(self) -> bool:
        return not self.metric

    @property
    def flaw(self) -> str:
        return "" if self.table in _TABLES and self.metric >= 0 else f"table {self.table}, metric {self.metric}"

    def describe(self) -> dict[str, str]:
        named = {0: "none, withdrawn", LEAVING_METRIC: f"{LEAVING_METRIC}, leaving"}
        return {"metric": named.get(self.metric, str(self.metric))}

    def caused(self, before: Resource, causes: Causes) -> Cause | None:
        if not self.why:
            return None
        return Cause(Reason.DRAIN if self.is_drained else Reason.HEALTH, some(self.why, "; "))

    def effect(self, after: Resource | None, context: Context) -> str:
        if after is None or (isinstance(after, Announcement) and not after.metric):
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
        telling = telling_of(service)
        metrics = {Form.DEGRADED: told.degraded_metric, Form.LEAVING: LEAVING_METRIC, Form.WITHDRAWN: 0}
        metric = metrics.get(telling.form) if telling.form in metrics else told.metric
        table = table_of(facts.node) or told.table
        for vip, services in ids.items():
            found = Announcement(vip, table, metric or 0, tuple(services), telling.why, telling.is_drained)
            yield found, service.span
        if service.mode is Mode.FULLNAT:
            # Replies come to this node alone, so neither health nor a drain speaks against it.
            for source in sources_of(facts.node, service):
                yield Announcement(source, table, told.metric), service.span

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        # As long as something works at the VIP, routers hear of it: of several services, the best one counts.
        found = [row for row, _ in claims if isinstance(row, Announcement)]
        best = min(found, key=lambda row: row.metric or inf)
        return replace(best, services=tuple(dict.fromkeys(s for row in found for s in row.services))), claims[0][1]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        asked = None if only is None else {key.id for key in only}
        known = {row.id: row for row in wanted.values() if isinstance(row, Announcement)}
        found: dict[str, Announcement] = {}
        for route in self._held(only):
            row = Announcement(_address(route), route.table, route.metric)
            # While a metric changes there are two routes; if that was cut off, the one too many counts.
            if (asked is None or row.id in asked) and (row.id not in found or row != known.get(row.id)):
                found[row.id] = row
        withdrawn = (row for id, row in known.items() if not row.metric and id not in found)
        return Reading((*found.values(), *withdrawn))

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """VIPs that routers don't hear of, or not as usual, by what speaks against them."""
        grouped: dict[tuple[str, ...], list[Announcement]] = {}
        for row in wanted:
            if isinstance(row, Announcement) and row.why:
                grouped.setdefault((*row.why, row.describe()["metric"]), []).append(row)
        for rows in grouped.values():
            first, more = rows[0], f", and {len(rows) - 1:,} more" if len(rows) > 1 else ""
            told = f"announced with metric {first.metric}" if first.metric else "not announced"
            hint = "lbctl undrain --balancer" if first.is_drained else "it is announced again once this is mended"
            yield Concern(first.key, f"{first.address}{more} is {told}: {some(first.why, '; ')}", hint)

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        rows = [(change, change.after) for change in changes if isinstance(change.after, Announcement)]
        puts = [(change, _route(row)) for change, row in rows if row.metric]
        outcomes = list(zip((c for c, _ in puts), self.kernel.add_routes([r for _, r in puts]), strict=True))
        failed = {id(change) for change, outcome in outcomes if outcome}
        # The new route comes before the former one goes; nothing is read for that, of ten thousand routes.
        kept = {route for _, route in puts}
        gone = [
            (change, route) for change in changes
            if isinstance(change.before, Announcement) and change.before.metric and id(change) not in failed
            and (route := _route(change.before)) not in kept
        ]  # fmt: skip
        removed = self.kernel.remove_routes([route for _, route in gone])
        outcomes += [(c, outcome) for (c, _), outcome in zip(gone, removed, strict=True) if outcome]
        return each(changes, outcomes)

    def _held(self, keys: Iterable[Key] | None = None) -> list[Route]:
        """Our routes to single addresses, by the loopback. With `keys`, those to these addresses."""
        addresses = None if keys is None else {key.id.partition(" ")[0] for key in keys}
        held = self.kernel.announced_routes(addresses)
        return [route for route in held if ip_network(route.to).num_addresses == 1]


def _address(route: Route) -> Address:
    return ip_address(route.to.partition("/")[0])


def _route(row: Announcement) -> Route:
    return Route(f"{row.address}/{row.address.max_prefixlen}", "", _INTERFACE, row.table, row.metric)


KIND = AnnouncementKind
