# SPDX-License-Identifier: Apache-2.0
"""Gateways of interfaces: the next hop of packets that come in there and go to no network of the node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from reconciler.dataplane import rows
from reconciler.dataplane.layout import GATEWAYS
from reconciler.dataplane.rows import Number
from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome, Row
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.gateway_route import GatewayRoute, needs_stand_in, stand_in, standing_for
from reconciler.kinds.indexes import flaw_of, index_of, is_gone, name_of, names
from reconciler.kinds.interface import interface_key
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView


@dataclass(frozen=True, slots=True)
class Gateway(Resource):
    kind: ClassVar[str] = "gateway"

    interface: str
    address: Address

    @property
    def id(self) -> str:
        return self.interface

    @property
    def needs(self) -> tuple[Key, ...]:
        route = (Key(GatewayRoute.kind, self.interface),) if needs_stand_in(self.address) else ()
        return (PROGRAM, interface_key(self.interface), *route)

    @property
    def flaw(self) -> str:
        return flaw_of(self.interface)

    def describe(self) -> dict[str, str]:
        return {"address": str(self.address)}

    def effect(self, after: Resource | None, context: Context) -> str:
        if is_gone(self.interface):
            return ""
        if after is None:
            return "packets follow the routes of the kernel"
        return "packets leave to another router; connections stay"


class GatewayKind(Kind):
    phase = 15
    resource = Gateway
    is_in_maps = True

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        return ((Gateway(face.name, face.gateway), face.span) for face in view.faces if face.gateway)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = self.kernel.dump(GATEWAYS.name)
        known = names(self.kernel) if held else {}
        gateways = standing_for(self.kernel) if held else {}
        return Reading(tuple(_decode(key.number, row, known, gateways) for key, row in GATEWAYS.unpack(held)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        known = names(self.kernel)
        outcomes: list[tuple[Change, Outcome]] = []
        puts: list[tuple[Change, Row]] = []
        gone: list[tuple[Change, bytes]] = []
        for change in changes:
            index = index_of(change.key.id, known)
            match change.after:
                case Gateway(address=address) if index is not None:
                    puts.append((change, GATEWAYS.pack(Number(index), _row(stand_in(index, address)))))
                case Gateway(interface=interface):
                    outcomes.append((change, KernelError(f"there is no interface {interface}")))
                case None if index is not None:
                    gone.append((change, GATEWAYS.key.pack(Number(index))))
        outcomes += zip((c for c, _ in puts), self.kernel.update(GATEWAYS.name, [row for _, row in puts]), strict=True)
        outcomes += zip((c for c, _ in gone), self.kernel.delete(GATEWAYS.name, [key for _, key in gone]), strict=True)
        return each(changes, outcomes)


def _row(address: Address) -> rows.Gateway:
    return rows.Gateway(address.packed, address.version == 6)


def _decode(index: int, row: rows.Gateway, known: Mapping[int, str], gateways: Mapping[int, Address]) -> Gateway:
    address = IPv6Address(row.address) if row.is_ipv6 else IPv4Address(row.address[:4])
    if index in gateways and address == stand_in(index, gateways[index]):
        address = gateways[index]
    return Gateway(name_of(index, known), address)


KIND = GatewayKind
