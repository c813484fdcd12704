# SPDX-License-Identifier: Apache-2.0
"""Frames from captures: pcap, and pcapng, which Wireshark's tools write.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import UsageError

_ETHERNET = 1
_VLAN = 0x8100
_SHORTEST = 14  # the header of Ethernet
_PCAP_MAGICS = (0xA1B2C3D4, 0xA1B23C4D)  # times in microseconds, in nanoseconds
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_MAX_BLOCK_BYTES = 1 << 24
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Captured:
    """A frame. `length` is its length on the wire, in bytes; the capture may hold less of it."""

    frame: bytes
    length: int

    def tagged(self, tag: int | None) -> Captured:
        """The same frame in a VLAN: IEEE 802.1Q."""
        if tag is None:
            return self
        header = _VLAN.to_bytes(2) + tag.to_bytes(2)
        return Captured(self.frame[:12] + header + self.frame[12:], self.length + len(header))


def read_capture(path: Path) -> list[Captured]:
    """The frames of a capture file, in order. Raises UsageError if it can't be read or is not of Ethernet."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB", hint="leave packets out: tcpdump -r FILE -w")
    try:
        found = list(_pcapng(content) if content[:4] == _SECTION.to_bytes(4) else _pcap(content))
    except _DamagedError as error:
        hint = "lbctl reads pcap and pcapng files of Ethernet: tcpdump -i INTERFACE -w FILE"
        raise UsageError(f"{path}: {error}", hint=hint) from error
    except struct.error as error:
        raise UsageError(f"{path} ends in the middle of a frame: the capture was cut off") from error
    for number, captured in enumerate(found, start=1):
        if len(captured.frame) < _SHORTEST:
            raise UsageError(f"{path}: of frame {number} only {len(captured.frame)} bytes were captured")
    return found


class _DamagedError(Exception):
    pass


def _pcap(content: bytes) -> Iterator[Captured]:
    for order in "<>":
        if len(content) >= 24 and struct.unpack_from(f"{order}I", content)[0] in _PCAP_MAGICS:
            break
    else:
        raise _DamagedError("this is no capture")
    _check_link(struct.unpack_from(f"{order}I", content, 20)[0] & 0xFFFF)
    position = 24
    while position < len(content):
        captured, length = struct.unpack_from(f"{order}8xII", content, position)
        yield Captured(_bytes(content, position + 16, captured), length)
        position += 16 + captured


def _pcapng(content: bytes) -> Iterator[Captured]:
    order, position = "<", 0
    snap_lengths: list[int] = []
    while position < len(content):
        if content[position : position + 4] == _SECTION.to_bytes(4):
            order = "<" if struct.unpack_from("<I", content, position + 8)[0] == _BYTE_ORDER else ">"
            snap_lengths = []
        kind, size = struct.unpack_from(f"{order}II", content, position)
        if not 12 <= size <= _MAX_BLOCK_BYTES or size % 4:
            raise _DamagedError(f"the block at byte {position} has the impossible length {size}")
        (body,) = struct.unpack_from(f"{size - 12}s4x", content, position + 8)
        if kind == _INTERFACE:
            link, snap_length = struct.unpack_from(f"{order}HxxI", body)
            _check_link(link)
            snap_lengths.append(snap_length)
        elif kind == _ENHANCED:
            captured, length = struct.unpack_from(f"{order}12xII", body)
            yield Captured(_bytes(body, 20, captured), length)
        elif kind == _SIMPLE:
            (length,) = struct.unpack_from(f"{order}I", body)
            captured = min(length, snap_lengths[0] or length) if snap_lengths else length
            yield Captured(_bytes(body, 4, captured), length)
        position += size


def _bytes(content: bytes, start: int, count: int) -> bytes:
    found: bytes = struct.unpack_from(f"{count}s", content, start)[0]
    return found


def _check_link(link: int) -> None:
    if link != _ETHERNET:
        raise _DamagedError(f"this capture is not of Ethernet but of link type {link}")
