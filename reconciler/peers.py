# SPDX-License-Identifier: Apache-2.0
"""Who speaks BGP with whom: balancers and routers with a network in common, and what Nodes name besides. Which
balancers a router reaches that does without.

A session over IPv4 is about IPv4 VIPs, one over IPv6 about IPv6 VIPs: two machines with networks of both in common
have two sessions. With `multiprotocol`, those over IPv4 are about both (RFC 4760).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from reconciler.model import Address, Fleet, Node, Role

PREFIXES = "lbctl-vips"
"""The name of the lists of VIPs in the routing daemon, one of a family."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A neighbour of a node. `is_balancer`: VIPs come from there; else VIPs are told there."""

    address: Address
    asn: int
    is_balancer: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """A balancer, as a router reaches it: by one of its addresses, behind an interface of the router."""

    node: Node
    address: Address
    interface: str


def hops_of(router: Node, fleet: Fleet) -> tuple[Hop, ...]:
    """The balancers that a router with routes of its own has a network in common with, by family."""
    if router.vip_routes is None:
        return ()
    faces = {own.network: face.name for face in router.interfaces for own in face.addresses}
    return tuple(
        Hop(node, address, next(name for network, name in faces.items() if address in network))
        for node in fleet.nodes if node.role is Role.BALANCER for address in _addresses(node, router).values()
    )  # fmt: skip


def peers_of(node: Node, fleet: Fleet) -> tuple[Peer, ...]:
    """The neighbours of a node, sorted; none if its routing daemon is not ours to configure."""
    if node.bgp is None:
        return ()
    found: dict[Address, Peer] = {peer.address: Peer(peer.address, peer.asn) for peer in node.bgp.neighbors}
    for other in fleet.nodes:
        if other.bgp is None or {node.role, other.role} != {Role.BALANCER, Role.ROUTER}:
            continue
        shared = _addresses(other, node)
        # One session is enough where it is about both families.
        if node.bgp.multiprotocol and 4 in shared:
            shared.pop(6, None)
        for address in shared.values():
            found[address] = Peer(address, other.bgp.asn, other.role is Role.BALANCER)
    return tuple(sorted(found.values(), key=lambda peer: (peer.address.version, peer.address)))


def router_id(node: Node) -> IPv4Address | None:
    """What neighbours tell a node apart by; None if neither that nor an IPv4 address is declared."""
    own = (a.ip for face in node.interfaces for a in face.addresses if isinstance(a.ip, IPv4Address))
    return (node.bgp and node.bgp.router_id) or next(own, None)


def _addresses(of: Node, seen_from: Node) -> dict[int, Address]:
    """The address of a node in a network of another one, by family."""
    networks = {a.network for face in seen_from.interfaces for a in face.addresses}
    found: dict[int, Address] = {}
    for own in (a for face in of.interfaces for a in face.addresses if a.network in networks):
        found.setdefault(own.version, own.ip)
    return found
