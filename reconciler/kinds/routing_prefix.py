# SPDX-License-Identifier: Apache-2.0
"""The VIPs that BGP may tell or take, each an entry of a list in FRR: nothing that no manifest declares gets through.

A node of role router has an entry for each VIP of the balancers that it may hear of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.routing import ROUTING, configuration
from reconciler.model import Address, Role, Service
from reconciler.peers import PREFIXES
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import Facts, NodeView

_ENTRY = re.compile(rf"(?:ip|ipv6) prefix-list {PREFIXES} seq \d+ permit ([\d.]+(?=/32)|[\da-f:.]+(?=/128))/")


@dataclass(frozen=True, slots=True)
class RoutingPrefix(Resource):
    kind: ClassVar[str] = "routing-prefix"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("routing",))

    address: Address

    @property
    def id(self) -> str:
        return str(self.address)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (ROUTING,)

    def describe(self) -> dict[str, str]:
        return {}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "routers hear of this VIP no more by way of this node"


class RoutingPrefixKind(Kind):
    phase = 76
    roles = (Role.BALANCER, Role.ROUTER)
    resource = RoutingPrefix

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        return _of(view.services) if view.node.role is Role.ROUTER and view.node.bgp else ()

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        return _of([service]) if facts.node.bgp and facts.node.announce else ()

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        text, why = configuration(self.kernel)
        if text is None:
            return Reading(impossible=dict.fromkeys(wanted, why))
        return Reading(tuple(RoutingPrefix(ip_address(match[1])) for match in _ENTRY.finditer(text)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        entries = [_entry(ip_address(change.key.id)) for change in changes]
        lines = [e if c.after else f"no {e}" for c, e in zip(changes, entries, strict=True)]
        try:
            if self.kernel.routing_configuration() is not None:
                self.kernel.load_routing(lines)
        except KernelError as error:
            return [error] * len(changes)
        return [None] * len(changes)


def _of(services: Iterable[Service]) -> Iterable[Wanted]:
    spans = {vip: s.span for s in services for vip in s.vips}
    return ((RoutingPrefix(vip), span) for vip, span in spans.items())


def _entry(vip: Address) -> str:
    word = "ip" if vip.version == 4 else "ipv6"
    return f"{word} prefix-list {PREFIXES} permit {vip}/{vip.max_prefixlen}"


KIND = RoutingPrefixKind
