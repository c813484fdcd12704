# SPDX-License-Identifier: Apache-2.0
"""What fullnat has for source addresses, and which of their ports. The addresses are held as VIPs are (vip.py,
loopback.py), so the node answers for them, and what belongs to no connection is the kernel's, which answers with a
reset. No packet leaves from an address before all that brings its reply here is there, or after that is gone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import ClassVar

from reconciler.dataplane import rows
from reconciler.dataplane.layout import SNAT, SNAT6, SNAT_MAPS
from reconciler.dataplane.rows import Number
from reconciler.kernel.objects import MAIN_TABLE
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.program import PROGRAM
from reconciler.model import Mode, Node, Service, text_of
from reconciler.ports import pools
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.safe import SHOWN
from reconciler.support import MOST_SOURCES
from reconciler.view import Facts, sources_of

_KEY = SNAT.key.pack(Number(0))


@dataclass(frozen=True, slots=True)
class Snat(Resource):
    """The source addresses, each with so many ports from the first on. `table`: that of the routes by which the
    addresses are announced, if they are; `proxied`: the ids of what answers neighbours that ask for them. `damage`
    says what is wrong with a row that was written by somebody else."""

    kind: ClassVar[str] = "snat"  # one for each version of IP
    may_need: ClassVar[frozenset[str] | None] = frozenset(
        ("program", "vip", "loopback", "neighbour-proxy", "announcement")
    )

    sources: tuple[str, ...] = ()
    first_port: int = 0
    ports: int = 0
    table: int | None = field(default=None, compare=False, repr=False)
    proxied: tuple[str, ...] = field(default=(), compare=False, repr=False)
    damage: str = ""
    version: int = 4

    @property
    def id(self) -> str:
        return "balancer" if self.version == 4 else f"balancer IPv{self.version}"

    @property
    def needs(self) -> tuple[Key, ...]:
        held = (Key(kind, source) for source in self.sources for kind in ("vip", "loopback"))
        told = (Key("announcement", f"{source} table {self.table}") for source in self.sources if self.table)
        return (PROGRAM, *held, *(Key("neighbour-proxy", id) for id in self.proxied), *told)

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


SNAT_KEYS = {version: Snat(version=version).key for version in SNAT_MAPS}


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
        if service.mode is not Mode.FULLNAT:
            return
        ports, table = facts.node.snat_ports, table_of(facts.node)
        for version in sorted({vip.version for vip in service.vips}):
            sources = [source for source in sources_of(facts.node, service) if source.version == version]
            links = [(source, facts.on_link(source)) for source in sources if version == 6]
            proxied = tuple(f"{source} {interface}" for source, interfaces in links for interface in interfaces)
            texts = tuple(map(text_of, sources))
            yield Snat(texts, ports.start, len(ports), table, proxied, version=version), service.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        read = ((version, self.kernel.dump(spec.name)) for version, spec in SNAT_MAPS.items())
        held = (_decode(version, value) for version, rows_ in read for _, value in rows_ if any(value))
        return Reading(tuple(row if row.key in wanted else self._told(row) for row in held))

    def _told(self, row: Snat) -> Snat:
        """A row that goes, with what it still needs."""
        routes = self.kernel.announced_routes(row.sources)
        ours, _ = self.kernel.neighbour_proxies()
        proxied = tuple(f"{proxy.address} {proxy.interface}" for proxy in ours if proxy.address in row.sources)
        return replace(row, table=routes[0].table if routes else None, proxied=proxied)

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """Sources whose ports towards an endpoint run short."""
        tight = [pool for pool in pools(self.kernel) if pool.is_tight] if wanted else []
        for pool in tight[:SHOWN]:
            share = pool.used * 100 // (pool.used + pool.free)
            yield Concern(
                SNAT_KEYS[pool.version],
                f"ports are tight: {pool.source} has {pool.free:,} left towards {pool.server}/{pool.protocol}, "
                f"{share} % are in use; without a port, new connections are refused",
                "one more of snatAddresses, a greater range of snatPorts, or more endpoints",
            )

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes: list[tuple[Change, Outcome]] = []
        for version, spec in SNAT_MAPS.items():
            own = [change for change in changes if change.key == SNAT_KEYS[version]]
            puts = [(_KEY, _encode(c.after)) for c in own if isinstance(c.after, Snat)]
            done = self.kernel.update(spec.name, puts) if puts else self.kernel.delete(spec.name, [_KEY] * len(own))
            outcomes += zip(own, done, strict=True)
        return each(changes, outcomes)


def _encode(row: Snat) -> bytes:
    packed = b"".join(ip_address(source).packed for source in row.sources)
    packed = packed.ljust(MOST_SOURCES * (4 if row.version == 4 else 16), b"\0")
    numbers = len(row.sources), row.first_port, row.ports
    if row.version == 4:
        return SNAT.value.pack(rows.Snat(packed, *numbers))
    return SNAT6.value.pack(rows.Snat6(bytes(32), *numbers, packed))


def _decode(version: int, value: bytes) -> Snat:
    row = SNAT_MAPS[version].value.unpack(value)
    size = len(row.sources) // MOST_SOURCES
    parts = [row.sources[at : at + size] for at in range(0, len(row.sources), size)]
    sources = tuple(text_of(ip_address(part)) for part in parts[: row.used])
    is_sound = row.used <= MOST_SOURCES and not any(map(any, parts[row.used :]))
    is_sound &= version == 4 or not any(row.none)
    return Snat(sources, row.first_port, row.ports, damage="" if is_sound else f"{row.used} sources", version=version)


KIND = SnatKind
