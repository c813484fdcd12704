# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of link-local gateways: an address that the kernel has a route to, by way of the gateway.

The program asks the kernel's FIB where a gateway is, and the FIB answers nothing about a link-local address. So the
gateway's row holds another address, which no packet carries, and a route of ours to that address leads by the
gateway: the FIB follows the route and says which MAC the gateway has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.objects import Route
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.indexes import flaw_of, index_of, name_of, names
from reconciler.kinds.interface import interface_key
from reconciler.model import Address
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

_STAND_INS = int(IPv6Address("100:0:0:0:6c62:6374::"))
"""The stand-in of an interface is this address plus the interface's number. It is in the discard-only prefix (RFC
6666), above the addresses by which networks discard traffic."""
_NUMBERS = 1 << 32


@dataclass(frozen=True, slots=True)
class GatewayRoute(Resource):
    """`by` names the interface that the route leads by, if that is the wrong one."""

    kind: ClassVar[str] = "gateway-route"

    interface: str
    address: Address
    by: str = ""

    @property
    def id(self) -> str:
        return self.interface

    @property
    def flaw(self) -> str:
        return flaw_of(self.interface) or ("" if needs_stand_in(self.address) and not self.by else "by another way")

    @property
    def needs(self) -> tuple[Key, ...]:
        return (interface_key(self.interface),)

    def describe(self) -> dict[str, str]:
        return {"by way of": f"{self.address} {self.by}".rstrip()}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "packets leave to another router; connections stay" if after else ""


class GatewayRouteKind(Kind):
    phase = 14  # before the gateway itself
    resource = GatewayRoute

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        for face in view.faces:
            if face.gateway and needs_stand_in(face.gateway):
                yield GatewayRoute(face.name, face.gateway), face.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        routes = _routes(self.kernel)
        known = names(self.kernel) if routes else {}
        return Reading(tuple(
            GatewayRoute(name_of(index, known), ip_address(route.via), by="" if known.get(index) == by else by)
            for index, route in routes.items() for by in (route.interface,)
        ))  # fmt: skip

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        known = names(self.kernel)
        outcomes: list[tuple[Change, Outcome]] = []
        puts: list[tuple[Change, Route]] = []
        gone: list[tuple[Change, Route]] = []
        held = _routes(self.kernel)
        for change in changes:
            index = index_of(change.key.id, known)
            match change.after:
                case GatewayRoute(interface=name, address=address) if index is not None:
                    puts.append((change, Route(f"{_numbered(index)}/128", str(address), name)))
                case GatewayRoute(interface=name):
                    outcomes.append((change, KernelError(f"there is no interface {name}")))
                case None if index in held:
                    gone.append((change, held[index]))
        outcomes += zip((c for c, _ in puts), self.kernel.add_routes([r for _, r in puts]), strict=True)
        outcomes += zip((c for c, _ in gone), self.kernel.remove_routes([r for _, r in gone]), strict=True)
        return each(changes, outcomes)


def needs_stand_in(gateway: Address) -> bool:
    return gateway.version == 6 and gateway.is_link_local


def stand_in(index: int, gateway: Address) -> Address:
    """The address that an interface's row in `gateways` holds: the gateway's own, or its stand-in."""
    return _numbered(index) if needs_stand_in(gateway) else gateway


def standing_for(kernel: Kernel) -> Mapping[int, Address]:
    """The gateways that the routes of stand-ins lead by, by the number of the interface."""
    return {index: ip_address(route.via) for index, route in _routes(kernel).items()}


def _routes(kernel: Kernel) -> dict[int, Route]:
    """The routes of stand-ins, by the number of the interface that each is for."""
    found = {}
    for route in kernel.routes():
        address, _, bits = route.to.partition("/")
        number = int(ip_address(address)) - _STAND_INS
        if route.via and bits == "128" and 0 < number < _NUMBERS:
            found[number] = route
    return found


def _numbered(index: int) -> IPv6Address:
    return IPv6Address(_STAND_INS + index)


KIND = GatewayRouteKind
