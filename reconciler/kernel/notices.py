# SPDX-License-Identifier: Apache-2.0
"""What others change on a node, as the kernel tells it (rtnetlink multicast groups): links, addresses, routes and
neighbours that may concern us. What this process changes itself is left out.

Routing daemons change thousands of routes a second, and large networks as many neighbours. So what concerns nobody
here is told by a few bytes at known places; pyroute2 takes the rest apart.

The kernel drops what doesn't fit into the socket's buffer and says so once (ENOBUFS): then nobody knows what has
changed. Works on the network namespace of the calling thread. Layouts: include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple

from reconciler.kernel import codec, netlink
from reconciler.kernel.mark import PROTOCOL
from reconciler.kernel.rtnetlink import (
    BITS,
    NDA_PROTOCOL,
    NEIGHBOUR,
    ROUTE,
    RT_TABLE_LOCAL,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)

_GROUPS = (1, 3, 5, 7, 9, 11)  # links; neighbours; addresses and routes of IPv4; those of IPv6
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_BUFFER_BYTES = 4 << 20
_HEADER_BYTES = netlink.HEADER.size
_ADDRESS_AT = _HEADER_BYTES + NEIGHBOUR.size + 4  # the first attribute of a neighbour is its address
_LENGTHS: dict[int, int] = {family: bits // 8 for family, bits in BITS.items()}


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
    """A subscription; it hears of what happens from when it is made. OSError if the kernel refuses, KernelError if
    nobody could read what comes."""

    def __init__(self, mark: int = PROTOCOL) -> None:
        """`mark` is the protocol number of our own objects."""
        self._mark = mark
        for type_ in (RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH):
            codec.class_of(type_)
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
            while position + _HEADER_BYTES <= len(data):
                length, type_, _, _, port = netlink.HEADER.unpack_from(data, position)
                if not port or port not in netlink.own_ports:
                    yield from _notice(type_, data[position : position + length], gateways, self._mark)
                position += max((length + 3) & ~3, _HEADER_BYTES)


def _notice(type_: int, message: bytes, gateways: Collection[str], mark: int) -> Iterator[Notice]:
    if type_ in (RTM_NEWLINK, RTM_DELLINK):
        if name := codec.decoded(type_, message).get_attr("IFLA_IFNAME"):
            yield Notice("link", codec.text(name))
    elif type_ in (RTM_NEWADDR, RTM_DELADDR):
        found = codec.decoded(type_, message)
        if address := found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS"):
            yield Notice("address", str(ip_address(address)))
    elif type_ in (RTM_NEWROUTE, RTM_DELROUTE):
        yield from _route(type_, message, mark)
    elif type_ in (RTM_NEWNEIGH, RTM_DELNEIGH) and _may_concern(type_, message, gateways, mark):
        yield from _neighbour(type_, message, gateways, mark)


def _route(type_: int, message: bytes, mark: int) -> Iterator[Notice]:
    family, bits, _, _, table, protocol, *_ = ROUTE.unpack_from(message, _HEADER_BYTES)
    if protocol != mark and table != RT_TABLE_LOCAL:
        return
    found = codec.decoded(type_, message)
    to, table = found.get_attr("RTA_DST"), found.get_attr("RTA_TABLE") or table
    if to and bits == 8 * _LENGTHS.get(family, 0):
        yield Notice("route", str(ip_address(to)), table)
    elif protocol == mark:
        yield Notice("route", "", table)


def _may_concern(type_: int, message: bytes, gateways: Collection[str], mark: int) -> bool:
    """Whether a neighbour comes or changes that is one of the `gateways`, or one goes that may be ours."""
    if type_ == RTM_DELNEIGH:
        return netlink.attribute(NDA_PROTOCOL, bytes([mark])) in message
    if not gateways:
        return False
    length = _LENGTHS.get(message[_HEADER_BYTES], 0)
    packed = message[_ADDRESS_AT : _ADDRESS_AT + length]
    return len(packed) == length > 0 and str(ip_address(packed)) in gateways


def _neighbour(type_: int, message: bytes, gateways: Collection[str], mark: int) -> Iterator[Notice]:
    found = codec.decoded(type_, message)
    to = found.get_attr("NDA_DST")
    if found["family"] not in _LENGTHS or not to:
        return
    address = str(ip_address(to))
    if address not in gateways if type_ == RTM_NEWNEIGH else found.get_attr("NDA_PROTOCOL") != mark:
        return
    with suppress(OSError):  # the interface is gone, of which another notice tells
        yield Notice("neighbour", address, interface=socket.if_indextoname(found["ifindex"]))
