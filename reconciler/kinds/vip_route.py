# SPDX-License-Identifier: Apache-2.0
"""A router's own routes to VIPs, where no routing daemon makes them: each leads to a group of balancers. Every other
route to the same VIP goes first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import ClassVar

from reconciler.kernel.objects import Route
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.hop_group import HopGroup, groups_of
from reconciler.kinds.interface import THIS_NODE
from reconciler.model import Address, Role
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView


@dataclass(frozen=True, slots=True)
class VipRoute(Resource):
    """`number` is that of the group, `group` its name, where it is known."""

    kind: ClassVar[str] = "vip-route"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("interface", "hop-group"))

    address: Address
    number: int
    group: str = field(default="", compare=False, repr=False)

    @property
    def id(self) -> str:
        return str(self.address)

    @property
    def flaw(self) -> str:
        return "" if self.number > 0 else f"group {self.number}"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (Key(HopGroup.kind, self.group),) if self.group else (THIS_NODE,)

    def describe(self) -> dict[str, str]:
        return {"to": f"group {self.group or self.number}"}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "this router has no way to the VIP any more"


class VipRouteKind(Kind):
    phase = 78
    roles = (Role.ROUTER,)
    resource = VipRoute

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        spans = {vip: service.span for service in reversed(view.services) for vip in service.vips}
        for vip, group in groups_of(view).items():
            yield VipRoute(vip, group.number, group.name), spans[vip]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = [route for route in self.kernel.routes() if route.group]
        singles = [(ip_network(route.to), route.group) for route in held]
        return Reading(tuple(
            VipRoute(network.network_address, number) for network, number in singles if network.num_addresses == 1
        ))  # fmt: skip

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(c, _route(c.key, c.after.number)) for c in changes if isinstance(c.after, VipRoute)]
        gone = [(c, _route(c.key, c.before.number)) for c in changes if not c.after and isinstance(c.before, VipRoute)]
        outcomes = list(zip((c for c, _ in puts), self.kernel.add_routes([r for _, r in puts]), strict=True))
        outcomes += zip((c for c, _ in gone), self.kernel.remove_routes([r for _, r in gone]), strict=True)
        return each(changes, outcomes)


def _route(key: Key, group: int) -> Route:
    vip = ip_address(key.id)
    return Route(f"{vip}/{vip.max_prefixlen}", group=group)


KIND = VipRouteKind
