# SPDX-License-Identifier: Apache-2.0
"""Addresses for which the kernel answers ARP or neighbour solicitations on an interface that doesn't have them.

Our entries carry our protocol number (NDA_PROTOCOL). The kernel answers if the interface forwards and, for IPv6, its
`proxy_ndp` is on; for IPv4, if a route leads to the address by another interface (arp_process() in net/ipv4/arp.c).
Works on the network namespace of the calling thread. Layouts: include/uapi/linux/neighbour.h; what the kernel does for
IPv6: ndisc_recv_ns() in net/ipv6/ndisc.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address

from reconciler.errors import KernelError
from reconciler.kernel import netlink
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.netlink import Message
from reconciler.kernel.port import Neighbour, Outcome

_NEW, _DELETE, _GET = 28, 29, 30
_DST, _PROTOCOL = 1, 12
_PROXY = 0x8
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER = struct.Struct("=BxxxiHBB")  # family, padding, interface, state, flags, type


def read(mark: int = PROTOCOL) -> tuple[list[Neighbour], list[Neighbour]]:
    """Our entries, and those of others. OSError if the kernel refuses."""
    names = dict(socket.if_nameindex())
    ours: list[Neighbour] = []
    others: list[Neighbour] = []
    with netlink.route() as route:
        for answer in (a for f in _FAMILIES.values() for a in route.dump(_GET, _HEADER.pack(f, 0, 0, _PROXY, 0))):
            family, index, _, flags, _ = _HEADER.unpack_from(answer)
            found = netlink.attributes(answer[_HEADER.size :])
            if family in _FAMILIES.values() and flags & _PROXY and index in names:
                proxy = Neighbour(str(ip_address(found[_DST])), names[index])
                (ours if found.get(_PROTOCOL, b"\0")[0] == mark else others).append(proxy)
    return ours, others


def add(proxies: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Have the kernel answer for these; one outcome each. Entries of others are left alone, without an error."""
    _, others = read(mark)
    return _change(_NEW, netlink.CREATE | netlink.REPLACE, proxies, set(proxies) - set(others), mark)


def remove(proxies: Sequence[Neighbour], mark: int = PROTOCOL) -> list[Outcome]:
    """Remove entries; one outcome each. Absent entries and those of others are left alone, without an error."""
    ours, _ = read(mark)
    return _change(_DELETE, 0, proxies, set(proxies) & set(ours), mark)


def _change(
    type_: int, flags: int, proxies: Sequence[Neighbour], chosen: set[Neighbour], mark: int
) -> list[Outcome]:
    outcomes: dict[Neighbour, Outcome] = {}
    messages: dict[Neighbour, Message] = {}
    for proxy in chosen:
        try:
            index = socket.if_nametoindex(proxy.interface)
        except OSError:
            outcomes[proxy] = KernelError(f"there is no interface {proxy.interface}")
            continue
        address = ip_address(proxy.address)
        body = _HEADER.pack(_FAMILIES[address.version], index, 0, _PROXY, 0)
        body += netlink.attribute(_DST, address.packed)
        messages[proxy] = Message(type_, flags, body + netlink.attribute(_PROTOCOL, bytes([mark])))
    with netlink.route() as route:
        for proxy, error in zip(messages, route.change(list(messages.values())), strict=True):
            if error and not (type_ == _DELETE and error.errno == errno.ENOENT):
                outcomes[proxy] = KernelError(
                    f"the kernel can't answer for {proxy.address} on {proxy.interface}: {error.strerror}"
                )
    return [outcomes.get(proxy) for proxy in proxies]
