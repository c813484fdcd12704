# SPDX-License-Identifier: Apache-2.0
"""Service rows: the VIPs, protocols and ports that are balanced. Writing one publishes a service; a row is one element
of a map, so that is atomic."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from reconciler import connections, model
from reconciler.dataplane.layout import (
    FRONTS,
    SERVICE_COUNTERS,
    SERVICE_MAPS,
    SERVICES,
    STATELESS_MODES,
    AlgorithmCode,
    ModeCode,
    code,
    word,
)
from reconciler.dataplane.rows import Front, Number, Service
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome, Row
from reconciler.kinds.base import Kind, Wanted, each, in_parts
from reconciler.kinds.fronts import front_of, id_of_front, is_translating, packed_front
from reconciler.kinds.service_row import ServiceRow, pack_key, protocol_name, rows_of
from reconciler.kinds.sources import SourceNames
from reconciler.model import Mode
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.ring_names import RingNames
from reconciler.served import Sources
from reconciler.view import Facts

_LOOKED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class IndexedRow:
    """A row as the kernel holds it, and the index of its counters. Rows share an index only if one is damaged."""

    index: int
    row: ServiceRow


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The rows of both families of IP. `values` are as the kernel holds them; `bare` are the same without an index;
    `is_sound` says which have an index that counters have, and that belongs to no other row. `fronts` are by index."""

    keys: Sequence[bytes]
    values: NDArray[np.void]
    bare: Sequence[bytes]
    is_sound: NDArray[np.bool_]
    fronts: NDArray[np.void]
    served: Sources

    def row(self, place: int, rings: RingNames, sources: SourceNames) -> IndexedRow:
        value = SERVICES.value.unpack(self.values[place].tobytes())
        row = _decode(self.keys[place], value, rings, sources)
        if not self.is_sound[place]:
            return IndexedRow(value.index, replace(row, damage="no counters of its own"))
        if is_translating(row.mode):
            front = self._front(value.index)
            row = replace(row, idle_timeout_s=front.idle_s, affinity_s=front.affinity_s)
            if self.mode(row, value.index) != value.mode:
                row = replace(row, is_on_its_way=True)
            if not self.has_front(place, row):
                row = replace(row, damage="no front, or another one's")
        return IndexedRow(value.index, row)

    def mode(self, row: ServiceRow, index: int) -> int:
        """What a row with this index has to say of its mode."""
        if row.mode != Mode.NAT or not (row.is_stateless or self.served.rows) or row.vip.version != SERVED_VERSION:
            return code(ModeCode, row.mode)
        return self.served.mode(front_of(row), index, is_stateless=row.is_stateless)

    def has_front(self, place: int, row: ServiceRow) -> bool:
        """Whether a row's connections find what their clients see of it."""
        index = int(self.values["index"][place])
        has_own = index < self.fronts.size and self.fronts[index].tobytes() == packed_front(row)
        return not is_translating(row.mode) or has_own

    def _front(self, index: int) -> Front:
        """What clients of a service of nat or fullnat see of it."""
        is_there = index < self.fronts.size
        return FRONTS.value.unpack(self.fronts[index].tobytes()) if is_there else FRONTS.value.default

    @property
    def places(self) -> dict[bytes, int]:
        """The place of each key."""
        return dict(zip(self.keys, range(len(self.keys)), strict=True))


def _table(
    kernel: Kernel, rings: RingNames, sources: SourceNames, expected: Mapping[Key, Resource] = MappingProxyType({}),
    doubted: Collection[bytes] = (),
) -> _Table:  # fmt: skip
    """`expected` are rows that should be there, by key, and `doubted` the keys of rows that are damaged."""
    keys, values = [], b""
    for spec in SERVICE_MAPS.values():
        joined = kernel.joined(spec.name)
        keys += spec.key.split(joined[0])
        values += joined[1]
    rows = SERVICES.value.array(values)
    bare = rows.copy()
    bare["index"] = 0
    is_sound, fronts = rows["index"] < kernel.capacity(SERVICE_COUNTERS.name), connections.fronts(kernel)
    table = _Table(keys, rows, SERVICES.value.split(bare.tobytes()), is_sound, fronts, Sources(kernel))
    if np.unique(rows["index"]).size == rows.size:
        return table
    owners = _owners(table, _claims(table, rings, sources, expected, doubted))
    return replace(table, is_sound=is_sound & owners)


def _claims(
    table: _Table, rings: RingNames, sources: SourceNames, expected: Mapping[Key, Resource], doubted: Collection[bytes]
) -> NDArray[np.int8]:
    """How sure it is that the index of each row is its own. Connections of nat and fullnat go by the front that has
    the index; of other modes nothing but the rest of a row tells whether somebody wrote it by mistake."""
    claims = np.zeros(len(table.keys), np.int8)
    wanted = {row.packed(): row for row in expected.values() if isinstance(row, ServiceRow) and not row.flaw}
    _, of_row, counts = np.unique(table.values["index"], return_inverse=True, return_counts=True)
    for place in np.flatnonzero(counts[of_row] > 1).tolist():
        key = table.keys[place]
        value = SERVICES.value.unpack(table.values[place].tobytes())
        held = _decode(key, value, rings, sources)
        if is_translating(held.mode) and id_of_front(table.fronts, value.index) == held.id:
            claims[place] += 4
        if (row := wanted.get(key)) is not None:
            claims[place] += 2 if _is_held(row, table, place, rings, sources) else 1
        if key in doubted:
            claims[place] -= 1
    return claims


def _owners(table: _Table, claims: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which rows have the best claim to their index, the first one of equals."""
    order = np.argsort(-claims, kind="stable")
    found = np.zeros(claims.size, np.bool_)
    found[order[np.unique(table.values["index"][order], return_index=True)[1]]] = True
    return found


def indexed_rows(kernel: Kernel) -> list[IndexedRow]:
    """Every row; those without counters of their own come last."""
    rings, sources = RingNames(kernel), SourceNames(kernel)
    table = _table(kernel, rings, sources)
    return [table.row(int(place), rings, sources) for place in np.argsort(~table.is_sound, kind="stable")]


class ServiceKind(Kind):
    phase = 50
    resource = ServiceRow
    is_in_maps = True

    @staticmethod
    def of_service(service: model.Service, facts: Facts) -> Iterable[Wanted]:
        return ((row, service.span) for row in rows_of(service))

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        rings, sources = RingNames(self.kernel), SourceNames(self.kernel)
        table = _table(self.kernel, rings, sources, wanted)
        places = table.places
        left = dict.fromkeys(places.values()) if only is None else _places(only, wanted, places)
        right = _right(wanted, table, places, left, rings, sources)
        return Reading((*right, *(table.row(place, rings, sources).row for place in left)))

    def look(self, wanted: Mapping[Key, Resource]) -> Iterator[Collection[Key]]:
        rings, sources = RingNames(self.kernel), SourceNames(self.kernel)
        table = _table(self.kernel, rings, sources, wanted)
        yield ()
        places = table.places
        left = dict.fromkeys(places.values())
        yield ()
        for part in in_parts(wanted, _LOOKED_AT_ONCE):
            right = {row.key for row in _right(part, table, places, left, rings, sources)}
            yield [key for key in part if key not in right]
        yield [table.row(place, rings, sources).row.key for place in left]

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        rings, sources = RingNames(self.kernel), SourceNames(self.kernel)
        former = [change.before for change in changes if isinstance(change.before, ServiceRow)]
        doubted = {held.packed() for held in former if held.damage}
        table = _table(self.kernel, rings, sources, {held.key: held for held in former}, doubted)
        places = table.places
        room = self.kernel.capacity(SERVICE_COUNTERS.name)
        free = self._free_indexes(table, room)
        taken: list[bytes] = []
        outcomes: list[tuple[Change, Outcome]] = []
        fronts: list[tuple[Change, Row]] = []
        rows: dict[int, list[tuple[Change, Row]]] = {version: [] for version in SERVICE_MAPS}
        gone: dict[int, list[tuple[Change, bytes]]] = {version: [] for version in SERVICE_MAPS}
        for change in changes:
            if isinstance(change.before, ServiceRow) and change.after is None:
                gone[change.before.vip.version].append((change, change.before.packed()))
            if not isinstance(change.after, ServiceRow):
                continue
            key, ring = change.after.packed(), rings.number(change.after.ring)
            place = places.get(key)
            index = int(table.values["index"][place]) if place is not None and table.is_sound[place] else None
            if index is not None and self._has_connections_to_another_port(table.values[place], change.after):
                index = None
            if ring is None:
                error = KernelError(f"{change.key} needs ring {change.after.ring}, which is not there")
                outcomes.append((change, error))
                continue
            known = sources.found(change.after.vip.version, change.after.sources)
            if known is None:
                error = KernelError(f"{change.key} needs the sources {change.after.sources}, which are not there")
                outcomes.append((change, error))
                continue
            if index is None:
                index = next(free, None)
                if index is None:
                    error = KernelError(f"no room for {change.key}: all {room:,} service rows are in use")
                    outcomes.append((change, error))
                    continue
                taken.append(SERVICE_COUNTERS.key.pack(Number(index)))
            mode = table.mode(change.after, index)
            if mode == ModeCode.NAT and place is not None and table.values["mode"][place] in _STATELESS:
                mode = ModeCode.NAT_LEAVING  # its sources are given up only after this
            row = key, _encode(change.after, index, ring, *known, mode)
            rows[change.after.vip.version].append((change, row))
            if is_translating(change.after.mode):
                fronts.append((change, (FRONTS.key.pack(Number(index)), packed_front(change.after))))
        self.kernel.delete(SERVICE_COUNTERS.name, taken)
        done = self.kernel.update(FRONTS.name, [row for _, row in fronts])
        lost = [(change, outcome) for (change, _), outcome in zip(fronts, done, strict=True) if outcome]
        outcomes += lost
        without = {change.key for change, _ in lost}
        for version, spec in SERVICE_MAPS.items():
            fit = [(change, row) for change, row in rows[version] if change.key not in without]
            done = self.kernel.update(spec.name, [row for _, row in fit])
            outcomes += zip((change for change, _ in fit), done, strict=True)
            done = self.kernel.delete(spec.name, [key for _, key in gone[version]])
            outcomes += zip((change for change, _ in gone[version]), done, strict=True)
        return each(changes, outcomes)

    def _free_indexes(self, table: _Table, room: int) -> Iterator[int]:
        """Indexes for new rows: first those that no connection can have, then those of former services of nat that
        none has any more."""
        is_free = np.ones(room, np.bool_)
        is_free[table.values["index"][table.is_sound]] = False
        has_front = np.zeros(room, np.bool_)
        has_front[: table.fronts.size] = table.fronts["protocol"][:room] != 0
        yield from np.flatnonzero(is_free & ~has_front).tolist()
        left = np.flatnonzero(is_free & has_front).tolist()
        in_use = connections.numbers_in_use(self.kernel)[1] if left else set()
        reusable = [index for index in left if index not in in_use]
        connections.forget(self.kernel, services=reusable)
        self.kernel.delete(FRONTS.name, [FRONTS.key.pack(Number(index)) for index in reusable])
        yield from reusable

    def _has_connections_to_another_port(self, held: NDArray[np.void], row: ServiceRow) -> bool:
        """Whether connections would lose their endpoint's port: they go on with another index."""
        is_same = int(held["mode"]) == code(ModeCode, row.mode) and int(held["target_port"]) == row.target_port
        if is_same or not is_translating(row.mode) or not is_translating(word(ModeCode, int(held["mode"]))):
            return False
        return int(held["index"]) in connections.numbers_in_use(self.kernel)[1]


SERVED_VERSION = 4
"""Of IP, whose services may be stateless."""
_STATELESS = ModeCode.NAT_STATELESS, ModeCode.NAT_SETTLING
_MODES: dict[int, str] = dict.fromkeys(STATELESS_MODES, Mode.NAT.value)


def _right(
    wanted: Mapping[Key, Resource], table: _Table, places: Mapping[bytes, int], left: dict[int, None],
    rings: RingNames, sources: SourceNames,
) -> list[ServiceRow]:  # fmt: skip
    """The rows that are as they are wanted; their places are taken out of those that are `left`."""
    plain = [row for row in wanted.values() if isinstance(row, ServiceRow) and not row.damage]
    right = []
    for row, note in zip(plain, rings.notes(row.ring for row in plain), strict=True):
        place = places.get(row.packed(), -1)
        known = sources.found(row.vip.version, row.sources)
        if not note or not known or place not in left or not table.is_sound[place]:
            continue
        mode = table.mode(row, int(table.values["index"][place]))
        if table.bare[place] == _encode(row, 0, note.number, *known, mode) and table.has_front(place, row):
            right.append(row)
            del left[place]
    return right


def _is_held(row: ServiceRow, table: _Table, place: int, rings: RingNames, sources: SourceNames) -> bool:
    """Whether the row at a place is this one, whatever its index."""
    ring, known = rings.number(row.ring), sources.found(row.vip.version, row.sources)
    if ring is None or known is None:
        return False
    return table.bare[place] == _encode(row, 0, ring, *known, table.mode(row, int(table.values["index"][place])))


def _encode(row: ServiceRow, index: int, ring: int, sources: int, levels: int, mode: int) -> bytes:
    algorithm = code(AlgorithmCode, row.algorithm)
    return SERVICES.value.pack(Service(index, ring, row.target_port, mode, algorithm, sources, levels))


def _decode(packed: bytes, row: Service, rings: RingNames, sources: SourceNames) -> ServiceRow:
    version = 4 if len(packed) == SERVICES.key_size else 6
    key = SERVICE_MAPS[version].key.unpack(packed)
    return ServiceRow(
        ip_address(key.vip),
        protocol_name(version, key.protocol, key.pad),
        key.port,
        _MODES.get(row.mode) or word(ModeCode, row.mode),
        word(AlgorithmCode, row.algorithm),
        rings.name(row.ring) or f"lost ring {row.ring}",
        row.target_port,
        sources=sources.name(version, row.sources, row.levels),
        is_stateless=row.mode in _STATELESS,
    )


def _places(keys: Iterable[Key], wanted: Mapping[Key, Resource], places: Mapping[bytes, int]) -> dict[int, None]:
    """The places of the rows with these keys; if one is no key of a row, of all rows. The `wanted` rows know where
    they are."""
    found: dict[int, None] = {}
    for key in keys:
        row = wanted.get(key)
        packed = row.packed() if isinstance(row, ServiceRow) and not row.damage else _key_of(key.id)
        if packed is None:
            return dict.fromkeys(places.values())
        if packed in places:
            found[places[packed]] = None
    return found


def _key_of(id: str) -> bytes | None:
    """The key of the row with an id; None if no row has such an id."""
    place, _, protocol = id.rpartition("/")
    match = re.fullmatch(r"(?:\[(.+)\]|([0-9.]+)):([0-9]+)", place)
    host, port = (match[1] or match[2], int(match[3])) if match else (place, 0)
    try:
        return pack_key(ServiceRow(ip_address(host), protocol, port, "", "", ""))
    except (ValueError, struct.error):
        return None


KIND = ServiceKind
