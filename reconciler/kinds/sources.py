# SPDX-License-Identifier: Apache-2.0
"""Lists of sources: who may use a service. A service's row leads to one; services with equal lists share it.

A list is named by a digest of its networks and never becomes another: a service gets a new list beside its old one,
and its row leads to the new one in one step. So there is no moment at which nobody is allowed, or everybody.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from ipaddress import ip_network
from typing import ClassVar, NamedTuple

import numpy as np

from reconciler import limits
from reconciler.dataplane.layout import RING_CHUNKS, SERVICE_MAPS, SOURCE_LISTS, SOURCE_MAPS
from reconciler.dataplane.rows import SourceListName, SourceNote
from reconciler.dataplane.source_nodes import canonical, has_outside, networks_of, nodes_of
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome, Row
from reconciler.kinds.base import Kind, Wanted, once
from reconciler.kinds.program import PROGRAM
from reconciler.kinds.source_rows import (
    NOTHING,
    held_lists,
    levels_in,
    nodes_in,
    packed_list,
    row_key,
    unpacked_list,
)
from reconciler.model import Prefix, Service
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.safe import some
from reconciler.view import Facts

_NAME_BYTES = 8
_NAME = re.compile(f"[0-9a-f]{{{2 * _NAME_BYTES}}}")


@dataclass(frozen=True, slots=True)
class SourceList(Resource):
    """`networks` are the fewest that hold the same addresses, in the order of `canonical`.

    `name` is that of a damaged list; `lost` is the number of one in the kernel that has no name, so that it can be
    removed.
    """

    kind: ClassVar[str] = "sources"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program",))

    networks: tuple[str, ...]
    lost: int = 0
    name: str = ""

    @property
    def id(self) -> str:
        return f"lost list {self.lost}" if self.lost else self.name or name_of(self.networks)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    @property
    def flaw(self) -> str:
        if self.lost or not self.networks:
            return "a damaged list"
        try:
            right = tuple(map(str, canonical(self.prefixes)))
        except ValueError as error:
            return str(error)
        return "" if right == self.networks and self.name in ("", name_of(right)) else "no networks in order"

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The networks as values. Raises ValueError if one is none."""
        return tuple(map(ip_network, self.networks))

    def takes_away(self, other: SourceList) -> bool:
        """Whether some of these sources are none of the other list's."""
        return has_outside(self.prefixes, other.prefixes)

    def describe(self) -> dict[str, str]:
        return {"networks": some(self.networks)}

    def _pack(self) -> bytes:
        """The rows of both families, as `packed_list` has them."""
        return packed_list({
            version: nodes_of(network for network in self.prefixes if network.version == version)
            for version in SOURCE_MAPS
        })  # fmt: skip


def name_of(networks: Sequence[str]) -> str:
    return blake2b(" ".join(networks).encode(), digest_size=_NAME_BYTES).hexdigest()


def is_name(text: str) -> bool:
    """Whether a list may have this name."""
    return bool(_NAME.fullmatch(text))


@once
def sources_of(service: Service) -> SourceList | None:
    """The list that a service asks for; None if everybody may use it."""
    if not service.allowed_sources:
        return None
    return SourceList(tuple(map(str, canonical(service.allowed_sources))))


class Found(NamedTuple):
    """The number of a list, and the levels of its nodes in each family: what rows of services say of it."""

    number: int
    levels: Mapping[int, int]


class SourceNames:
    """The lists that have a name, at one moment. Of several names for one number, the first in order counts."""

    def __init__(self, kernel: Kernel) -> None:
        self._rows = sorted(SOURCE_LISTS.unpack(kernel.dump(SOURCE_LISTS.name)))

    @cached_property
    def by_name(self) -> Mapping[str, Found]:
        found: dict[str, Found] = {}
        numbers: set[int] = set()
        for key, note in self._rows:
            if note.number and note.number not in numbers:
                numbers.add(note.number)
                found[_text(key.name)] = Found(note.number, {4: note.levels, 6: note.levels6})
        return found

    @cached_property
    def by_number(self) -> Mapping[int, str]:
        return {found.number: name for name, found in self.by_name.items()}

    def found(self, version: int, name: str) -> tuple[int, int] | None:
        """The number and the levels in the row of a service with such a VIP; both 0 for everybody, None if there is no
        such list."""
        if not name:
            return 0, 0
        found = self.by_name.get(name)
        return (found.number, found.levels[version]) if found else None

    def name(self, version: int, number: int, levels: int) -> str:
        """The name for such a row."""
        name = self.by_number.get(number, f"lost list {number}" if number else "")
        right = self.by_name[name].levels[version] if name in self.by_name else 0
        return name if levels == right else f"{name} with levels {levels}".lstrip()

    @property
    def all(self) -> list[str]:
        """All names, also those of no list."""
        return [_text(key.name) for key, _ in self._rows]


class SourcesKind(Kind):
    phase = 45
    resource = SourceList
    is_in_maps = True

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        found = sources_of(service)
        return [(found, service.places.get("allowedSources", service.span))] if found else ()

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        names, held = SourceNames(self.kernel), held_lists(self.kernel)
        found: list[Resource] = []
        for name in names.all:
            number, levels = names.by_name.get(name, (0, {}))
            packed = held.pop(number, NOTHING)
            asked = wanted.get(Key(SourceList.kind, name))
            is_right = isinstance(asked, SourceList) and packed == asked.packed()
            if asked and is_right and levels == levels_in(unpacked_list(packed)):
                found.append(asked)
            else:
                found.append(_decoded(name, packed, levels))
        return Reading((*found, *(SourceList((), lost=number) for number in held)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        names, held = SourceNames(self.kernel), held_lists(self.kernel)
        taken = {*names.by_number, *_in_use(self.kernel)}  # what was cut off halfway is written to the end
        free = (number for number in range(1, limits.SOURCE_LISTS + 1) if number not in taken)
        outcomes = {
            change.key: self._put(change.after, names, held, free)
            for change in changes if isinstance(change.after, SourceList)
        }  # fmt: skip
        gone = [change.before for change in changes if change.after is None and isinstance(change.before, SourceList)]
        outcomes |= self._remove(gone, names, held)
        return [outcomes.get(change.key) for change in changes]

    def _put(
        self, wanted: SourceList, names: SourceNames, held: Mapping[int, bytes], free: Iterator[int]
    ) -> Outcome:  # fmt: skip
        """Write a list, its name last: until then nothing leads to it. A damaged one is mended in place."""
        known = names.by_name.get(wanted.id)
        number = known.number if known else next(free, 0)
        if not number:
            return KernelError(f"no room for {wanted.key}: all {limits.SOURCE_LISTS:,} lists are in use")
        before, after = unpacked_list(held.get(number, NOTHING)), unpacked_list(wanted.packed())
        for version in SOURCE_MAPS:
            missing = {key: bits for key, bits in after[version].items() if before[version].get(key) != bits}
            outcome = self._update(version, number, missing)
            if outcome:
                for other in SOURCE_MAPS if not known else ():
                    self._delete(other, number, after[other])
                return outcome
        levels = levels_in(after)
        note = SourceNote(number, levels[4], levels[6])
        (outcome,) = self.kernel.update(SOURCE_LISTS.name, [SOURCE_LISTS.pack(_key(wanted.id), note)])
        for version in SOURCE_MAPS:
            outcome = outcome or self._delete(version, number, before[version].keys() - after[version].keys())
        return outcome

    def _remove(
        self, gone: Sequence[SourceList], names: SourceNames, held: Mapping[int, bytes]
    ) -> dict[Key, Outcome]:  # fmt: skip
        """Remove lists, names last: what is cut off halfway is still known by its name."""
        try:
            if gone:
                # Programs may have read a row that led to these lists, and look into them still.
                self.kernel.wait_for_programs(RING_CHUNKS.name)
        except KernelError as error:
            return {item.key: error for item in gone}
        outcomes: dict[Key, Outcome] = {}
        for item in gone:
            known = names.by_name.get(item.id)
            number = known.number if known else item.lost if item.lost not in names.by_number else 0
            rows = unpacked_list(held.get(number, NOTHING))
            outcome: Outcome = None
            for version in SOURCE_MAPS:
                outcome = outcome or self._delete(version, number, rows[version])
            if not outcome and not item.lost:
                (outcome,) = self.kernel.delete(SOURCE_LISTS.name, [SOURCE_LISTS.key.pack(_key(item.id))])
            outcomes[item.key] = outcome
        return outcomes

    def _update(self, version: int, number: int, rows: Mapping[bytes, bytes]) -> Outcome:
        spec = SOURCE_MAPS[version]
        written: list[Row] = [(row_key(version, number, node), bits) for node, bits in rows.items()]
        return next(filter(None, self.kernel.update(spec.name, written)), None) if written else None

    def _delete(self, version: int, number: int, nodes: Iterable[bytes]) -> Outcome:
        keys = [row_key(version, number, node) for node in nodes]
        return next(filter(None, self.kernel.delete(SOURCE_MAPS[version].name, keys)), None) if keys else None


def _decoded(name: str, packed: bytes, levels: Mapping[int, int]) -> SourceList:
    """A list that no manifest asks for, or that is not as it should be."""
    rows = unpacked_list(packed)
    networks = tuple(
        str(network) for version in SOURCE_MAPS for network in networks_of(nodes_in(version, rows[version]), version)
    )
    found = SourceList(networks)
    is_whole = networks and name_of(networks) == name and found.packed() == packed and levels == levels_in(rows)
    return found if is_whole else SourceList(networks, name=name)


def _in_use(kernel: Kernel) -> set[int]:
    """The numbers that rows of services have."""
    found: set[int] = set()
    for spec in SERVICE_MAPS.values():
        found |= set(np.unique(spec.value.array(kernel.joined(spec.name)[1])["sources"]).tolist())
    return found


def _key(name: str) -> SourceListName:
    return SourceListName(name.encode(errors="surrogateescape")[: SOURCE_LISTS.key_size].ljust(SOURCE_LISTS.key_size))


def _text(name: bytes) -> str:
    return name.rstrip(b" ").decode(errors="surrogateescape")


KIND = SourcesKind
