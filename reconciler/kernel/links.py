# SPDX-License-Identifier: Apache-2.0
"""Network interfaces, and which of them are VLANs of others. Works on the namespace of the calling thread.

Layouts: include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
import sys
from dataclasses import replace

from reconciler.kernel import netlink
from reconciler.kernel.port import Link

_GET = 18
_ADDRESS, _IFNAME, _MTU, _LINK, _LINKINFO, _LINK_NETNSID = 1, 3, 4, 5, 18, 37
_INFO_KIND, _INFO_DATA, _VLAN_ID = 1, 2, 1
_MASTER, _UP = 10, 1 << 0
_HEADER = struct.Struct("=BxHiII")  # family, type, index, flags, change


_ETHTOOL, _GET_FLAGS, _RX_VLAN = 0x8946, 0x25, 1 << 8  # linux/sockios.h, linux/ethtool.h
_REQUEST = struct.Struct("@16sP16x")  # struct ifreq
_FLAGS = struct.Struct("=II")  # struct ethtool_value


def read() -> list[Link]:
    """All interfaces. OSError if the kernel refuses."""
    with netlink.route() as route:
        links = [_with_state(_link(answer), answer) for answer in route.dump(_GET, _HEADER.pack(0, 0, 0, 0, 0))]
    trunks = {link.trunk for link in links}
    return [replace(link, strips_tags=_strips_tags(link.name)) if link.index in trunks else link for link in links]


def _strips_tags(name: str) -> bool:
    """Whether an interface takes VLAN tags off what it receives (`ethtool -k`: rx-vlan-offload)."""
    flags = ctypes.create_string_buffer(_FLAGS.pack(_GET_FLAGS, 0), _FLAGS.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        fcntl.ioctl(sock, _ETHTOOL, _REQUEST.pack(netlink.content(name), ctypes.addressof(flags)))
    return bool(_FLAGS.unpack(flags.raw)[1] & _RX_VLAN)


def _with_state(link: Link, answer: bytes) -> Link:
    _, _, _, flags, _ = _HEADER.unpack_from(answer)
    master = netlink.attributes(answer[_HEADER.size :]).get(_MASTER)
    return replace(link, is_up=bool(flags & _UP), master=int.from_bytes(master, sys.byteorder) if master else None)


def _link(answer: bytes) -> Link:
    _, _, index, _, _ = _HEADER.unpack_from(answer)
    found = netlink.attributes(answer[_HEADER.size :])
    mac, mtu = found.get(_ADDRESS, b""), int.from_bytes(found[_MTU], sys.byteorder)
    name = netlink.text(found[_IFNAME])
    info = netlink.attributes(found.get(_LINKINFO, b""))
    if info.get(_INFO_KIND, b"").rstrip(b"\0") != b"vlan" or _LINK not in found or _LINK_NETNSID in found:
        return Link(name, index, mac=mac, mtu_bytes=mtu)
    tag = netlink.attributes(info[_INFO_DATA])[_VLAN_ID]
    trunk = int.from_bytes(found[_LINK], sys.byteorder)
    return Link(name, index, trunk, int.from_bytes(tag, sys.byteorder), mac=mac, mtu_bytes=mtu)
