# SPDX-License-Identifier: Apache-2.0
"""Whether the node has a way to an address at all, and whether the next hop answers ARP or neighbour discovery. Works
on the network namespace of the calling thread. Layouts: include/uapi/linux/rtnetlink.h, neighbour.h, if.h."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from reconciler.kernel import netlink
from reconciler.kernel.rtnetlink import (
    IFF_LOWER_UP,
    IFLA_IFNAME,
    LINK,
    NDA_DST,
    NEIGHBOUR,
    NUD_FAILED,
    NUD_INCOMPLETE,
    NUMBER,
    ROUTE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MARK,
    RTA_OIF,
    RTA_VIA,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
)


def is_silent(address: IPv4Address | IPv6Address, mark: int = 0) -> bool:
    """Whether the kernel asks the next hop for its MAC address in vain. False if that is not known: before the first
    packet, on links without neighbours, without a route."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    wanted = netlink.attribute(RTA_DST, address.packed)
    wanted += netlink.attribute(RTA_MARK, NUMBER.pack(mark)) if mark else b""
    try:
        with netlink.route() as route:
            answer = route.get(RTM_GETROUTE, ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + wanted)
            found = netlink.attributes(answer[ROUTE.size :])
            if RTA_OIF not in found:
                return False
            (index,) = NUMBER.unpack(found[RTA_OIF])
            hop = found.get(RTA_GATEWAY, address.packed)
            if RTA_VIA in found:  # an IPv4 route by an IPv6 gateway: family, address
                family, hop = struct.unpack_from("=H", found[RTA_VIA])[0], found[RTA_VIA][2:]
            body = NEIGHBOUR.pack(family, index, 0, 0, 0) + netlink.attribute(NDA_DST, hop)
            answer = route.get(RTM_GETNEIGH, body)
    except OSError:
        return False
    _, _, state, _, _ = NEIGHBOUR.unpack_from(answer)
    return bool(state & (NUD_INCOMPLETE | NUD_FAILED))


def lack_of_way(address: IPv4Address | IPv6Address) -> str:
    """What of this node keeps packets from an address: there is no route, or the interface has no carrier, as its
    cable is unplugged; in words, empty if nothing does."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    wanted = ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    wanted += netlink.attribute(RTA_DST, address.packed)
    try:
        with netlink.route() as route:
            try:
                answer = route.get(RTM_GETROUTE, wanted)
            except OSError as error:
                return "this node has no route to it" if error.errno == errno.ENETUNREACH else ""
            found = netlink.attributes(answer[ROUTE.size :])
            if RTA_OIF not in found:
                return ""
            (index,) = NUMBER.unpack(found[RTA_OIF])
            answer = route.get(RTM_GETLINK, LINK.pack(0, 0, index, 0, 0))
    except OSError:
        return ""
    if LINK.unpack_from(answer)[3] & IFF_LOWER_UP:
        return ""
    name = netlink.text(netlink.attributes(answer[LINK.size :]).get(IFLA_IFNAME, b""))
    return f"interface {name} has no carrier"
