# SPDX-License-Identifier: Apache-2.0
"""What others change on a node, as the kernel tells it (rtnetlink multicast groups): links, addresses, routes and
neighbours that may concern us. What this process changes itself is left out.

The kernel drops what doesn't fit into the socket's buffer and says so once (ENOBUFS): then nobody knows what has
changed. Works on the network namespace of the calling thread. Layouts: include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple

from reconciler.kernel import netlink
from reconciler.kernel.mark import PROTOCOL

_GROUPS = (1, 3, 5, 7, 9, 11)  # links; neighbours; addresses and routes of IPv4; those of IPv6
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_BUFFER_BYTES = 4 << 20
_MESSAGE = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=4BI")  # family, prefixlen, flags, scope, index
_ROUTE = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_LINKS, _ADDRESSES, _ROUTES = (16, 17), (20, 21), (24, 25)
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR = 28, 29
_IFLA_IFNAME, _IFA_ADDRESS, _IFA_LOCAL, _RTA_DST, _RTA_TABLE, _NDA_DST, _NDA_PROTOCOL = 3, 1, 2, 1, 15, 1, 12
_LOCAL = 255
_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}


class Notice(NamedTuple):
    """`what`: link, address, route, neighbour or setting. `name`: the interface, the address, or the setting. A route
    has its `table`, a neighbour its `interface`."""

    what: str
    name: str
    table: int = 0
    interface: str = ""


class LostError(OSError):
    """The kernel dropped notices."""


class Listener:
    """A subscription; it hears of what happens from when it is made. OSError if the kernel refuses."""

    def __init__(self, mark: int = PROTOCOL) -> None:
        """`mark` is the protocol number of our own objects."""
        self._mark = mark
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        with suppress(OSError):  # without the right to force it, it is as large as the system allows
            self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def close(self) -> None:
        self._socket.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something to read, at the latest after a time."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def read(self, gateways: Collection[str]) -> Iterator[Notice]:
        """What has come. Of neighbours that come or change, only `gateways` matter. Raises LostError, after all that
        was left: until the buffer is empty, the kernel drops more without saying so again."""
        is_lost = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                if is_lost:
                    raise LostError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)) from None
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_lost = True
                continue
            position = 0
            while position + _MESSAGE.size <= len(data):
                length, type_, _, _, port = _MESSAGE.unpack_from(data, position)
                if not port or port not in netlink.own_ports:
                    body = data[position + _MESSAGE.size : position + length]
                    yield from _notice(type_, body, gateways, self._mark)
                position += max((length + 3) & ~3, _MESSAGE.size)


def _notice(type_: int, body: bytes, gateways: Collection[str], mark: int) -> Iterator[Notice]:
    if type_ in _LINKS:
        name = netlink.attributes(body, _LINK.size).get(_IFLA_IFNAME)
        if name:
            yield Notice("link", netlink.text(name))
    elif type_ in _ADDRESSES:
        found = netlink.attributes(body, _ADDRESS.size)
        if address := found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS):
            yield Notice("address", str(ip_address(address)))
    elif type_ in _ROUTES:
        yield from _route(body, mark)
    elif type_ in (_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR):
        yield from _neighbour(type_, body, gateways, mark)


def _route(body: bytes, mark: int) -> Iterator[Notice]:
    family, bits, _, _, table, protocol, *_ = _ROUTE.unpack_from(body)
    if protocol != mark and table != _LOCAL:
        return  # a routing daemon may change thousands a second
    found = netlink.attributes(body, _ROUTE.size)
    if bits == _BITS.get(family) and _RTA_DST in found:
        table = int.from_bytes(found[_RTA_TABLE], sys.byteorder) if _RTA_TABLE in found else table
        yield Notice("route", str(ip_address(found[_RTA_DST])), table)
    elif protocol == mark:
        yield Notice("route", "", table)


def _neighbour(type_: int, body: bytes, gateways: Collection[str], mark: int) -> Iterator[Notice]:
    if type_ == _NEW_NEIGHBOUR and not gateways:
        return
    family, index, *_ = _NEIGHBOUR.unpack_from(body)
    if family not in _BITS:
        return
    found = netlink.attributes(body, _NEIGHBOUR.size)
    is_ours = found.get(_NDA_PROTOCOL, b"\0")[0] == mark
    if _NDA_DST not in found or (type_ == _DELETE_NEIGHBOUR and not is_ours):
        return
    address = str(ip_address(found[_NDA_DST]))
    if type_ == _NEW_NEIGHBOUR and address not in gateways:
        return
    with suppress(OSError):  # the interface is gone, of which another notice tells
        yield Notice("neighbour", address, interface=socket.if_indextoname(index))
