# SPDX-License-Identifier: Apache-2.0
"""Echo requests (RFC 792, RFC 4443): the target returns what it was sent.

A ping socket (net.ipv4.ping_group_range) gets the answers to its own requests only. Where those aren't allowed, a raw
socket is connected to the target, and identifier, number and content tell which answer is whose.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from reconciler.health.checks.wait import Check, datagram, hear_errors
from reconciler.health.outcome import OK
from reconciler.health.target import Target
from reconciler.health.way import Way, opened

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, number
_KINDS = {4: (8, 0), 6: (128, 129)}  # request, reply
_CONTENT_BYTES = 16
_MAX_BYTES = 1024


def ping(target: Target, way: Way) -> Check:
    version = target.asked.version
    request, reply = _KINDS[version]
    content = os.urandom(_CONTENT_BYTES)
    identifier, number = struct.unpack("!HH", os.urandom(4))
    with _socket(target, way) as sock:
        is_raw = sock.type == socket.SOCK_RAW
        hear_errors(sock)
        sock.connect((target.place[0], 0))
        packet = _HEADER.pack(request, 0, 0, identifier, number) + content
        if is_raw and version == 4:  # The kernel computes all other checksums.
            packet = _HEADER.pack(request, 0, checksum(packet), identifier, number) + content
        sock.send(packet)
        while True:
            answer = yield from datagram(sock, _MAX_BYTES)
            if is_raw and version == 4:
                answer = answer[4 * (answer[0] & 0xF) :] if answer else b""
            if len(answer) < _HEADER.size or answer[_HEADER.size :] != content:
                continue
            kind, code, _, found, found_number = _HEADER.unpack_from(answer)
            if (kind, code, found_number) == (reply, 0, number) and (found == identifier or not is_raw):
                return OK


def checksum(data: bytes) -> int:
    """Of the internet (RFC 1071), for an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _socket(target: Target, way: Way) -> socket.socket:
    protocol = socket.IPPROTO_ICMP if target.asked.version == 4 else socket.IPPROTO_ICMPV6
    try:
        return opened(target.asked, way, socket.SOCK_DGRAM, protocol)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT):
            raise
        return opened(target.asked, way, socket.SOCK_RAW, protocol)
