# SPDX-License-Identifier: Apache-2.0
"""Tell the machines of a network that a VIP in it is here now: they may still know the MAC of its former node.

By ARP (RFC 5227, section 2.3) for IPv4, by neighbour advertisements (RFC 4861, section 7.2.6) for IPv6. Frames leave
by each interface with a network that contains the VIP; for an IPv6 VIP the kernel must answer for it there as well.
Works on the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

from reconciler.kernel import netlink, proxies
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.rtnetlink import ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, LINK, RTM_GETADDR, RTM_GETLINK

_ROUNDS = 3
_GAP_S = 0.1
_READY_WAIT_S = 5.0
"""How long a link may take to come up again: drivers may reset it when a program is attached."""

_UP, _SILENT, _RUNNING = 0x1, 0x8 | 0x80, 0x40  # IFF_UP, IFF_LOOPBACK | IFF_NOARP, IFF_RUNNING
_ARP, _IPV6 = 0x0806, 0x86DD
_BROADCAST, _ALL_NODES_MAC = b"\xff" * 6, bytes.fromhex("333300000001")
_ALL_NODES = IPv6Address("ff02::1")
_ICMPV6, _ADVERTISEMENT, _OVERRIDE, _TARGET_MAC = 58, 136, 0x2000_0000, 2


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    mac: bytes
    is_running: bool


def announce(vips: Collection[str], mark: int = PROTOCOL) -> None:
    """Announce these VIPs a few times. OSError if the kernel refuses, but not for an interface that went away."""
    frames = list(_frames(vips, mark))
    if not frames:
        return
    _await_links({name for name, _ in frames})
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        for number in range(_ROUNDS):
            time.sleep(_GAP_S if number else 0)
            for name, frame in frames:
                with contextlib.suppress(OSError):
                    sock.sendto(frame, (name, 0))


def arp(mac: bytes, vip: IPv4Address) -> bytes:
    """A broadcast frame that says which MAC an IPv4 address has."""
    header = struct.pack("!6s6sHHHBBH", _BROADCAST, mac, _ARP, 1, 0x0800, 6, 4, 1)
    return header + mac + vip.packed + bytes(6) + vip.packed


def advertisement(mac: bytes, vip: IPv6Address) -> bytes:
    """A multicast frame that says which MAC an IPv6 address has."""
    body = struct.pack("!I16sBB6s", _OVERRIDE, vip.packed, _TARGET_MAC, 1, mac)
    message = struct.pack("!BBH", _ADVERTISEMENT, 0, 0) + body
    pseudo = vip.packed + _ALL_NODES.packed + struct.pack("!II", len(message), _ICMPV6)
    message = struct.pack("!BBH", _ADVERTISEMENT, 0, _checksum(pseudo + message)) + body
    header = struct.pack("!6s6sHIHBB", _ALL_NODES_MAC, mac, _IPV6, 6 << 28, len(message), _ICMPV6, 255)
    return header + vip.packed + _ALL_NODES.packed + message


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _frames(vips: Collection[str], mark: int) -> Iterator[tuple[str, bytes]]:
    """The interface that each frame leaves by, and the frame."""
    links = _links()
    wanted = {ip_address(vip) for vip in vips}
    ipv4 = sorted(vip for vip in wanted if isinstance(vip, IPv4Address))
    with netlink.route() as route:
        answers = route.dump(RTM_GETADDR, ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)) if ipv4 else []
    near = set()
    for answer in answers:
        _, bits, _, _, index = ADDRESS.unpack_from(answer)
        found = netlink.attributes(answer[ADDRESS.size :])
        if index in links and IFA_LOCAL in found:
            network = ip_interface((found[IFA_LOCAL], bits)).network
            near |= {(index, vip) for vip in ipv4 if vip in network}
    yield from ((links[index].name, arp(links[index].mac, vip)) for index, vip in sorted(near))
    macs = {link.name: link.mac for link in links.values()}
    for proxy in sorted(proxies.read(mark)[0]) if wanted - set(ipv4) else []:
        vip = IPv6Address(proxy.address)
        if vip in wanted and proxy.interface in macs:
            yield proxy.interface, advertisement(macs[proxy.interface], vip)


def _links() -> dict[int, _Link]:
    """The Ethernet interfaces that are up, by number."""
    links = {}
    with netlink.route() as route:
        for answer in route.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0)):
            _, _, index, flags, _ = LINK.unpack_from(answer)
            found = netlink.attributes(answer[LINK.size :])
            mac = found.get(IFLA_ADDRESS, b"")
            if flags & _UP and not flags & _SILENT and len(mac) == 6:
                links[index] = _Link(netlink.text(found[IFLA_IFNAME]), mac, bool(flags & _RUNNING))
    return links


def _await_links(names: Collection[str]) -> None:
    """Wait up to a few seconds for links that are not running."""
    deadline = time.monotonic() + _READY_WAIT_S
    while any(link.name in names and not link.is_running for link in _links().values()):
        if time.monotonic() > deadline:
            return
        time.sleep(_GAP_S)
