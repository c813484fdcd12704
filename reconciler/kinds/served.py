# SPDX-License-Identifier: Apache-2.0
"""Sources of replies of nat without memory: which service an endpoint's address and port belong to.

A row that no service asks for any more is given up, not removed: connections go on, and each reply of one puts off its
end. An endpoint can't go from one such service to another at once: replies of the former one's connections would get
the latter's VIP. So the write is refused until they are over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import ClassVar

from reconciler import served
from reconciler.dataplane.connections import UNIT_SHIFT
from reconciler.dataplane.layout import SERVED
from reconciler.dataplane.rows import Served, ServiceKey
from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome, Row
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.endpoint import ids_of, numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow, is_port, rows_of
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, Pool, place_of
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.served import Sources
from reconciler.view import Facts, Use

_NUMBERS = {"tcp": 6, "udp": 17}
_NAMES = {number: name for name, number in _NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class Source(Resource):
    """Where an endpoint's replies come from, and what clients get to see instead. `endpoint` is the id of its row."""

    kind: ClassVar[str] = "source"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program", "endpoint"))

    address: Address
    port: int
    protocol: str
    vip: Address
    vip_port: int
    endpoint: str

    @property
    def id(self) -> str:
        return f"{place_of(self.address, self.port)}/{self.protocol}"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM, Key(EndpointRow.kind, self.endpoint))

    @property
    def flaw(self) -> str:
        if not (is_port(self.port) and is_port(self.vip_port)):
            return f"ports {self.port}, {self.vip_port}"
        return "" if self.protocol in _NUMBERS and self.endpoint else f"{self.protocol}, {self.endpoint or 'nobody'}"

    @property
    def service(self) -> str:
        return f"{place_of(self.vip, self.vip_port)}/{self.protocol}"

    def describe(self) -> dict[str, str]:
        return {"service": self.service, "endpoint": self.endpoint}

    def row_key(self) -> ServiceKey:
        return ServiceKey(self.address.packed, self.port, _NUMBERS[self.protocol])


class ServedKind(Kind):
    phase = 35  # before the ring sends anybody there, and after the endpoint's own row
    resource = Source
    is_in_maps = True

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        for vip, port, target, protocol in sorted(use.stateless):
            for endpoint, row in zip(pool.endpoints, rows_of(pool), strict=True):
                source = Source(row.address, row.port or target or port, protocol, vip, port, row.id)
                yield source, endpoint.span

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        return claims[0]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        rows = {key: row for key, row in Sources(self.kernel).rows.items() if not row.until}
        ids = ids_of(self.kernel, {row.endpoint for row in rows.values()}) if rows else {}
        found = (
            Source(
                IPv4Address(key.vip), key.port, _NAMES.get(key.protocol, str(key.protocol)), IPv4Address(row.vip),
                row.port, ids.get(row.endpoint, ""),
            ) for key, row in rows.items()
        )  # fmt: skip
        return Reading(tuple(source for source in found if only is None or source.key in only))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        held = Sources(self.kernel).rows
        wanted = [change.after for change in changes if isinstance(change.after, Source)]
        numbers = {row.row.id: row.number for row in numbered_rows(self.kernel, {s.endpoint for s in wanted})}
        puts: list[tuple[Change, Row]] = []
        outcomes: list[tuple[Change, Outcome]] = []
        for change in changes:
            source = change.after or change.before
            if not isinstance(source, Source):
                continue
            key = source.row_key()
            row = held.get(key)
            if change.after is None:
                if row and not row.until:
                    puts.append((change, SERVED.pack(key, served.given_up(row, key.protocol))))
                continue
            front = source.vip.packed, source.vip_port
            if row and (row.vip, row.port) != front:
                outcomes.append((change, _still_used(source, row)))
                if not row.until:
                    puts.append((change, SERVED.pack(key, served.given_up(row, key.protocol))))
            elif source.endpoint in numbers:
                made = Served(*front, endpoint=numbers[source.endpoint])
                puts.append((change, SERVED.pack(key, made)))
            else:
                error = KernelError(f"{change.key} needs endpoint {source.endpoint}, which is not there")
                outcomes.append((change, error))
        self._remove_what_is_over(held)
        refused = {id(change) for change, _ in outcomes}
        done = self.kernel.update(SERVED.name, [row for _, row in puts])
        outcomes += [(c, o) for (c, _), o in zip(puts, done, strict=True) if id(c) not in refused]
        return each(changes, outcomes)

    def _remove_what_is_over(self, held: Collection[ServiceKey]) -> None:
        keys = (key for key, _ in self.kernel.dump(SERVED.name))
        self.kernel.delete(SERVED.name, [key for key in keys if SERVED.key.unpack(key) not in held])


def _still_used(source: Source, row: Served) -> KernelError:
    former = place_of(IPv4Address(row.vip), row.port)
    left_s = ((row.until or served.given_up(row, _NUMBERS[source.protocol]).until) - served.now() << UNIT_SHIFT) / 1e9
    return KernelError(
        f"{source.id} still belongs to connections of {former}: they would break if {source.service} had it already",
        hint=f"try again once they are over, {left_s / 60:.0f} minutes after the last reply; or have the endpoint "
        f"listen on another port for {source.service}",
    )


KIND = ServedKind
