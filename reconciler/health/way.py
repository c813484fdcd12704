# SPDX-License-Identifier: Apache-2.0
"""Sockets of checks: non-blocking, with the source address and the mark of their way.

A mark (`SO_MARK`) is how a check through the VIP tells the data plane which endpoint it is for. It is no part of the
target: it may change while the target stays the same.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from reconciler.health.place import Place
from reconciler.model import Address

SO_MARK = 36
_IP_BIND_ADDRESS_NO_PORT = 24
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Way:
    """`source` None and `mark` 0: as the kernel chooses. `place` is where the sockets are made; None: in the network
    namespace of the process. `lack` says why there is no way at all."""

    source: Address | None = None
    mark: int = 0
    place: Place | None = None
    lack: str = ""


DIRECT = Way()


def family_of(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def opened(address: Address, way: Way, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    """A socket for packets to an address. Raises OSError.

    A TCP connection is closed by a reset, so it leaves nothing behind: neither here, where ten thousand checks would
    fill the ports with TIME_WAIT, nor on the server.
    """
    make = socket.socket if way.place is None else way.place.opened
    sock = make(family_of(address), kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if way.mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, way.mark)
        if way.source is not None:
            if kind == socket.SOCK_STREAM:
                # The port is chosen by connect(), which may share one among many destinations.
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((str(way.source), 0))
    except BaseException:
        sock.close()
        raise
    return sock
