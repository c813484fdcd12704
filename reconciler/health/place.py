# SPDX-License-Identifier: Apache-2.0
"""A network namespace that sockets of checks are made in.

Going there and back takes four system calls, each of which costs as much as all else that a check needs of the kernel
before its first packet. So sockets are made ahead, many in one visit.

To make a socket of TCP and to close it costs nearly as much as to connect it. So checks lend theirs, one after the
other.
"""

from __future__ import annotations

import ctypes
import os
import socket
from contextlib import suppress

from reconciler.kernel.netns import within

AT_ONCE = 32
"""How many are made ahead. What isn't needed any more holds that many descriptors."""
MOST_IDLE = 200
"""Of each family, how many sockets wait for the next check; if more come back, they are closed."""

Kind = tuple[int, int, int]
"""Family, type and protocol, as socket() takes them."""

_RESET = (1).to_bytes(4, "little") + bytes(4)
"""struct linger: on, for no time."""
_NOWHERE = bytes(16)
"""A struct sockaddr with AF_UNSPEC."""
_libc = ctypes.CDLL(None)


class Lent(socket.socket):
    """A non-blocking socket of TCP that checks use one after the other, a connection each. `mark` is its SO_MARK, and
    `watcher` the epoll that has it by now, and is told once of these `events`."""

    __slots__ = ("events", "mark", "watcher")

    def __init__(self, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.mark = self.events = 0
        self.watcher: object = None


class Place:
    """`handle` is a descriptor of the namespace, which it closes when it is closed itself; None: the process' own."""

    def __init__(self, handle: int | None = None) -> None:
        if handle is not None:
            status = os.fstat(handle)
            self.identity = status.st_dev, status.st_ino
            """Of the namespace: the same for each descriptor of it."""
        self._handle = handle
        self._ahead: dict[Kind, list[socket.socket]] = {}
        self._idle: dict[int, list[Lent]] = {socket.AF_INET: [], socket.AF_INET6: []}

    def opened(self, family: int, type_: int, protocol: int) -> socket.socket:
        """A socket of the namespace. Raises OSError."""
        kind = family, type_, protocol
        if self._handle is None:
            return socket.socket(*kind)
        ahead = self._ahead.setdefault(kind, [])
        if not ahead:
            with within(self._handle):
                first = socket.socket(*kind)
                with suppress(OSError):  # the next one will say what is lacking
                    ahead.extend([socket.socket(*kind) for _ in range(AT_ONCE - 1)])
            return first
        return ahead.pop()

    def lend(self, family: int) -> Lent:
        """A socket of TCP that is connected nowhere. Raises OSError."""
        idle = self._idle[family]
        if idle:
            return idle.pop()
        if self._handle is None:
            return Lent(family)
        with within(self._handle):
            first = Lent(family)
            with suppress(OSError):  # the next one will say what is lacking
                idle.extend([Lent(family) for _ in range(AT_ONCE - 1)])
        return first

    def take_back(self, sock: Lent) -> None:
        """End what the socket is connected to by a reset (tcp_disconnect of net/ipv4/tcp.c), and keep it for another
        check."""
        idle = self._idle[sock.family]
        if len(idle) < MOST_IDLE and _libc.connect(sock.fileno(), _NOWHERE, len(_NOWHERE)) == 0:
            idle.append(sock)
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()

    def close(self) -> None:
        for ahead in self._ahead.values():
            _close(ahead)
        for idle in self._idle.values():
            _close(idle)
        if self._handle is not None:
            os.close(self._handle)


def _close(sockets: list[socket.socket] | list[Lent]) -> None:
    while sockets:
        sockets.pop().close()


HERE = Place()
"""The namespace of the process."""
