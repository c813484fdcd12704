# SPDX-License-Identifier: Apache-2.0
"""What the routing daemon FRR needs to know, and what it doesn't tell."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.rule import Finding, rule, title
from reconciler.model import Node, Role, VipBinding
from reconciler.peers import router_id


@rule("bgp-router-id", Node)
def _bgp_router_id(node: Node) -> Iterator[Finding]:
    """A Node with `bgp` has no router ID, and no IPv4 address that could be one.

    Neighbours tell each other apart by a number of 32 bits, whatever their sessions run over (RFC 6286).

    The way out: `routerId`, any IPv4 address that no other machine uses for this, or an IPv4 address among the
    `addresses` of its interfaces.
    """
    if node.bgp and router_id(node) is None:
        yield Finding(node.span, ("spec", "bgp"), f"{title(node)} has no router ID", "declare one: `routerId`")


@rule("vip-routes-and-bgp", Node)
def _vip_routes_and_bgp(node: Node) -> Iterator[Finding]:
    """A router has both `vipRoutes` and `bgp`.

    Routes that a daemon learns go before those of lbctl, which would be of use only as long as no balancer announces
    the VIP: and then none should get its packets.

    The way out: one of them.
    """
    if node.bgp and node.vip_routes:
        message = f"{title(node)} learns its routes by BGP"
        yield Finding(node.span, ("spec", "vipRoutes"), message, "remove one of them")


@rule("bgp-vip-as-address", Node, Severity.WARNING)
def _bgp_vip_as_address(node: Node) -> Iterator[Finding]:
    """A balancer with `bgp` has its VIPs as addresses on the loopback (`vipBinding: address`).

    FRR takes each address for a network that the machine is attached to, prefers that to the route by which the VIP
    is announced, and redistributes only what it prefers: no router ever hears of the VIP.

    The way out: `vipBinding: route`, the default.
    """
    if node.role is Role.BALANCER and node.bgp and node.announce and node.vip_binding is VipBinding.ADDRESS:
        message = f"FRR on {title(node)} announces no VIP that is an address"
        yield Finding(node.span, ("spec", "vipBinding"), message, "use route, the default")
