# SPDX-License-Identifier: Apache-2.0
"""VIP rows: which addresses are VIPs, and what becomes of pings, and of packets that no service wants."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from reconciler.kernel.layout import VIPS, VIPS6, EchoCode, UndefinedCode, code, word
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, Echo
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import NodeView

_MAPS = {4: VIPS, 6: VIPS6}  # by family
_ROW = struct.Struct(VIPS.value)


@dataclass(frozen=True, slots=True)
class VipRow(Resource):
    """`undefined_traffic`: drop, pass or reject. `echo`: reply, endpoint or drop."""

    kind: ClassVar[str] = "vip"

    address: Address
    undefined_traffic: str
    echo: str = Echo.REPLY.value

    @property
    def id(self) -> str:
        return str(self.address)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    def describe(self) -> dict[str, str]:
        return {"undefined traffic": self.undefined_traffic, "echo": self.echo}


class VipKind(Kind):
    phase = 60
    resource = VipRow

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        found = {vip: s.span for s in reversed(view.services) for vip in s.vips}
        echo = {vip: s.echo for s in view.services if s.echo for vip in s.vips}
        echo |= {vip: Echo.ENDPOINT for s in view.services if s.takes_pings for vip in s.vips}
        undefined = view.node.undefined_traffic.value
        return ((VipRow(vip, undefined, echo.get(vip, Echo.REPLY).value), span) for vip, span in found.items())

    def read(self, wanted: Collection[Key]) -> Reading:
        rows = [row for spec in _MAPS.values() for row in self.kernel.dump(spec.name)]
        return Reading(tuple(_decode(key, value) for key, value in rows))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes: list[tuple[Change, Outcome]] = []
        for version, spec in _MAPS.items():
            own = [(c, address) for c in changes if (address := ip_address(c.key.id)).version == version]
            puts = [(c, (a.packed, _encode(c.after))) for c, a in own if isinstance(c.after, VipRow)]
            gone = [(c, a.packed) for c, a in own if c.after is None]
            done = self.kernel.update(spec.name, [row for _, row in puts])
            outcomes += zip((c for c, _ in puts), done, strict=True)
            done = self.kernel.delete(spec.name, [key for _, key in gone])
            outcomes += zip((c for c, _ in gone), done, strict=True)
        return each(changes, outcomes)


def _encode(row: VipRow) -> bytes:
    return _ROW.pack(code(UndefinedCode, row.undefined_traffic), code(EchoCode, row.echo))


def _decode(key: bytes, value: bytes) -> VipRow:
    undefined, echo = _ROW.unpack(value)
    return VipRow(ip_address(key), word(UndefinedCode, undefined), word(EchoCode, echo))


KIND = VipKind
