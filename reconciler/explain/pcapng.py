# SPDX-License-Identifier: Apache-2.0
"""Frames written as pcapng, for Wireshark and its like, with a comment each: draft-ietf-opsawg-pcapng."""

from __future__ import annotations

import struct
from collections.abc import Mapping

_SECTION, _INTERFACE, _ENHANCED = 0x0A0D0D0A, 1, 6
_BYTE_ORDER, _ETHERNET = 0x1A2B3C4D, 1
_END, _COMMENT, _NAME, _FLAGS, _RESOLUTION = 0, 1, 2, 2, 9
_NANOSECONDS = 9
_INBOUND, _OUTBOUND = 1, 2


class Writer:
    """Makes the blocks of one section. Interfaces are numbered in the order in which they are first named."""

    def __init__(self) -> None:
        self._interfaces: dict[str, int] = {}

    def head(self) -> bytes:
        """What the file begins with."""
        return _block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1))

    def packet(
        self, interface: str, at_ns: int, frame: bytes, length: int, comment: str, *, is_inbound: bool
    ) -> bytes:
        """A frame, of which `length` bytes were on the wire, at a time since 1970; its interface before it, if new."""
        made = b""
        if interface not in self._interfaces:
            self._interfaces[interface] = len(self._interfaces)
            options = _options({_NAME: interface.encode(), _RESOLUTION: bytes([_NANOSECONDS])})
            made = _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0) + options)
        direction = struct.pack("<I", _INBOUND if is_inbound else _OUTBOUND)
        head = struct.pack(
            "<IIIII", self._interfaces[interface], at_ns >> 32, at_ns & 0xFFFF_FFFF, len(frame), length
        )
        options = _options({_COMMENT: comment.encode(), _FLAGS: direction})
        return made + _block(_ENHANCED, head + _padded(frame) + options)


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(values: Mapping[int, bytes]) -> bytes:
    made = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in values.items())
    return made + struct.pack("<HH", _END, 0)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
