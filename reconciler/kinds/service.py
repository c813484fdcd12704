# SPDX-License-Identifier: Apache-2.0
"""Service rows: what is balanced. Writing one publishes a service; it is one element, so it is atomic."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.layout import SERVICE_COUNTERS, SERVICES, AlgorithmCode, ModeCode, code, word
from reconciler.kernel.port import Kernel, Outcome, Row
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.endpoint import connections_end
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.ring import Ring, ring_indexes, ring_name
from reconciler.kinds.settings import SETTINGS_KEY
from reconciler.model import Mode, Protocol
from reconciler.resource import Change, Key, Live, Reading, Resource
from reconciler.view import NodeView, ipv4

_KEY = struct.Struct(SERVICES.key)
_ROW = struct.Struct(SERVICES.value)
_INDEX = struct.Struct(SERVICE_COUNTERS.key)
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}  # RFC 5237, IANA protocol numbers
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class ServiceRow(Resource):
    """One VIP, protocol and port; pings have port 0. `target_port` 0 stands for the port that the client asked for."""

    kind: ClassVar[str] = "service"

    vip: IPv4Address
    protocol: str
    port: int
    mode: str
    algorithm: str
    ring: str
    target_port: int = 0

    @property
    def id(self) -> str:
        return f"{self.vip}:{self.port}/{self.protocol}" if self.port else f"{self.vip}/{self.protocol}"

    @property
    def needs(self) -> tuple[Key, ...]:
        settings = (SETTINGS_KEY,) if self.mode == Mode.DSR_L3 else ()  # where tunnels come from
        return (PROGRAM, *settings, Key(Ring.kind, self.ring))

    def describe(self) -> dict[str, str]:
        shown = {"mode": self.mode, "algorithm": self.algorithm, "ring": self.ring}
        return shown | ({"target port": str(self.target_port)} if self.target_port else {})

    def effect(self, after: Resource | None, live: Live) -> str:
        if after is not None:
            return "open connections stay, new ones follow the new row"
        if live.connections is None:
            return connections_end(None)
        return connections_end(sum(n for (service, _), n in live.connections.items() if service == self.id))


@dataclass(frozen=True, slots=True)
class IndexedRow:
    """A row as the kernel holds it, with the index of its counters."""

    index: int
    row: ServiceRow


def indexed_rows(kernel: Kernel) -> list[IndexedRow]:
    rings = {index: name for name, index in ring_indexes(kernel).items()}
    return [IndexedRow(_ROW.unpack(value)[0], _decode(key, value, rings)) for key, value in kernel.dump(SERVICES.name)]


class ServiceKind(Kind):
    phase = 50
    resource = ServiceRow

    @staticmethod
    def desired(view: NodeView) -> Iterator[Wanted]:
        for s in view.services:
            for vip in ipv4(s.vips):
                ring = ring_name(s.pool, s.algorithm)
                for port in s.ports:
                    row = ServiceRow(
                        vip, s.protocol.value, port, s.mode.value, s.algorithm.value, ring, s.target_port or 0
                    )  # fmt: skip
                    yield row, s.span
                if s.takes_pings:
                    yield ServiceRow(vip, Protocol.ICMP.value, 0, s.mode.value, s.algorithm.value, ring), s.span

    def read(self, wanted: Collection[Key]) -> Reading:
        return Reading(tuple(indexed.row for indexed in indexed_rows(self.kernel)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        indexes = {indexed.row.id: indexed.index for indexed in indexed_rows(self.kernel)}
        rings = ring_indexes(self.kernel)
        free = iter(sorted(set(range(SERVICES.capacity)) - set(indexes.values())))
        outcomes: list[tuple[Change, Outcome]] = []
        rows: list[tuple[Change, Row]] = []
        for change in changes:
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
                    error = KernelError(f"no room for {change.key}: all {SERVICES.capacity:,} service rows are in use")
                    outcomes.append((change, error))
                    continue
                self.kernel.delete(SERVICE_COUNTERS.name, [_INDEX.pack(index)])
            rows.append((change, (_pack_key(change.after), _encode(change.after, index, ring))))
        results = self.kernel.update(SERVICES.name, [row for _, row in rows])
        outcomes += zip((change for change, _ in rows), results, strict=True)
        gone = [change for change in changes if change.after is None]
        keys = [_pack_key(change.before) for change in gone if isinstance(change.before, ServiceRow)]
        outcomes += zip(gone, self.kernel.delete(SERVICES.name, keys), strict=True)
        return each(changes, outcomes)


def _pack_key(row: ServiceRow) -> bytes:
    return _KEY.pack(row.vip.packed, row.port.to_bytes(2), _PROTOCOLS[row.protocol])


def _encode(row: ServiceRow, index: int, ring: int) -> bytes:
    mode, algorithm = code(ModeCode, row.mode), code(AlgorithmCode, row.algorithm)
    return _ROW.pack(index, ring, row.target_port.to_bytes(2), mode, algorithm)


def _decode(key: bytes, value: bytes, rings: Mapping[int, str]) -> ServiceRow:
    vip, port, protocol = _KEY.unpack(key)
    _, ring, target_port, mode, algorithm = _ROW.unpack(value)
    return ServiceRow(
        IPv4Address(vip),
        _PROTOCOL_NAMES.get(protocol, str(protocol)),
        int.from_bytes(port),
        word(ModeCode, mode),
        word(AlgorithmCode, algorithm),
        rings.get(ring, f"lost ring {ring}"),
        int.from_bytes(target_port),
    )


def service_ids(kernel: Kernel) -> Mapping[int, str]:
    """The id of each service, by the index of its counters."""
    return {indexed.index: indexed.row.id for indexed in indexed_rows(kernel)}


KIND = ServiceKind
