# SPDX-License-Identifier: Apache-2.0
"""The ways from a node: to its endpoints and gateways, back to clients, and who else answers for its VIPs.

Packets are sent: echo requests to endpoints and gateways, and questions by ARP. What answers no echo request is not
blamed for that, since many machines don't. Addresses are taken in order, and no more than `MAX_ASKED` of each sort.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, ip_address

from reconciler.doctor.finding import Finding
from reconciler.kernel import arp_probe, echo
from reconciler.kernel.netns import enter
from reconciler.kernel.next_hop import is_silent
from reconciler.kernel.port import Kernel
from reconciler.model import Address, EndpointState, Mode, Role
from reconciler.resource import Span
from reconciler.view import Facts, NodeView

MAX_ASKED = 64
SMALL_BYTES = 100
TRIES = 3
"""How often each is asked before it counts as silent."""
CLIENT_MTU_BYTES = 1500
_NO_LINK = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)
_OUTER_BYTES = {4: 20, 6: 40}
_ELSEWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Addresses that no network has (RFC 5737, RFC 3849): the way to them is the way to clients that are far away."""


def of_ways(view: NodeView, kernel: Kernel, netns: str) -> Iterator[Finding]:
    """`netns` is the name of the network namespace that the calling thread entered; empty: none."""
    if view.node.role is Role.BALANCER:
        yield from _of_neighbours(view, netns)
        yield from _of_arp(view)
    yield from _of_way_back(view, kernel)


def _of_neighbours(view: NodeView, netns: str) -> Iterator[Finding]:
    tunnelled = {service.pool for service in view.tunnelled}
    targets: dict[Address, tuple[Span, int]] = {}
    for name, pool in view.pools.items():
        for endpoint in pool.endpoints:
            if endpoint.state is not EndpointState.DISABLED:
                outer = _OUTER_BYTES[endpoint.address.version] if name in tunnelled else 0
                span, former = targets.get(endpoint.address, (endpoint.span, 0))
                targets[endpoint.address] = span, max(former, outer)
    asked = dict(sorted(targets.items(), key=lambda item: (item[0].version, int(item[0])))[:MAX_ASKED])
    gateways = {face.gateway: (face.span, 0) for face in view.node.interfaces if face.gateway}
    asked |= {g: about for g, about in gateways.items() if not g.is_link_local}
    with ThreadPoolExecutor(max_workers=16, initializer=_enter, initargs=(netns,)) as threads:
        found = threads.map(lambda item: _of_neighbour(item[0], *item[1]), asked.items())
        yield from (finding for finding in found if finding)


def _enter(netns: str) -> None:
    if netns:
        enter(netns)


def _of_neighbour(address: Address, span: Span, outer_bytes: int) -> Finding | None:
    if not echo.answers(address, SMALL_BYTES, TRIES):
        if not is_silent(address):
            return None
        how = "ARP" if address.version == 4 else "neighbour discovery"
        return Finding(
            "neighbour-unresolved", f"{address}, or the router on the way to it, does not answer {how}",
            "packets for it wait for its MAC and are then lost",
            "look at its interface, its address, the VLAN, the cable", span,
        )  # fmt: skip
    size_bytes = CLIENT_MTU_BYTES + outer_bytes
    if not outer_bytes or echo.answers(address, size_bytes, TRIES):
        return None
    return Finding(
        "mtu", f"{address} answers small packets, but none of {size_bytes} bytes",
        f"a client's full packet ({CLIENT_MTU_BYTES} bytes) does not fit into a tunnel to it: connections open, and "
        "hang with the first full packet unless the client heeds ICMP",
        f"raise the MTU of every network on the way to {size_bytes} bytes, or lower that of clients", span,
    )  # fmt: skip


def _of_arp(view: NodeView) -> Iterator[Finding]:
    facts = Facts(view.node)
    spans = {vip: service.span for service in view.services for vip in service.vips}
    asked: dict[str, list[IPv4Address]] = {}
    for vip in sorted(vip for vip in spans if isinstance(vip, IPv4Address)):
        for interface in facts.on_link(vip):
            asked.setdefault(interface, []).append(vip)
    for interface, vips in asked.items():
        try:
            holders = arp_probe.holders(interface, vips[:MAX_ASKED])
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            continue  # the plan says so
        for vip, macs in holders.items():
            yield Finding(
                "arp-conflict", f"on {interface}, {' and '.join(sorted(macs))} answers ARP for the VIP {vip}, too",
                "part of the clients send to that machine, past this balancer",
                "if it is an endpoint: lbctl apply there, which sets arp_ignore; else take the address off it",
                spans[vip],
            )  # fmt: skip


def _of_way_back(view: NodeView, kernel: Kernel) -> Iterator[Finding]:
    """An endpoint, and a balancer that gets replies, need a way to clients of each family of their VIPs."""
    answered = [s for s in view.services if view.node.role is Role.ENDPOINT or s.mode in (Mode.NAT, Mode.FULLNAT)]
    spans: dict[int, Span] = {}
    for service in answered:
        for vip in service.vips:
            spans.setdefault(vip.version, service.span)
    if any(face.gateway for face in view.node.interfaces) and view.node.role is Role.BALANCER:
        return
    ways = kernel.ways([_ELSEWHERE[version] for version in spans])
    for address in _without_way(ways):
        version = ip_address(address).version
        yield Finding(
            "no-way-back", f"no route leads to clients of IPv{version} outside the machine's own networks",
            "replies to them are dropped: connections time out, though requests arrive",
            f"ip {'-6 ' if version == 6 else ''}route add default via …", spans[version],
        )  # fmt: skip


def _without_way(ways: dict[str, str]) -> Iterable[str]:
    return sorted(address for address, interface in ways.items() if not interface)
