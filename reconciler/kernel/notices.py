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
from reconciler.kernel.rtnetlink import (
    ADDRESS,
    BITS,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFLA_IFNAME,
    LINK,
    NDA_DST,
    NDA_PROTOCOL,
    NEIGHBOUR,
    ROUTE,
    RT_TABLE_LOCAL,
    RTA_DST,
    RTA_TABLE,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
)

_GROUPS = (1, 3, 5, 7, 9, 11)  # links; neighbours; addresses and routes of IPv4; those of IPv6
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_BUFFER_BYTES = 4 << 20
_MESSAGE = struct.Struct("=IHHII")
_LINKS, _ADDRESSES, _ROUTES = (16, 17), (20, 21), (24, 25)


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
        name = netlink.attributes(body, LINK.size).get(IFLA_IFNAME)
        if name:
            yield Notice("link", netlink.text(name))
    elif type_ in _ADDRESSES:
        found = netlink.attributes(body, ADDRESS.size)
        if address := found.get(IFA_LOCAL) or found.get(IFA_ADDRESS):
            yield Notice("address", str(ip_address(address)))
    elif type_ in _ROUTES:
        yield from _route(body, mark)
    elif type_ in (RTM_NEWNEIGH, RTM_DELNEIGH):
        yield from _neighbour(type_, body, gateways, mark)


def _route(body: bytes, mark: int) -> Iterator[Notice]:
    family, bits, _, _, table, protocol, *_ = ROUTE.unpack_from(body)
    if protocol != mark and table != RT_TABLE_LOCAL:
        return  # a routing daemon may change thousands a second
    found = netlink.attributes(body, ROUTE.size)
    if bits == BITS.get(family) and RTA_DST in found:
        table = int.from_bytes(found[RTA_TABLE], sys.byteorder) if RTA_TABLE in found else table
        yield Notice("route", str(ip_address(found[RTA_DST])), table)
    elif protocol == mark:
        yield Notice("route", "", table)


def _neighbour(type_: int, body: bytes, gateways: Collection[str], mark: int) -> Iterator[Notice]:
    if type_ == RTM_NEWNEIGH and not gateways:
        return
    family, index, *_ = NEIGHBOUR.unpack_from(body)
    if family not in BITS:
        return
    found = netlink.attributes(body, NEIGHBOUR.size)
    is_ours = found.get(NDA_PROTOCOL, b"\0")[0] == mark
    if NDA_DST not in found or (type_ == RTM_DELNEIGH and not is_ours):
        return
    address = str(ip_address(found[NDA_DST]))
    if type_ == RTM_NEWNEIGH and address not in gateways:
        return
    with suppress(OSError):  # the interface is gone, of which another notice tells
        yield Notice("neighbour", address, interface=socket.if_indextoname(index))
