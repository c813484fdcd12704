# SPDX-License-Identifier: Apache-2.0
"""A router: its kernel's settings, and whether it knows a way to each VIP. lbctl writes nothing there."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.doctor.finding import Finding
from reconciler.kernel.port import Kernel
from reconciler.model import Fleet, Node

_HASH = "net/ipv4/fib_multipath_hash_policy"
_FORWARD = "net/ipv4/ip_forward"
_REDIRECTS = "net/ipv4/conf/{}/send_redirects"


def of_router(fleet: Fleet, node: Node, kernel: Kernel) -> Iterator[Finding]:
    if kernel.read_sysctl(_FORWARD) == "0":
        yield Finding(
            "forwarding", f"{_FORWARD} is 0", "the router forwards nothing", f"sysctl -w {_FORWARD}=1", node.span
        )
    if (node.multipath or 1) > 1 and (policy := kernel.read_sysctl(_HASH)) in ("0", "2"):
        yield Finding(
            "ecmp-hash", f"{_HASH} is {policy}, which asks for addresses only",
            "all connections of one client go to one balancer; behind a proxy or NAT, all clients are one",
            f"sysctl -w {_HASH}=1", node.places.get("multipath", node.span),
        )  # fmt: skip
    for name in ("all", *(face.name for face in node.interfaces)):
        if kernel.read_sysctl(_REDIRECTS.format(name)) == "1":
            yield Finding(
                "send-redirects", f"{_REDIRECTS.format(name)} is 1 (the one of `all` counts everywhere)",
                "where clients and balancers share a segment, clients are told to go to one balancer and keep to it",
                f"sysctl -w {_REDIRECTS.format(name)}=0", node.span,
            )  # fmt: skip
    spans = {str(vip): service.span for service in fleet.services for vip in service.vips}
    ways = kernel.ways(list(spans)) if spans else {}
    for vip in sorted(vip for vip, interface in ways.items() if not interface):
        yield Finding(
            "vip-unrouted", f"the router has no route to the VIP {vip}", "clients behind it do not reach the VIP",
            "announce it from the balancers (`announce` of their Nodes), or make a static route", spans[vip],
        )  # fmt: skip
