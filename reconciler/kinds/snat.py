# SPDX-License-Identifier: Apache-2.0
"""What fullnat has for source addresses, and which of their ports. The addresses are held as VIPs are (vip.py,
loopback.py), so the node answers for them, and what belongs to no connection is the kernel's, which answers with a
reset. No packet leaves from an address before all that brings its reply here is there, or after that is gone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import ClassVar

from reconciler.dataplane import rows
from reconciler.dataplane.layout import SNAT
from reconciler.dataplane.rows import Number
from reconciler.kernel.port import MAIN_TABLE, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, Mode, Node, Service
from reconciler.ports import pools
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.safe import SHOWN
from reconciler.support import MOST_SOURCES
from reconciler.view import Facts

_KEY = SNAT.key.pack(Number(0))
_ADDRESS_BYTES = 4


@dataclass(frozen=True, slots=True)
class Snat(Resource):
    """The source addresses, each with so many ports from the first on. `table`: that of the routes by which the
    addresses are announced, if they are. `damage` says what is wrong with a row that was written by somebody else."""

    kind: ClassVar[str] = "snat"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program", "vip", "loopback", "announcement"))

    sources: tuple[str, ...] = ()
    first_port: int = 0
    ports: int = 0
    table: int | None = field(default=None, compare=False)
    damage: str = ""

    @property
    def id(self) -> str:
        return "balancer"

    @property
    def needs(self) -> tuple[Key, ...]:
        held = (Key(kind, source) for source in self.sources for kind in ("vip", "loopback"))
        told = (Key("announcement", f"{source} table {self.table}") for source in self.sources if self.table)
        return (PROGRAM, *held, *told)

    @property
    def flaw(self) -> str:
        return self.damage

    def describe(self) -> dict[str, str]:
        last = self.first_port + self.ports - 1
        shown = {"sources": ", ".join(self.sources), "ports": f"{self.first_port}-{last}"}
        return shown | ({"damage": self.damage} if self.damage else {})

    def effect(self, after: Resource | None, context: Context) -> str:
        if not isinstance(after, Snat):
            return ""
        if (self.first_port, self.ports) != (after.first_port, after.ports):
            return "connections of fullnat whose ports are others' now end"
        gone = set(self.sources) - set(after.sources)
        return "connections of sources that go end, as their replies find nobody" if gone else ""


SNAT_KEY = Snat().key


def sources_of(node: Node) -> tuple[Address, ...]:
    """The source addresses that a node has for fullnat, of the families that it can translate."""
    return tuple(address for address in node.snat_addresses if address.version == 4)


def table_of(node: Node) -> int | None:
    """The table of the routes by which a node's addresses are announced; None if they aren't."""
    if node.announce is None:
        return None
    return MAIN_TABLE if node.bgp else node.announce.table


class SnatKind(Kind):
    phase = 49  # all that it needs is written just before it, and goes just after it
    resource = Snat
    is_in_maps = True

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        if service.mode is Mode.FULLNAT:
            sources, ports = sources_of(facts.node), facts.node.snat_ports
            row = Snat(tuple(map(str, sources)), ports.start, len(ports), table_of(facts.node))
            yield row, service.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = tuple(_decode(value) for _, value in self.kernel.dump(SNAT.name) if any(value))
        return Reading(held if SNAT_KEY in wanted else tuple(map(self._told, held)))

    def _told(self, row: Snat) -> Snat:
        """A row that goes, with the table of the routes that it still needs."""
        routes = self.kernel.announced_routes(row.sources)
        return replace(row, table=routes[0].table) if routes else row

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """Sources whose ports towards an endpoint run short."""
        tight = [pool for pool in pools(self.kernel) if pool.is_tight] if wanted else []
        for pool in tight[:SHOWN]:
            share = pool.used * 100 // (pool.used + pool.free)
            yield Concern(
                SNAT_KEY,
                f"ports are tight: {pool.source} has {pool.free:,} left towards {pool.server}/{pool.protocol}, "
                f"{share} % are in use; without a port, new connections are refused",
                "one more of snatAddresses, a greater range of snatPorts, or more endpoints",
            )

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(_KEY, _encode(c.after)) for c in changes if isinstance(c.after, Snat)]
        return self.kernel.update(SNAT.name, puts) if puts else self.kernel.delete(SNAT.name, [_KEY])


def _encode(row: Snat) -> bytes:
    packed = b"".join(IPv4Address(source).packed for source in row.sources)
    packed = packed.ljust(MOST_SOURCES * _ADDRESS_BYTES, b"\0")
    return SNAT.value.pack(rows.Snat(packed, len(row.sources), row.first_port, row.ports))


def _decode(value: bytes) -> Snat:
    row = SNAT.value.unpack(value)
    parts = [row.sources[at : at + _ADDRESS_BYTES] for at in range(0, len(row.sources), _ADDRESS_BYTES)]
    sources = tuple(str(IPv4Address(part)) for part in parts[: row.used])
    is_sound = row.used <= MOST_SOURCES and not any(map(any, parts[row.used :]))
    return Snat(sources, row.first_port, row.ports, damage="" if is_sound else f"{row.used} sources")


KIND = SnatKind
