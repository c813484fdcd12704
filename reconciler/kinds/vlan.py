# SPDX-License-Identifier: Apache-2.0
"""VLANs: which interface of the node stands for which tag on which trunk.

The kernel knows the tags: manifests say only which interface is a VLAN of which other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.dataplane import rows
from reconciler.dataplane.layout import TRUNKS, VLANS
from reconciler.dataplane.rows import Number
from reconciler.errors import KernelError
from reconciler.kernel.objects import RX_VLAN, Link
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.indexes import flaw_of, index_of, name_of
from reconciler.kinds.interface import vlan_key
from reconciler.kinds.offload import offload_key
from reconciler.kinds.program import PROGRAM
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView


@dataclass(frozen=True, slots=True)
class Vlan(Resource):
    """`is_current` is whether the rows hold the trunk and the tag that the kernel knows."""

    kind: ClassVar[str] = "vlan"

    interface: str
    trunk: str
    is_current: bool = True
    tag: int = field(default=0, compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.interface

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM, vlan_key(self.interface, self.trunk), offload_key(self.trunk, RX_VLAN))

    @property
    def flaw(self) -> str:
        return flaw_of(self.interface) or flaw_of(self.trunk)

    def describe(self) -> dict[str, str]:
        shown = {"trunk": self.trunk} | ({"tag": str(self.tag)} if self.tag else {})
        return shown if self.is_current else shown | {"state": "differs from the interface"}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "packets of this VLAN are no longer balanced"


class VlanKind(Kind):
    phase = 15
    resource = Vlan
    is_in_maps = True

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        return ((Vlan(face.name, face.trunk), face.span) for face in view.faces if face.trunk)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = self.kernel.dump(TRUNKS.name)
        if not held:
            return Reading()
        links = {link.index: link for link in self.kernel.links()}
        known = {index: link.name for index, link in links.items()}
        tags = dict(self.kernel.dump(VLANS.name))
        found = []
        for key, value in held:
            index, row = TRUNKS.key.unpack(key).number, TRUNKS.value.unpack(value)
            link = links.get(index)
            is_current = link is not None and (link.trunk, link.tag) == (row.trunk, row.tag) and tags.get(value) == key
            found.append(Vlan(name_of(index, known), name_of(row.trunk, known), is_current, row.tag))
        return Reading(tuple(found))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        links = {link.name: link for link in self.kernel.links()}
        known = {link.index: name for name, link in links.items()}
        return [self._write(change, links, known) for change in changes]

    def _write(self, change: Change, links: Mapping[str, Link], known: Mapping[int, str]) -> Outcome:
        index = index_of(change.key.id, known)
        if index is None:
            return KernelError(f"there is no interface {change.key.id}") if change.after else None
        key, value = TRUNKS.key.pack(Number(index)), None
        if isinstance(change.after, Vlan):
            link = links.get(change.after.interface)
            if link is None or link.trunk is None or link.tag is None or known.get(link.trunk) != change.after.trunk:
                interface, trunk = change.after.interface, change.after.trunk
                hint = f"ip link add link {trunk} name {interface} type vlan id …"
                return KernelError(f"{interface} is no VLAN of {trunk}", hint=hint)
            value = TRUNKS.value.pack(rows.Vlan(link.trunk, link.tag))
        # The row of `trunks`, the one that is read, comes first and goes last: then a change that was cut off is seen.
        stale = [row for row, held in self.kernel.dump(VLANS.name) if held == key and row != value]
        outcomes = self.kernel.update(TRUNKS.name, [(key, value)]) if value else []
        outcomes += self.kernel.delete(VLANS.name, stale)
        if value:
            outcomes += self.kernel.update(VLANS.name, [(value, key)])
        elif not any(outcomes):
            outcomes += self.kernel.delete(TRUNKS.name, [key])
        return next(filter(None, outcomes), None)


KIND = VlanKind
