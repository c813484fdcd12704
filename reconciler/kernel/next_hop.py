# SPDX-License-Identifier: Apache-2.0
"""Whether the node has a way to an address at all, and whether the next hop answers ARP or neighbour discovery. Works
on the network namespace of the calling thread. Layouts: include/uapi/linux/rtnetlink.h, neighbour.h, if.h."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from reconciler.kernel import netlink

_GET_LINK, _GET_ROUTE, _GET_NEIGHBOUR = 18, 26, 30
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFNAME, _LOWER_UP = 3, 0x10000
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MARK, _RTA_VIA = 1, 4, 5, 16, 18
_NDA_DST = 1
_INCOMPLETE, _FAILED = 0x01, 0x20
_ROUTE = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_NUMBER = struct.Struct("=I")


def is_silent(address: IPv4Address | IPv6Address, mark: int = 0) -> bool:
    """Whether the kernel asks the next hop for its MAC address in vain. False if that is not known: before the first
    packet, on links without neighbours, without a route."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    wanted = netlink.attribute(_RTA_DST, address.packed)
    wanted += netlink.attribute(_RTA_MARK, _NUMBER.pack(mark)) if mark else b""
    try:
        with netlink.route() as route:
            answer = route.get(_GET_ROUTE, _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + wanted)
            found = netlink.attributes(answer[_ROUTE.size :])
            if _RTA_OIF not in found:
                return False
            (index,) = _NUMBER.unpack(found[_RTA_OIF])
            hop = found.get(_RTA_GATEWAY, address.packed)
            if _RTA_VIA in found:  # an IPv4 route by an IPv6 gateway: family, address
                family, hop = struct.unpack_from("=H", found[_RTA_VIA])[0], found[_RTA_VIA][2:]
            body = _NEIGHBOUR.pack(family, index, 0, 0, 0) + netlink.attribute(_NDA_DST, hop)
            answer = route.get(_GET_NEIGHBOUR, body)
    except OSError:
        return False
    _, _, state, _, _ = _NEIGHBOUR.unpack_from(answer)
    return bool(state & (_INCOMPLETE | _FAILED))


def lack_of_way(address: IPv4Address | IPv6Address) -> str:
    """What of this node keeps packets from an address: there is no route, or the interface has no carrier, as its
    cable is unplugged; in words, empty if nothing does."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    wanted = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    wanted += netlink.attribute(_RTA_DST, address.packed)
    try:
        with netlink.route() as route:
            try:
                answer = route.get(_GET_ROUTE, wanted)
            except OSError as error:
                return "this node has no route to it" if error.errno == errno.ENETUNREACH else ""
            found = netlink.attributes(answer[_ROUTE.size :])
            if _RTA_OIF not in found:
                return ""
            (index,) = _NUMBER.unpack(found[_RTA_OIF])
            answer = route.get(_GET_LINK, _LINK.pack(0, 0, index, 0, 0))
    except OSError:
        return ""
    if _LINK.unpack_from(answer)[3] & _LOWER_UP:
        return ""
    name = netlink.text(netlink.attributes(answer[_LINK.size :]).get(_IFNAME, b""))
    return f"interface {name} has no carrier"
