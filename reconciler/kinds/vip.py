# SPDX-License-Identifier: Apache-2.0
"""VIP rows: which addresses are VIPs, and what becomes of pings, and of packets that no service wants."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import ClassVar

from reconciler.kernel.layout import VIPS, EchoCode, UndefinedCode, code, word
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.program import PROGRAM
from reconciler.model import Echo
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import NodeView, ipv4

_ROW = struct.Struct(VIPS.value)


@dataclass(frozen=True, slots=True)
class VipRow(Resource):
    """`undefined_traffic`: drop, pass or reject. `echo`: reply, endpoint or drop."""

    kind: ClassVar[str] = "vip"

    address: IPv4Address
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
        found = {vip: s.span for s in reversed(view.services) for vip in ipv4(s.vips)}
        echo = {vip: s.echo for s in view.services if s.echo for vip in s.vips}
        echo |= {vip: Echo.ENDPOINT for s in view.services if s.takes_pings for vip in s.vips}
        undefined = view.node.undefined_traffic.value
        return ((VipRow(vip, undefined, echo.get(vip, Echo.REPLY).value), span) for vip, span in found.items())

    def read(self, wanted: Collection[Key]) -> Reading:
        rows = self.kernel.dump(VIPS.name)
        return Reading(tuple(_decode(key, value) for key, value in rows))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(c, c.after) for c in changes if isinstance(c.after, VipRow)]
        rows = [(row.address.packed, _encode(row)) for _, row in puts]
        gone = [c for c in changes if c.after is None]
        keys = [IPv4Address(c.key.id).packed for c in gone]
        outcomes: list[tuple[Change, Outcome]] = []
        outcomes += zip((c for c, _ in puts), self.kernel.update(VIPS.name, rows), strict=True)
        outcomes += zip(gone, self.kernel.delete(VIPS.name, keys), strict=True)
        return each(changes, outcomes)


def _encode(row: VipRow) -> bytes:
    return _ROW.pack(code(UndefinedCode, row.undefined_traffic), code(EchoCode, row.echo))


def _decode(key: bytes, value: bytes) -> VipRow:
    undefined, echo = _ROW.unpack(value)
    return VipRow(IPv4Address(key), word(UndefinedCode, undefined), word(EchoCode, echo))


KIND = VipKind
