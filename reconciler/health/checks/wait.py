# SPDX-License-Identifier: Apache-2.0
"""Waiting for sockets: the steps that checks share."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Generator
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Protocol, TypeVar

from reconciler.health.outcome import Outcome
from reconciler.health.target import Target

T = TypeVar("T")
Waiting = Generator[tuple[socket.socket, int], int | None, T]
"""Yields a socket and the events that it waits for, and may be told what has happened; gives a T."""
Check = Waiting[Outcome]

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU_DISCOVER, _IP_MTU, _IPV6_MTU_DISCOVER, _IPV6_MTU, _DO = 10, 14, 23, 24, 2
_IP_HEADER_BYTES, _IPV6_HEADER_BYTES = 20, 40
_UNACKED = struct.Struct("=24xI")


class Late(Exception):
    """Raised within a check that waits, at its deadline."""


def connect(sock: socket.socket, target: Target) -> Waiting[None]:
    """Connect a TCP socket to the target. Raises OSError."""
    code = sock.connect_ex(target.place)
    if code == errno.EINPROGRESS:
        happened = yield sock, EPOLLOUT
        is_well = happened is not None and not happened & (EPOLLERR | EPOLLHUP)
        code = 0 if is_well else sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, "connect")


def room_in_a_packet(sock: socket.socket) -> int:
    """How many bytes of a connected TCP socket, or of a datagram with its header, go into one packet on the way as it
    is known (RFC 1191, RFC 8201)."""
    if sock.type == socket.SOCK_STREAM:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    if sock.family == socket.AF_INET:
        return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) - _IP_HEADER_BYTES
    return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - _IPV6_HEADER_BYTES


def forbid_fragments(sock: socket.socket) -> None:
    """Have datagrams sent whole, or not at all."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _DO)


def is_unheard(sock: socket.socket) -> bool:
    """Whether a TCP connection has sent what nobody has acknowledged (tcpi_unacked of struct tcp_info)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size)
    (unacknowledged,) = _UNACKED.unpack(info)
    return int(unacknowledged) > 0


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
