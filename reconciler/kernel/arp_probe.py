# SPDX-License-Identifier: Apache-2.0
"""Ask a network who holds an IPv4 address, without claiming it (RFC 5227, section 2.1.1).

Works on the network namespace of the calling thread, and needs CAP_NET_RAW. A machine doesn't hear its own question.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Collection
from ipaddress import IPv4Address

_ARP, _REQUEST, _REPLY = 0x0806, 1, 2
_BROADCAST = b"\xff" * 6
_BODY = struct.Struct("!HHBBH6s4s6s4s")
_ROUNDS, _WAIT_S = 2, 1.0


def holders(interface: str, addresses: Collection[IPv4Address]) -> dict[IPv4Address, set[str]]:
    """The MACs of the other machines on an interface's network that say to hold these addresses. OSError."""
    found: dict[IPv4Address, set[str]] = {}
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_PACKET, kind, socket.htons(_ARP)) as sock:
        sock.bind((interface, _ARP))
        own = sock.getsockname()[4]
        for _ in range(_ROUNDS if addresses else 0):
            for address in addresses:
                body = _BODY.pack(1, 0x0800, 6, 4, _REQUEST, own, bytes(4), bytes(6), address.packed)
                sock.send(_BROADCAST + own + struct.pack("!H", _ARP) + body)
            _hear(sock, set(addresses), own, found)
    return found


def _hear(sock: socket.socket, asked: set[IPv4Address], own: bytes, found: dict[IPv4Address, set[str]]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
        frame = sock.recv(2048)
        if len(frame) < 14 + _BODY.size:
            continue
        *_, operation, mac, sender, _, _ = _BODY.unpack_from(frame, 14)
        if operation == _REPLY and mac != own and IPv4Address(sender) in asked:
            found.setdefault(IPv4Address(sender), set()).add(mac.hex(":"))
