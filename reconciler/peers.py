# SPDX-License-Identifier: Apache-2.0
"""Who speaks BGP with whom: balancers and routers with a network of IPv4 in common, and what Nodes name besides."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from reconciler.model import Fleet, Node, Role

PREFIXES = "lbctl-vips"
"""The name of the list of VIPs in the routing daemon."""


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A neighbour of a node. `is_balancer`: VIPs come from there; else VIPs are told there."""

    address: IPv4Address
    asn: int
    is_balancer: bool = False


def peers_of(node: Node, fleet: Fleet) -> tuple[Peer, ...]:
    """The neighbours of a node, sorted; none if its routing daemon is not ours to configure."""
    if node.bgp is None:
        return ()
    found = {peer.address: Peer(peer.address, peer.asn) for peer in node.bgp.neighbors}
    for other in fleet.nodes:
        if other.bgp is None or {node.role, other.role} != {Role.BALANCER, Role.ROUTER}:
            continue
        address = _address(other, node)
        if address is not None:
            found[address] = Peer(address, other.bgp.asn, other.role is Role.BALANCER)
    return tuple(sorted(found.values()))


def router_id(node: Node) -> IPv4Address | None:
    """What neighbours tell a node apart by; None if neither that nor an IPv4 address is declared."""
    own = (a.ip for face in node.interfaces for a in face.addresses if isinstance(a.ip, IPv4Address))
    return (node.bgp and node.bgp.router_id) or next(own, None)


def _address(of: Node, seen_from: Node) -> IPv4Address | None:
    """The address of a node in a network of another one."""
    networks = {a.network for face in seen_from.interfaces for a in face.addresses}
    own = (a for face in of.interfaces for a in face.addresses)
    return next((a.ip for a in own if a.network in networks and isinstance(a.ip, IPv4Address)), None)
