# SPDX-License-Identifier: Apache-2.0
"""Echo requests of a certain size that nobody may take apart, to learn what a way carries (RFC 792, RFC 4443).

Works on the network namespace of the calling thread, and needs CAP_NET_RAW.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time

from reconciler.model import Address

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, number
_KINDS = {4: (8, 0), 6: (128, 129)}  # request, reply
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PROBE = 3  # IP_PMTUDISC_PROBE: never in fragments, whatever is known of the way
_IP_BYTES = {4: 20, 6: 40}
_MARK_BYTES = 8


def answers(address: Address, size_bytes: int, tries: int = 3, wait_s: float = 1.0) -> bool:
    """Whether an address answers an echo request whose IP packet has this size. False as well if this machine itself
    can't send such a packet. OSError if it may not ask."""
    version = address.version
    kind, protocol = _KINDS[version], socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol) as sock:
        sock.setsockopt(*_MTU_DISCOVER[version], _PROBE)
        for number in range(tries):
            mark = os.urandom(_MARK_BYTES)
            content = mark + bytes(size_bytes - _IP_BYTES[version] - _HEADER.size - _MARK_BYTES)
            packet = _HEADER.pack(kind[0], 0, 0, 0x6C62, number) + content
            packet = packet[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]
            try:
                sock.sendto(packet, (str(address), 0))
            except OSError:  # too long for the interface, or no way
                return False
            if _hears(sock, kind[1], mark, version, wait_s):
                return True
    return False


def _hears(sock: socket.socket, kind: int, mark: bytes, version: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return False
        answer = sock.recv(65_535)
        if version == 4:
            answer = answer[4 * (answer[0] & 0xF) :]
        if answer[:1] == bytes([kind]) and answer[_HEADER.size : _HEADER.size + _MARK_BYTES] == mark:
            return True
    return False


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
