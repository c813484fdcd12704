# SPDX-License-Identifier: Apache-2.0
"""Firewalls for tests: tables, chains and rules of nftables as `nft` makes them, in the namespace of the thread."""

from __future__ import annotations

import socket
import struct

from reconciler.kernel import netlink

TABLE, CHAIN, RULE = 0, 3, 6
CREATE = 0x400
FORWARD, INPUT, DROP, ACCEPT = 2, 1, 0, 1
IP, INET, IP6 = 2, 1, 10


def attribute(number: int, content: bytes) -> bytes:
    return netlink.attribute(number, content)


def nested(number: int, content: bytes) -> bytes:
    return netlink.attribute(number | netlink.NESTED, content)


def u32(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("!I", value))


def nft(*requests: tuple[int, int, bytes]) -> None:
    """Carry requests out as one batch: what to make, in which family, and what it is."""
    batch = [(16, 0, struct.pack("!BBH", 0, 0, 10))]
    batch += [(10 << 8 | what, CREATE | 0x800, bytes([family, 0, 0, 0]) + body) for what, family, body in requests]
    batch += [(17, 0, struct.pack("!BBH", 0, 0, 10))]
    data = b"".join(
        struct.pack("=IHHII", 16 + len(body), kind, flags | 1 | 4 * (kind > 255), number, 0) + body
        for number, (kind, flags, body) in enumerate(batch)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.bind((0, 0))
        sock.send(data)
        for _ in requests:
            assert struct.unpack_from("=i", sock.recv(65536), 16) == (0,)


def chain(family: int, table: bytes, name: bytes, hook: int, policy: int) -> tuple[tuple[int, int, bytes], ...]:
    place = nested(4, u32(1, hook) + struct.pack("=HHi", 8, 2, 0))
    body = attribute(1, table + b"\0") + attribute(3, name + b"\0") + place + u32(5, policy)
    body += attribute(7, b"filter\0")
    return (TABLE, family, attribute(1, table + b"\0")), (CHAIN, family, body)


def accepting(family: int, table: bytes, name: bytes, interface: bytes) -> tuple[int, int, bytes]:
    """`iifname INTERFACE accept`, as nft writes it."""
    data = interface.ljust(16, b"\0")
    meta = attribute(1, b"meta\0") + nested(2, u32(2, 6) + u32(1, 1))
    same = attribute(1, b"cmp\0") + nested(2, u32(1, 1) + u32(2, 0) + nested(3, attribute(1, data)))
    verdict = attribute(1, b"immediate\0") + nested(2, u32(1, 0) + nested(2, nested(2, u32(1, ACCEPT))))
    parts = b"".join(nested(1, part) for part in (meta, same, verdict))
    return RULE, family, attribute(1, table + b"\0") + attribute(2, name + b"\0") + nested(4, parts)
