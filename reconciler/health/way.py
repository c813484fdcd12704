# SPDX-License-Identifier: Apache-2.0
"""Sockets of checks: non-blocking, with the mark of their way.

A mark (`SO_MARK`) is how a check through the VIP tells the data plane which endpoint it is for. It is no part of the
target: it may change while the target stays the same.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from reconciler.health.place import HERE, Lent, Place
from reconciler.model import Address

SO_MARK = 36
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Way:
    """`mark` 0: none. `place` is where the sockets are made. `lack` says why there is no way at all."""

    mark: int = 0
    place: Place = HERE
    lack: str = ""


DIRECT = Way()


def family_of(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def opened(address: Address, way: Way, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    """A socket for packets to an address. Raises OSError.

    A TCP connection is closed by a reset, so it leaves nothing behind: neither here, where ten thousand checks would
    fill the ports with TIME_WAIT, nor on the server.
    """
    sock = way.place.opened(family_of(address), kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if way.mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, way.mark)
    except BaseException:
        sock.close()
        raise
    return sock


def lent(address: Address, way: Way) -> Lent:
    """A socket of TCP to connect to an address, and to be taken back by the place of the way. Raises OSError."""
    sock = way.place.lend(family_of(address))
    if sock.mark != way.mark:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, way.mark)
        except BaseException:
            way.place.take_back(sock)
            raise
        sock.mark = way.mark
    return sock
