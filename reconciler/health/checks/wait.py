# SPDX-License-Identifier: Apache-2.0
"""Waiting for sockets: the steps that checks share."""

from __future__ import annotations

import errno
import socket
from collections.abc import Generator
from select import EPOLLIN, EPOLLOUT
from typing import Protocol, TypeVar

from reconciler.health.outcome import Outcome
from reconciler.health.target import Target

T = TypeVar("T")
Waiting = Generator[tuple[socket.socket, int], None, T]
"""Yields a socket and the events that it waits for; gives a T."""
Check = Waiting[Outcome]

_IP_RECVERR, _IPV6_RECVERR = 11, 25


class Late(Exception):
    """Raised within a check that waits, at its deadline."""


def connect(sock: socket.socket, target: Target) -> Waiting[None]:
    """Connect a TCP socket to the target. Raises OSError."""
    code = sock.connect_ex(target.place)
    if code == errno.EINPROGRESS:
        yield sock, EPOLLOUT
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, "connect")


class Stream(Protocol):
    """A connection, plain or with TLS. Both raise OSError."""

    def send(self, data: bytes) -> Waiting[None]:
        """Send all of it."""

    def receive(self, size: int) -> Waiting[bytes]:
        """The next bytes, at most `size`; b"" at the end."""


class Plain:
    """A connection without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, data: bytes) -> Waiting[None]:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                yield self._socket, EPOLLOUT

    def receive(self, size: int) -> Waiting[bytes]:
        return datagram(self._socket, size)


def datagram(sock: socket.socket, size: int) -> Waiting[bytes]:
    """The next datagram, cut to `size`, or the next bytes of a stream. Raises OSError. Waits each time, so a server
    that floods one check can't keep the others waiting."""
    while True:
        yield sock, EPOLLIN
        try:
            return sock.recv(size)
        except BlockingIOError:
            continue


def hear_errors(sock: socket.socket) -> None:
    """Have ICMP errors about what a socket sent come as its errors, also those that may pass (host unreachable)."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


def in_words(duration_s: float) -> str:
    """E.g. `1 s`, `500 ms`."""
    return f"{duration_s * 1000:g} ms" if duration_s < 1 else f"{duration_s:g} s"
