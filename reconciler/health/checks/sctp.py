# SPDX-License-Identifier: Apache-2.0
"""SCTP (RFC 9260): the target answers an INIT with an INIT ACK, and is told at once that there won't be more (ABORT).

This speaks through a raw socket, so the kernel needs no module. The server keeps nothing of it either: before a COOKIE
ECHO an association is nothing but a cookie. An answer must have the ports and the random tag of the question. Its
checksum is not looked at: on virtual links the kernel leaves it unfinished, and real ones drop what is damaged.
"""

from __future__ import annotations

import os
import socket
import struct

from reconciler.health.checks.wait import Check, datagram, hear_errors
from reconciler.health.outcome import OK, failed
from reconciler.health.target import Target
from reconciler.health.way import Way, opened

_PROTOCOL = 132
_COMMON = struct.Struct("!HHI4s")  # source port, destination port, tag, checksum (least significant byte first)
_CHUNK = struct.Struct("!BBH")  # type, flags, length
_INIT = struct.Struct("!IIHHI")  # tag, window, outbound streams, inbound streams, first number
_INIT_CHUNK, _INIT_ACK_CHUNK, _ABORT_CHUNK = 1, 2, 6
_REFLECTED = 0x01  # T: the tag of an ABORT is that of the packet which it answers
_WINDOW_BYTES = 65_536
_FIRST_PORT = 32_768
_MAX_BYTES = 4096


def sctp(target: Target, way: Way) -> Check:
    tag, first = (number or 1 for number in struct.unpack("!II", os.urandom(8)))
    port = _FIRST_PORT + int.from_bytes(os.urandom(2), "big") % _FIRST_PORT
    with opened(target.asked, way, socket.SOCK_RAW, _PROTOCOL) as sock:
        hear_errors(sock)
        sock.connect((target.place[0], 0))
        sock.send(_packet(port, target.port, 0, _INIT_CHUNK, _INIT.pack(tag, _WINDOW_BYTES, 1, 1, first)))
        while True:
            answer = yield from datagram(sock, _MAX_BYTES)
            if target.asked.version == 4:
                answer = answer[4 * (answer[0] & 0xF) :] if answer else b""
            kind, flags, body = _parsed(answer, target.port, port)
            answered_tag = int.from_bytes(answer[4:8], "big")
            if kind == _INIT_ACK_CHUNK and answered_tag == tag and len(body) >= _INIT.size:
                (theirs,) = struct.unpack_from("!I", body)
                if not theirs:
                    return failed("the INIT ACK has no tag")
                sock.send(_packet(port, target.port, theirs, _ABORT_CHUNK, b""))
                return OK
            if kind == _ABORT_CHUNK and answered_tag == (0 if flags & _REFLECTED else tag):
                return failed("refused")


def _parsed(answer: bytes, source: int, destination: int) -> tuple[int, int, bytes]:
    """Type, flags and body of the first chunk of a packet between these ports; type -1 if it is none."""
    if len(answer) < _COMMON.size + _CHUNK.size or _COMMON.unpack_from(answer)[:2] != (source, destination):
        return -1, 0, b""
    kind, flags, length = _CHUNK.unpack_from(answer, _COMMON.size)
    return kind, flags, answer[_COMMON.size + _CHUNK.size : _COMMON.size + length]


def _packet(source: int, destination: int, tag: int, kind: int, body: bytes) -> bytes:
    chunk = _CHUNK.pack(kind, 0, _CHUNK.size + len(body)) + body
    plain = _COMMON.pack(source, destination, tag, bytes(4)) + chunk
    return _COMMON.pack(source, destination, tag, crc32c(plain).to_bytes(4, "little")) + chunk


def crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))
