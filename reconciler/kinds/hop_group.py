# SPDX-License-Identifier: Apache-2.0
"""The balancers that a router sends VIPs to, where no routing daemon does that: a resilient group of next hops for all
VIPs that the same balancers carry. One that goes takes its own flows along, and no other one.

A balancer that doesn't answer ARP or neighbour discovery is left out, unless none does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import ClassVar

from reconciler.kernel.objects import HopGroup as KernelGroup
from reconciler.kernel.objects import Neighbour
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.interface import THIS_NODE, interface_key
from reconciler.model import Address, Role, Service
from reconciler.peers import Hop
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.view import NodeView

_FIRST = 0x40000000
"""Groups have numbers from here on."""
_UNKNOWN = "number "
_MOST_BUCKETS, _MOST_IDLE_S = 32_768, 86_400
_NAME = re.compile(r"ipv[46] [\w=,./ -]+|number \d+")


@dataclass(frozen=True, slots=True)
class HopGroup(Resource):
    """`name` is the family and what its services select balancers by; `hops` are addresses, each with the interface
    that leads there, sorted. `silent` are those left out."""

    kind: ClassVar[str] = "hop-group"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("interface",))

    name: str
    hops: tuple[tuple[str, str], ...]
    buckets: int
    idle_s: int
    silent: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.name

    @property
    def number(self) -> int:
        """What the kernel and routes know it by. A group can't get other numbers of buckets: then it is another."""
        if self.name.startswith(_UNKNOWN):
            return int(self.name.removeprefix(_UNKNOWN))
        digest = hashlib.blake2b(f"{self.name} {self.buckets}".encode(), digest_size=4).digest()
        return _FIRST | int.from_bytes(digest) % _FIRST

    @property
    def needs(self) -> tuple[Key, ...]:
        return (THIS_NODE, *(interface_key(name) for name in sorted({name for _, name in self.hops})))

    @property
    def flaw(self) -> str:
        try:
            addresses = [ip_address(address) for address, _ in self.hops]
        except ValueError as error:
            return str(error)
        is_sound = addresses and 1 <= self.buckets <= _MOST_BUCKETS and 1 <= self.idle_s <= _MOST_IDLE_S
        return "" if is_sound and _NAME.fullmatch(self.name) else f"group {self.name!r} of {len(addresses)} hops"

    def describe(self) -> dict[str, str]:
        members = {address: f"by {interface}" for address, interface in self.hops}
        return members | {"buckets": str(self.buckets), "idle": f"{self.idle_s} s"}

    def effect(self, after: Resource | None, context: Context) -> str:
        if not isinstance(after, HopGroup):
            return ""
        gone = sorted({address for address, _ in self.hops} - {address for address, _ in after.hops})
        return f"flows of {', '.join(gone)} move to the other balancers; all others stay" if gone else ""


class HopGroupKind(Kind):
    phase = 77
    roles = (Role.ROUTER,)
    resource = HopGroup

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        return ((group, view.node.places.get("vipRoutes", view.node.span)) for group in groups_of(view).values())

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held = self.kernel.hop_groups()
        known = {group.number: group for group in wanted.values() if isinstance(group, HopGroup)}
        plain = any(not group.buckets for group in held) and not self.kernel.has_resilient_groups()
        found = []
        for group in held:
            like = known.get(group.number) or HopGroup(f"{_UNKNOWN}{group.number}", (), 1, 1)
            sizes = (like.buckets, like.idle_s) if plain else (group.buckets, group.idle_s)
            hops = tuple((hop.address, hop.interface) for hop in group.hops)
            found.append(HopGroup(like.name, hops, *sizes))
        others = {} if self.kernel.adopts else self.kernel.foreign_hop_groups(list(map(_of_kernel, known.values())))
        return Reading(tuple(found), {known[number].key: text for number, text in others.items()})

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """Balancers that are left out, and kernels without resilient groups."""
        groups = [group for group in wanted if isinstance(group, HopGroup)]
        for group in groups:
            if group.silent:
                text = f"no VIP goes to {', '.join(group.silent)}, which does not answer on its network"
                yield Concern(group.key, text, "it gets VIPs again once it answers; lbctl run keeps looking")
        if groups and not self.kernel.has_resilient_groups():
            text = "this kernel has no resilient groups of next hops: each balancer that goes moves others' flows"
            yield Concern(groups[0].key, text, "Linux 5.13 has them")

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [(c, _of_kernel(c.after)) for c in changes if isinstance(c.after, HopGroup)]
        gone = [(c, c.before.number) for c in changes if c.after is None and isinstance(c.before, HopGroup)]
        outcomes = list(zip((c for c, _ in puts), self.kernel.put_hop_groups([g for _, g in puts]), strict=True))
        removed = self.kernel.remove_hop_groups([number for _, number in gone])
        outcomes += zip((c for c, _ in gone), removed, strict=True)
        return each(changes, outcomes)


def groups_of(view: NodeView) -> dict[Address, HopGroup]:
    """The group of each VIP that this router sends to balancers."""
    settings = view.node.vip_routes
    if settings is None:
        return {}
    claims: dict[Address, list[Service]] = {}
    for service in view.services:
        for vip in service.vips:
            claims.setdefault(vip, []).append(service)
    made: dict[str, HopGroup | None] = {}
    found: dict[Address, HopGroup] = {}
    for vip, services in claims.items():
        name = f"ipv{vip.version} {_selected(services)}"
        if name not in made:
            hops = [hop for hop in view.hops if hop.address.version == vip.version
                    and any(service.runs_on(hop.node) for service in services)]  # fmt: skip
            group = HopGroup(name, (), settings.buckets, settings.idle_s)
            made[name] = _with(group, hops, view.silent_gateways) if hops else None
        if (known := made[name]) is not None:
            found[vip] = known
    return found


def _selected(services: Iterable[Service]) -> str:
    texts = {",".join(f"{key}={value}" for key, value in service.node_selector) or "all" for service in services}
    return "all" if "all" in texts else " ".join(sorted(texts))


def _with(group: HopGroup, hops: Sequence[Hop], silent: Collection[str]) -> HopGroup:
    answering = [hop for hop in hops if str(hop.address) not in silent] or hops
    left_out = tuple(f"{hop.node.name} ({hop.address})" for hop in hops if hop not in answering)
    return replace(group, hops=tuple(sorted(_pairs(answering))), silent=left_out)


def _pairs(hops: Iterable[Hop]) -> Iterator[tuple[str, str]]:
    return ((str(hop.address), hop.interface) for hop in hops)


def _of_kernel(group: HopGroup) -> KernelGroup:
    hops = tuple(Neighbour(address, interface) for address, interface in group.hops)
    return KernelGroup(group.number, hops, group.buckets, group.idle_s)


KIND = HopGroupKind
