# SPDX-License-Identifier: Apache-2.0
"""Service rows: the VIPs, protocols and ports that are balanced. Writing one publishes a service; a row is one element
of a map, so that is atomic."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import ClassVar

from reconciler import model
from reconciler.dataplane.layout import (
    SERVICE_COUNTERS,
    SERVICE_MAPS,
    SERVICES,
    AlgorithmCode,
    ModeCode,
    code,
    is_word,
    word,
)
from reconciler.dataplane.rows import Number, Service, ServiceKey
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome, Row
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.endpoint import connections_end, is_port
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.ring import Ring, ring_indexes, ring_name
from reconciler.kinds.settings import SETTINGS_KEY
from reconciler.model import Address, Mode, Protocol
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import Facts

_PROTOCOLS = {  # RFC 5237, IANA protocol numbers; that of pings differs between the families
    4: {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1},
    6: {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 58},
}
_PROTOCOL_NAMES = {version: {n: name for name, n in numbers.items()} for version, numbers in _PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class ServiceRow(Resource):
    """One VIP, protocol and port; pings have port 0. `target_port` 0 stands for the port that the client asked for.

    `damage` says what is wrong with a row that was written by somebody else.
    """

    kind: ClassVar[str] = "service"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program", "settings", "ring"))

    vip: Address
    protocol: str
    port: int
    mode: str
    algorithm: str
    ring: str
    target_port: int = 0
    damage: str = ""

    @property
    def id(self) -> str:
        host = f"[{self.vip}]" if self.vip.version == 6 and self.port else str(self.vip)
        return f"{host}:{self.port}/{self.protocol}" if self.port else f"{host}/{self.protocol}"

    @property
    def needs(self) -> tuple[Key, ...]:
        settings = (SETTINGS_KEY,) if self.mode == Mode.DSR_L3 else ()  # they hold the source of tunnels
        return (PROGRAM, *settings, self._ring)

    @property
    def flaw(self) -> str:
        known = is_word(ModeCode, self.mode) and is_word(AlgorithmCode, self.algorithm)
        if self.damage or not known or self.protocol not in _PROTOCOLS[4]:
            return self.damage or f"{self.protocol}, {self.mode}, {self.algorithm}"
        ports = (self.port, self.target_port)
        return "" if all(map(is_port, ports)) else f"ports {ports}"

    def describe(self) -> dict[str, str]:
        shown = {"mode": self.mode, "algorithm": self.algorithm, "ring": self.ring}
        shown |= {"target port": str(self.target_port)} if self.target_port else {}
        return shown | ({"damage": self.damage} if self.damage else {})

    @property
    def remembers(self) -> bool:
        return not Mode(self.mode).is_dsr if self.mode in list(Mode) else True

    def effect(self, after: Resource | None, context: Context) -> str:
        if isinstance(after, ServiceRow):
            if self.remembers and after.remembers:
                return "open connections stay, new ones follow the new row"
            if self.remembers == after.remembers:
                return self._moves(after, context)
        counts = context.live.connections
        if counts is None or not self.remembers:
            return connections_end(None)
        return connections_end(sum(n for (service, _), n in counts.items() if service == self.id))

    def _moves(self, after: ServiceRow, context: Context) -> str:
        """The effect on connections without a flow entry: all of them follow the ring, open ones too."""
        before, now = context.live.resources.get(self._ring), context.desired.get(after._ring)
        if self.algorithm != after.algorithm or not isinstance(before, Ring) or not isinstance(now, Ring):
            return "" if self.ring == after.ring else "connections go where another ring says, and open ones break"
        moved = before.moved(now) if self.ring != after.ring else 0.0
        return f"{moved:.1%} of connections move to another endpoint, and break if they are open" if moved else ""

    @property
    def _ring(self) -> Key:
        return Key(Ring.kind, self.ring)


@dataclass(frozen=True, slots=True)
class IndexedRow:
    """A row as the kernel holds it, and the index of its counters. Rows share an index only if one is damaged."""

    index: int
    row: ServiceRow


def indexed_rows(kernel: Kernel) -> list[IndexedRow]:
    rings = {index: name for name, index in ring_indexes(kernel).items()}
    room = kernel.capacity(SERVICE_COUNTERS.name)
    found: dict[int, IndexedRow] = {}
    damaged = []
    for version, spec in SERVICE_MAPS.items():
        for key, value in spec.unpack(kernel.dump(spec.name)):
            index, row = value.index, _decode(version, key, value, rings)
            if index < room and index not in found:
                found[index] = IndexedRow(index, row)
            else:
                damaged.append(IndexedRow(index, replace(row, damage="no counters of its own")))
    return [*found.values(), *damaged]


def rows_of(service: model.Service) -> Iterator[ServiceRow]:
    """The rows that a service asks for."""
    ring, mode, algorithm = ring_name(service.pool, service.algorithm), service.mode.value, service.algorithm.value
    for vip in service.vips:
        for port in service.ports:
            yield ServiceRow(vip, service.protocol.value, port, mode, algorithm, ring, service.target_port or 0)
        if service.takes_pings:
            yield ServiceRow(vip, Protocol.ICMP.value, 0, mode, algorithm, ring)


class ServiceKind(Kind):
    phase = 50
    resource = ServiceRow
    is_in_maps = True

    @staticmethod
    def of_service(service: model.Service, facts: Facts) -> Iterable[Wanted]:
        return ((row, service.span) for row in rows_of(service))

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        return Reading(tuple(indexed.row for indexed in indexed_rows(self.kernel)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        indexes = {held.row.id: held.index for held in indexed_rows(self.kernel) if not held.row.damage}
        rings = ring_indexes(self.kernel)
        room = self.kernel.capacity(SERVICE_COUNTERS.name)
        free = iter(sorted(set(range(room)) - set(indexes.values())))
        outcomes: list[tuple[Change, Outcome]] = []
        rows: dict[int, list[tuple[Change, Row]]] = {version: [] for version in SERVICE_MAPS}
        gone: dict[int, list[tuple[Change, bytes]]] = {version: [] for version in SERVICE_MAPS}
        for change in changes:
            if isinstance(change.before, ServiceRow) and change.after is None:
                gone[change.before.vip.version].append((change, _pack_key(change.before)))
            if not isinstance(change.after, ServiceRow):
                continue
            index, ring = indexes.get(change.key.id), rings.get(change.after.ring)
            if ring is None:
                error = KernelError(f"{change.key} needs ring {change.after.ring}, which is not there")
                outcomes.append((change, error))
                continue
            if index is None:
                index = next(free, None)
                if index is None:
                    error = KernelError(f"no room for {change.key}: all {room:,} service rows are in use")
                    outcomes.append((change, error))
                    continue
                self.kernel.delete(SERVICE_COUNTERS.name, [SERVICE_COUNTERS.key.pack(Number(index))])
            row = _pack_key(change.after), _encode(change.after, index, ring)
            rows[change.after.vip.version].append((change, row))
        for version, spec in SERVICE_MAPS.items():
            done = self.kernel.update(spec.name, [row for _, row in rows[version]])
            outcomes += zip((change for change, _ in rows[version]), done, strict=True)
            done = self.kernel.delete(spec.name, [key for _, key in gone[version]])
            outcomes += zip((change for change, _ in gone[version]), done, strict=True)
        return each(changes, outcomes)


def _pack_key(row: ServiceRow) -> bytes:
    name, _, padding = row.protocol.partition("+")
    number = _PROTOCOLS[row.vip.version].get(name)
    protocol = int(name) if number is None else number
    key = ServiceKey(row.vip.packed, row.port, protocol, int(padding or 0))
    return SERVICE_MAPS[row.vip.version].key.pack(key)


def _protocol(version: int, number: int, padding: int) -> str:
    """The protocol's name; of a damaged row its number, and after a `+` the byte of padding."""
    name = _PROTOCOL_NAMES[version].get(number, str(number))
    return f"{name}+{padding}" if padding else name


def _encode(row: ServiceRow, index: int, ring: int) -> bytes:
    mode, algorithm = code(ModeCode, row.mode), code(AlgorithmCode, row.algorithm)
    return SERVICES.value.pack(Service(index, ring, row.target_port, mode, algorithm))


def _decode(version: int, key: ServiceKey, row: Service, rings: Mapping[int, str]) -> ServiceRow:
    return ServiceRow(
        ip_address(key.vip),
        _protocol(version, key.protocol, key.pad),
        key.port,
        word(ModeCode, row.mode),
        word(AlgorithmCode, row.algorithm),
        rings.get(row.ring, f"lost ring {row.ring}"),
        row.target_port,
    )


def service_ids(kernel: Kernel) -> Mapping[int, str]:
    """The id of each service, by the index of its counters."""
    return {held.index: held.row.id for held in indexed_rows(kernel) if not held.row.damage}


KIND = ServiceKind
