# SPDX-License-Identifier: Apache-2.0
"""Neighbours that the kernel keeps fresh: endpoints and gateways on the node's own networks.

The data plane sends to the MAC that the kernel knows, but the kernel does not see these packets and has no reason
to ask for the MAC again. A kernel that can't keep neighbours gets no such entries, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from reconciler.kernel import objects
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.indexes import flaw_of
from reconciler.kinds.interface import interface_key
from reconciler.model import Address, EndpointState, Pool, Role
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import Facts, NodeView, Use

_FRESH = "fresh"
_FADING = "while it answers"


@dataclass(frozen=True, slots=True)
class Neighbour(Resource):
    """The neighbour is reached by `interface`. `kept`: fresh, or only while the neighbour answers."""

    kind: ClassVar[str] = "neighbour"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("interface",))

    address: Address
    interface: str
    kept: str = _FRESH

    @property
    def id(self) -> str:
        return f"{self.address} {self.interface}"

    @property
    def flaw(self) -> str:
        return flaw_of(self.interface) or ("" if self.kept == _FRESH else f"kept {self.kept}")

    @property
    def needs(self) -> tuple[Key, ...]:
        return (interface_key(self.interface),)

    def describe(self) -> dict[str, str]:
        return {"kept": self.kept}


class NeighbourKind(Kind):
    phase = 25  # after the program is attached: many drivers reset the link then, and neighbours are lost
    roles = (Role.BALANCER, Role.ROUTER)
    resource = Neighbour

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        # The kernel asks them again and again, so that it is known whether they are there.
        for hop in view.hops:
            yield Neighbour(hop.address, hop.interface), view.node.span
        for face in view.faces if view.node.role is Role.BALANCER else ():
            if face.gateway:
                yield Neighbour(face.gateway, face.name), face.span

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        for endpoint in facts.on_links(pool.endpoints):
            if endpoint.state is not EndpointState.DISABLED and endpoint.address not in facts.own:
                yield Neighbour(endpoint.address, facts.on_link(endpoint.address)[0]), endpoint.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        if not self.kernel.keeps_neighbours():
            return Reading(tuple(_decode(key.id) for key in wanted))
        ours, others = self.kernel.neighbours()
        names = {key.id for key in wanted}
        served = {_name(entry) for entry in others} & names
        routers = {_name(entry) for entry in self.kernel.next_hops()} - names  # these belong to `routers`
        return Reading((
            *(
                Neighbour(ip_address(entry.address), entry.interface, _FRESH if entry.is_lasting else _FADING)
                for entry in ours if _name(entry) not in routers
            ),
            *map(_decode, sorted(served)),
        ))  # fmt: skip

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts, gone = [c for c in changes if c.after], [c for c in changes if c.after is None]
        outcomes = list(zip(puts, self.kernel.keep_neighbours([_entry(c.key) for c in puts]), strict=True))
        outcomes += zip(gone, self.kernel.forget_neighbours([_entry(c.key) for c in gone]), strict=True)
        return each(changes, outcomes)


def _decode(id: str) -> Neighbour:
    address, _, interface = id.partition(" ")
    return Neighbour(ip_address(address), interface)


def _name(entry: objects.Neighbour) -> str:
    return f"{entry.address} {entry.interface}"


def _entry(key: Key) -> objects.Neighbour:
    address, _, interface = key.id.partition(" ")
    return objects.Neighbour(address, interface)


KIND = NeighbourKind
