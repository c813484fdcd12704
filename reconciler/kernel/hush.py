# SPDX-License-Identifier: Apache-2.0
"""Keep the kernel from answering packets to ports at which nobody listens, for a while.

A VIP is an address of the node, so without the program its kernel answers the packets of open connections with
resets. A socket whose filter accepts nothing (SO_ATTACH_FILTER) prevents that: the kernel finds the socket for the
packets and drops them (tcp_filter in net/ipv4/tcp_ipv4.c, and the like). Clients send dropped packets again.
"""

from __future__ import annotations

import ctypes
import resource
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress

Place = tuple[str, str, int]
"""A protocol (tcp, udp or sctp), an address and a port."""

_TAKE_NOTHING = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0
_ATTACH_FILTER, _IP_FREEBIND, _IPV6_FREEBIND = 26, 15, 78
_TYPES = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_SPARE_DESCRIPTORS = 128


@contextmanager
def hushed(places: Collection[Place]) -> Iterator[None]:
    """Within this, the kernel doesn't answer for these places. Places where somebody listens already are left alone,
    and places for which there are too few file descriptors."""
    with _room(len(places)), ExitStack() as stack:
        for protocol, address, port in places:
            if protocol in _TYPES:
                with suppress(OSError):
                    stack.enter_context(_deaf(protocol, address, port))
        yield


def _deaf(protocol: str, address: str, port: int) -> socket.socket:
    """A socket that drops every packet. OSError if somebody else's socket has the place."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind, number = _TYPES[protocol]
    try:
        made = socket.socket(family, kind, number)
    except OSError:  # a kernel without SCTP says that it doesn't know the protocol, unless somebody does
        if protocol != "sctp":
            raise
        kind, made = socket.SOCK_RAW, socket.socket(family, socket.SOCK_RAW, number)
    try:
        program = struct.pack("@HP", 1, ctypes.addressof(_TAKE_NOTHING))
        made.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if kind != socket.SOCK_DGRAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port if kind != socket.SOCK_RAW else 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
    except OSError:
        made.close()
        raise
    return made


@contextmanager
def _room(descriptors: int) -> Iterator[None]:
    """Raise this process's limit of file descriptors by this number, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield
        return
    wanted = soft + descriptors + _SPARE_DESCRIPTORS
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
