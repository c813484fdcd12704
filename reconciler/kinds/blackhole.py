# SPDX-License-Identifier: Apache-2.0
"""Black holes: routes that make a balancer drop packets to the network that its tunnels come from.

Routers send packets to such a network to the balancer, which has no use for them. By its other routes the balancer
would send such a packet back to the router, and the router would send it here again, until its hop limit is used up.
A network inside one that the node is attached to needs no black hole: no router gets packets to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import ClassVar

from reconciler.kernel.objects import Route
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.interface import THIS_NODE
from reconciler.kinds.settings import is_source
from reconciler.model import Mode, Prefix
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import NodeView


@dataclass(frozen=True, slots=True)
class Blackhole(Resource):
    kind: ClassVar[str] = "blackhole"

    network: str

    @property
    def id(self) -> str:
        return self.network

    @property
    def flaw(self) -> str:
        is_some = is_source(self.network) and ip_network(self.network).prefixlen > 0
        return "" if is_some else f"{self.network} is no network"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (THIS_NODE,)

    def describe(self) -> dict[str, str]:
        return {"packets to it": "dropped"}


class BlackholeKind(Kind):
    phase = 14  # before tunnels come from this network
    resource = Blackhole

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if any(service.mode is Mode.DSR_L3 for service in view.services):
            declared = view.node.tunnel_source
            for network in filter(None, (declared.ipv4, declared.ipv6)):
                yield Blackhole(str(network)), view.node.places.get("tunnelSource", view.node.span)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = {route.to for route in self.kernel.routes() if not route.via and not route.group}
        missing = {key.id for key in wanted} - held
        attached = [ip_network(network) for network in self.kernel.networks()] if missing else []
        needless = {network for network in missing if _is_inside(ip_network(network), attached)}
        return Reading(tuple(Blackhole(network) for network in sorted(held | needless)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts, gone = [c for c in changes if c.after], [c for c in changes if c.after is None]
        outcomes = list(zip(puts, self.kernel.add_routes([Route(c.key.id) for c in puts]), strict=True))
        outcomes += zip(gone, self.kernel.remove_routes([Route(c.key.id) for c in gone]), strict=True)
        return each(changes, outcomes)


def _is_inside(network: Prefix, attached: Iterable[Prefix]) -> bool:
    return any(
        other.version == network.version and other.prefixlen <= network.prefixlen
        and network.network_address in other for other in attached
    )  # fmt: skip


KIND = BlackholeKind
