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

from reconciler.health.checks.wait import Check, datagram, forbid_fragments, hear_errors, room_in_a_packet
from reconciler.health.outcome import OK, unreached
from reconciler.health.target import Target
from reconciler.health.way import Way, opened
from reconciler.model import CheckSize

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, number
_KINDS = {4: (8, 0), 6: (128, 129)}  # request, reply
_CONTENT_BYTES = 16
_MAX_BYTES = 65_535
_MOST_HOPS = 4
"""So many routers may say one after the other that a packet is too big for them."""


def ping(target: Target, way: Way) -> Check:
    with _socket(target, way) as sock:
        hear_errors(sock)
        sock.connect((target.place[0], 0))
        if target.check.size is CheckSize.SMALL:
            return (yield from _echoed(sock, target.asked.version, _CONTENT_BYTES))
        forbid_fragments(sock)
        for _ in range(_MOST_HOPS):
            try:
                content_bytes = max(_CONTENT_BYTES, room_in_a_packet(sock) - _HEADER.size)
                return (yield from _echoed(sock, target.asked.version, content_bytes - content_bytes % 2))
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise  # else somebody on the way has told how much it takes
        return unreached("too big for the way")


def _echoed(sock: socket.socket, version: int, content_bytes: int) -> Check:
    request, reply = _KINDS[version]
    content = os.urandom(_CONTENT_BYTES) + bytes(content_bytes - _CONTENT_BYTES)
    identifier, number = struct.unpack("!HH", os.urandom(4))
    is_raw = sock.type == socket.SOCK_RAW
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
