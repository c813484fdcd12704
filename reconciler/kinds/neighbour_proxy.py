# SPDX-License-Identifier: Apache-2.0
"""IPv6 VIPs, and sources of fullnat, inside a network of the balancer: the machines of that network ask for their MAC
by neighbour discovery. So they do, by ARP as well, for the address that checks through VIPs come from.

By itself the kernel answers such a question only for addresses of the interface that the question came in by. These
VIPs are on the loopback, so lbctl has the kernel answer for them, too. (By ARP it answers for all its addresses.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import ClassVar

from reconciler.kernel import objects
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.indexes import flaw_of
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.prober import PROBER_KEY
from reconciler.kinds.sysctl import Sysctl, proxy_setting
from reconciler.model import Address, Mode, Service
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import Facts, NodeView, sources_of


@dataclass(frozen=True, slots=True)
class NeighbourProxy(Resource):
    kind: ClassVar[str] = "neighbour-proxy"
    announces: ClassVar[bool] = True

    address: Address
    interface: str
    is_prober: bool = field(default=False, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.address} {self.interface}"

    @property
    def flaw(self) -> str:
        return flaw_of(self.interface)

    @property
    def needs(self) -> tuple[Key, ...]:
        setting = (Key(Sysctl.kind, proxy_setting(self.interface)),) if self.address.version == 6 else ()
        return PROBER_KEY if self.is_prober else Key(LoopbackVip.kind, str(self.address)), *setting

    def describe(self) -> dict[str, str]:
        return {"neighbour discovery" if self.address.version == 6 else "ARP": "answered"}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else f"machines on {self.interface} no longer find this address"


class NeighbourProxyKind(Kind):
    phase = 75  # after the VIP itself: the answers bring packets here
    resource = NeighbourProxy

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        for address, interface in view.prober_on_link:
            yield NeighbourProxy(address, interface, True), view.node.span

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        sources = sources_of(facts.node, service) if service.mode is Mode.FULLNAT else ()
        for address in (*service.vips, *sources):
            for interface in facts.on_link(address) if address.version == 6 else ():
                yield NeighbourProxy(address, interface), service.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        ours, others = self.kernel.neighbour_proxies()
        names = {key.id for key in wanted}
        found = [NeighbourProxy(ip_address(proxy.address), proxy.interface) for proxy in (*ours, *others)]
        return Reading((*found[: len(ours)], *(proxy for proxy in found[len(ours) :] if proxy.id in names)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts, gone = [c for c in changes if c.after], [c for c in changes if c.after is None]
        outcomes = list(zip(puts, self.kernel.add_neighbour_proxies([_entry(c.key) for c in puts]), strict=True))
        outcomes += zip(gone, self.kernel.remove_neighbour_proxies([_entry(c.key) for c in gone]), strict=True)
        return each(changes, outcomes)


def _entry(key: Key) -> objects.Neighbour:
    address, _, interface = key.id.partition(" ")
    return objects.Neighbour(address, interface)


KIND = NeighbourProxyKind
