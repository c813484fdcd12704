# SPDX-License-Identifier: Apache-2.0
"""A router in front of balancers: the ways that it has to each VIP, and whether all balancers announce it. Its
settings are part of its plan."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.doctor.finding import Finding
from reconciler.kernel.port import Kernel
from reconciler.model import Fleet, Node
from reconciler.safe import some
from reconciler.view import NodeView

MOST = 1_000
"""So many VIPs are asked about."""


def of_router(fleet: Fleet, view: NodeView, kernel: Kernel) -> Iterator[Finding]:
    yield from _of_routes(fleet, kernel)
    yield from _of_announcements(fleet, view, kernel)


def _of_announcements(fleet: Fleet, view: NodeView, kernel: Kernel) -> Iterator[Finding]:
    """VIPs of which not all balancers tell that carry them."""
    peers = {str(peer.address) for peer in view.peers if peer.is_balancer}
    balancers = {node.name: node for node in fleet.nodes if peers.intersection(_addresses(node))}
    names = {address: name for name, node in balancers.items() for address in _addresses(node)}
    vips = {str(vip): service for service in view.services for vip in service.vips}
    hops = kernel.hops_to(list(vips)[:MOST]) if names else {}
    for vip, found in sorted(hops.items()):
        carriers = {name for name, node in balancers.items() if vips[vip].runs_on(node)}
        heard = {names.get(address, "") for address in found}
        # Who is behind a link-local address, no manifest says.
        if found and "" not in heard and (silent := sorted(carriers - heard)):
            own = {name: next(a for a in _addresses(balancers[name]) if a in peers) for name in silent}
            who = some([f"{name} ({address})" for name, address in own.items()])
            yield Finding(
                "announced-otherwise", f"{some(sorted(found))} announces the VIP {vip}, and not {who}",
                "all its traffic goes to the balancers that announce it, and nothing to the others",
                "lbctl get announcements on those: it is drained there, or something that it needs is missing",
                vips[vip].span,
            )  # fmt: skip


def _addresses(node: Node) -> Iterator[str]:
    return (str(own.ip) for face in node.interfaces for own in face.addresses)


def _of_routes(fleet: Fleet, kernel: Kernel) -> Iterator[Finding]:
    spans = {str(vip): service.span for service in fleet.services for vip in service.vips}
    ways = kernel.ways(list(spans)) if spans else {}
    for vip in sorted(vip for vip, interface in ways.items() if not interface):
        yield Finding(
            "vip-unrouted", f"the router has no route to the VIP {vip}", "clients behind it do not reach the VIP",
            "announce it from the balancers (`announce` of their Nodes), or make a static route", spans[vip],
        )  # fmt: skip
