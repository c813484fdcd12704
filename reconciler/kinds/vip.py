# SPDX-License-Identifier: Apache-2.0
"""VIP rows: which addresses are VIPs, and what becomes of packets to them that no service wants."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import ClassVar

from reconciler.kernel.layout import VIPS, UndefinedCode, code, word
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.program import PROGRAM
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import NodeView, ipv4

_ROW = struct.Struct(VIPS.value)


@dataclass(frozen=True, slots=True)
class VipRow(Resource):
    """`undefined_traffic`: drop or pass."""

    kind: ClassVar[str] = "vip"

    address: IPv4Address
    undefined_traffic: str

    @property
    def id(self) -> str:
        return str(self.address)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    def describe(self) -> dict[str, str]:
        return {"undefined traffic": self.undefined_traffic}


class VipKind(Kind):
    phase = 60
    resource = VipRow

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        found = {vip: s.span for s in reversed(view.services) for vip in ipv4(s.vips)}
        return ((VipRow(vip, view.node.undefined_traffic.value), span) for vip, span in found.items())

    def read(self, wanted: Collection[Key]) -> Reading:
        rows = self.kernel.dump(VIPS.name)
        return Reading(
            tuple(VipRow(IPv4Address(key), word(UndefinedCode, _ROW.unpack(value)[0])) for key, value in rows)
        )

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(c, c.after) for c in changes if isinstance(c.after, VipRow)]
        rows = [(row.address.packed, _ROW.pack(code(UndefinedCode, row.undefined_traffic))) for _, row in puts]
        gone = [c for c in changes if c.after is None]
        keys = [IPv4Address(c.key.id).packed for c in gone]
        outcomes: list[tuple[Change, Outcome]] = []
        outcomes += zip((c for c, _ in puts), self.kernel.update(VIPS.name, rows), strict=True)
        outcomes += zip(gone, self.kernel.delete(VIPS.name, keys), strict=True)
        return each(changes, outcomes)


KIND = VipKind
