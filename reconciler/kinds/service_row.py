# SPDX-License-Identifier: Apache-2.0
"""A service row as a value: the VIP, protocol and port that are balanced, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from reconciler import model
from reconciler.dataplane.layout import SERVICE_MAPS, AlgorithmCode, ModeCode, is_word
from reconciler.dataplane.rows import ServiceKey
from reconciler.kinds.base import once
from reconciler.kinds.endpoint_row import connections_end, is_port
from reconciler.kinds.members import Members
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.ring import Ring, ring_name
from reconciler.kinds.settings import SETTINGS_KEY
from reconciler.kinds.snat import SNAT_KEYS
from reconciler.kinds.sources import SourceList, is_name, sources_of
from reconciler.model import Address, Mode, Protocol, text_of
from reconciler.resource import Context, Key, Resource

PROTOCOLS = {  # RFC 5237, IANA protocol numbers; that of pings differs between the families
    4: {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1},
    6: {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 58},
}
_NAMES = {version: {n: name for name, n in numbers.items()} for version, numbers in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class ServiceRow(Resource):
    """One VIP, protocol and port; pings have port 0. `target_port` 0 stands for the port that the client asked for.

    `sources` names the list of those who may use it, empty for everybody. `idle_timeout_s`, of nat, 0: as the protocol
    has it. `affinity_s`, of nat and fullnat: for how long a client keeps its endpoint, 0: it does not. `is_stateless`:
    connections of nat are remembered nowhere. `is_on_its_way`: it was not so before, or is no longer, and no
    connection needs to be told any more by what was. `damage` says what is wrong with a row that was written by
    somebody else.
    """

    kind: ClassVar[str] = "service"
    may_need: ClassVar[frozenset[str] | None] = frozenset(
        ("program", "settings", "snat", "ring", "members", "sources")
    )

    vip: Address
    protocol: str
    port: int
    mode: str
    algorithm: str
    ring: str
    target_port: int = 0
    damage: str = ""
    sources: str = ""
    idle_timeout_s: int = 0
    is_stateless: bool = False
    is_on_its_way: bool = False
    affinity_s: int = 0

    @property
    def id(self) -> str:
        vip = text_of(self.vip)
        host = f"[{vip}]" if self.port and ":" in vip else vip
        return f"{host}:{self.port}/{self.protocol}" if self.port else f"{host}/{self.protocol}"

    def _pack(self) -> bytes:
        return pack_key(self)

    @property
    def needs(self) -> tuple[Key, ...]:
        settings = (SETTINGS_KEY,) if self.mode == Mode.DSR_L3 else ()  # they hold the source of tunnels
        sources = (self._sources,) if self.sources else ()
        snat = (SNAT_KEYS[self.vip.version],) if self.mode == Mode.FULLNAT else ()
        members = (Key(Members.kind, self.ring),) if self.affinity_s else ()
        return (PROGRAM, *settings, *snat, *sources, *members, self._ring)

    def needs_of(self, kind: str) -> Iterable[Key]:
        return (self._ring,) if kind == Ring.kind else Resource.needs_of(self, kind)

    @property
    def flaw(self) -> str:
        known = is_word(ModeCode, self.mode) and is_word(AlgorithmCode, self.algorithm)
        if self.damage or not known or self.protocol not in PROTOCOLS[4]:
            return self.damage or f"{self.protocol}, {self.mode}, {self.algorithm}"
        if self.sources and not is_name(self.sources):
            return f"sources {self.sources}"
        ports = (self.port, self.target_port)
        return "" if all(map(is_port, ports)) else f"ports {ports}"

    def describe(self) -> dict[str, str]:
        shown = {"mode": self.mode, "algorithm": self.algorithm, "ring": self.ring}
        shown |= {"target port": str(self.target_port)} if self.target_port else {}
        shown |= {"allowed sources": self.sources} if self.sources else {}
        shown |= {"idle timeout": f"{self.idle_timeout_s:,} s"} if self.idle_timeout_s else {}
        shown |= {"affinity": f"{self.affinity_s:,} s"} if self.affinity_s else {}
        shown |= {"stateless": "yes"} if self.is_stateless else {}
        shown |= {"on its way": "done"} if self.is_on_its_way else {}
        return shown | ({"damage": self.damage} if self.damage else {})

    @property
    def remembers(self) -> bool:
        return not self.is_stateless and (not Mode(self.mode).is_dsr if self.mode in list(Mode) else True)

    def effect(self, after: Resource | None, context: Context) -> str:
        has_another_table = isinstance(after, ServiceRow) and {self.mode, after.mode} == {Mode.NAT, Mode.FULLNAT}
        if isinstance(after, ServiceRow) and self.remembers == after.remembers and not has_another_table:
            alike = replace(
                self, sources=after.sources, idle_timeout_s=after.idle_timeout_s, affinity_s=after.affinity_s,
                is_on_its_way=False,
            )  # fmt: skip
            if alike == after:
                said = "open connections stay"
            elif self.remembers:
                said = "open connections stay, new ones follow the new row"
            else:
                said = self._moves(after, context)
            return "; ".join(filter(None, (said, self._turned_away(after, context))))
        if isinstance(after, ServiceRow) and self.mode == after.mode == Mode.NAT:
            said = "new connections are remembered" if after.remembers else "new connections are no longer remembered"
            same = (self.ring, self.target_port) == (after.ring, after.target_port)
            return f"{said}; open ones {'stay' if same or self.remembers else 'break'}"
        counts = context.live.connections
        if counts is None or not self.remembers:
            return connections_end(None)
        return connections_end(sum(n for (service, _), n in counts.items() if service == self.id))

    def _moves(self, after: ServiceRow, context: Context) -> str:
        """The effect on connections without a flow entry: all of them follow the ring, open ones too."""
        before, now = context.live.resources.get(self._ring), context.desired.get(after._ring)
        if self.is_stateless and self.target_port != after.target_port:
            return "connections go to another port of their endpoints, and open ones break"
        if self.algorithm != after.algorithm or not isinstance(before, Ring) or not isinstance(now, Ring):
            return "" if self.ring == after.ring else "connections go where another ring says, and open ones break"
        moved = before.moved(now) if self.ring != after.ring else 0.0
        return f"{moved:.1%} of connections move to another endpoint, and break if they are open" if moved else ""

    def _turned_away(self, after: ServiceRow, context: Context) -> str:
        """The effect on clients that may no longer use the service."""
        if not after.sources or after.sources == self.sources:
            return ""
        before, now = context.live.resources.get(self._sources), context.desired.get(after._sources)
        if isinstance(before, SourceList) and isinstance(now, SourceList) and not before.takes_away(now):
            return ""
        return "those of clients that are no longer allowed end at their next packet"

    @property
    def _ring(self) -> Key:
        return Key(Ring.kind, self.ring)

    @property
    def _sources(self) -> Key:
        return Key(SourceList.kind, self.sources)


@once
def rows_of(service: model.Service) -> tuple[ServiceRow, ...]:
    """The rows that a service asks for."""
    ring, mode, algorithm = ring_name(service.pool, service.scheduling), service.mode.value, service.scheduling.value
    protocol, target = service.protocol.value, service.target_port or 0
    found = sources_of(service)
    sources = found.id if found else ""
    idle_s = math.ceil(service.idle_timeout_s or 0)
    affinity_s = math.ceil(service.affinity.timeout_s) if service.affinity and service.remembers_clients else 0
    rows: list[ServiceRow] = []
    for vip in service.vips:
        rows += [
            ServiceRow(
                vip, protocol, port, mode, algorithm, ring, target, sources=sources, idle_timeout_s=idle_s,
                is_stateless=service.stateless, affinity_s=affinity_s,
            ) for port in service.ports
        ]
        if service.takes_pings:
            rows.append(ServiceRow(vip, Protocol.ICMP.value, 0, mode, algorithm, ring, sources=sources))
    return tuple(rows)


def pack_key(row: ServiceRow) -> bytes:
    """What the kernel knows a row by. Raises ValueError or struct.error if it can't know such a row."""
    name, _, padding = row.protocol.partition("+")
    number = PROTOCOLS[row.vip.version].get(name)
    protocol = int(name) if number is None else number
    key = ServiceKey(row.vip.packed, row.port, protocol, int(padding or 0))
    return SERVICE_MAPS[row.vip.version].key.pack(key)


def protocol_name(version: int, number: int, padding: int) -> str:
    """The protocol's name; of a damaged row its number, and after a `+` the byte of padding."""
    name = _NAMES[version].get(number, str(number))
    return f"{name}+{padding}" if padding else name
