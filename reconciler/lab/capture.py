# SPDX-License-Identifier: Apache-2.0
"""Packets as they pass between the switch and a balancer.

They are captured at the switch's port: packets that XDP handles natively never reach a packet socket on the balancer's
own interface. Segments of a TCP stream may have been merged before they are seen, so counts are lower bounds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from reconciler.lab import LabError
from reconciler.lab.netns import inside
from reconciler.model import Address

_ETH_P_ALL = 3
_ETHERTYPES = {0x0800: 4, 0x86DD: 6}
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 << 20
_SNAP_BYTES = 128
_TCP, _UDP = 6, 17
_IN_TUNNELS = {4: 4, 41: 6}
"""The version of IP that follows, by protocol number."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment or a UDP datagram. `to_balancer`: whether it was on its way to the balancer, or came from it.
    `mac` is the frame's destination, `tunnel` the destination of the outer packet, if it is in a tunnel."""

    to_balancer: bool
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    flags: int
    """The low byte of the TCP flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16; of a datagram 0."""
    ttl: int
    mac: str
    tunnel: Address | None


class Capture:
    """Packets since the capture began."""

    def __init__(self, tap: socket.socket, balancer_mac: bytes) -> None:
        self._tap, self._mac = tap, balancer_mac
        self._packets: list[Packet] = []

    def packets(self) -> list[Packet]:
        """All packets so far. Raises LabError if there were more than fit into the buffer."""
        while True:
            try:
                frame, origin = self._tap.recvfrom(_SNAP_BYTES)
            except BlockingIOError:
                break
            to_balancer = origin[2] == _PACKET_OUTGOING
            # The switch also floods frames for other machines to this port.
            if not to_balancer or frame[:6] == self._mac:
                self._packets += _decode(frame, to_balancer)
        _seen, lost = struct.unpack("=II", self._tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            raise LabError(f"the capture lost {lost} packets", hint="send less traffic, or look more often")
        return self._packets


@contextmanager
def capture(switch: str, port: str, balancer_mac: str) -> Iterator[Capture]:
    """Watch a port of the switch (a namespace) that faces the balancer's interface with this MAC."""

    def open_tap() -> socket.socket:
        # Protocol 0 until the socket is bound, or it would take packets of all devices.
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        tap.setblocking(False)
        tap.bind((port, _ETH_P_ALL))
        return tap

    with inside(switch, open_tap) as tap:
        yield Capture(tap, bytes.fromhex(balancer_mac.replace(":", "")))


def _decode(frame: bytes, to_balancer: bool) -> Iterator[Packet]:
    """The packet in an Ethernet frame, also if it is in a tunnel; nothing if there is none."""
    version = _ETHERTYPES.get(struct.unpack_from("!H", frame, 12)[0]) if len(frame) >= 14 else None
    header = _header(frame, 14, version)
    tunnel = None
    if header and header.protocol in _IN_TUNNELS:
        tunnel = header.destination
        header = _header(frame, header.end, _IN_TUNNELS[header.protocol])
    if header is None or header.protocol not in (_TCP, _UDP):
        return
    is_tcp = header.protocol == _TCP
    if len(frame) < header.end + (14 if is_tcp else 8):
        return
    source_port, destination_port = struct.unpack_from("!HH", frame, header.end)
    yield Packet(
        to_balancer, header.source, source_port, header.destination, destination_port,
        flags=frame[header.end + 13] if is_tcp else 0, ttl=header.ttl, mac=frame[:6].hex(":"), tunnel=tunnel,
    )  # fmt: skip


class _Header(NamedTuple):
    """An IP header. `end` is the offset in the frame at which its payload begins."""

    protocol: int
    source: Address
    destination: Address
    ttl: int
    end: int


def _header(frame: bytes, at: int, version: int | None) -> _Header | None:
    """The IP header at an offset, None if there is none. IPv6 extension headers count as payload."""
    ip = frame[at : at + 40]
    if version == 4 and len(ip) >= 20:
        return _Header(ip[9], ip_address(ip[12:16]), ip_address(ip[16:20]), ip[8], at + 4 * (ip[0] & 15))
    if version == 6 and len(ip) == 40:
        return _Header(ip[6], ip_address(ip[8:24]), ip_address(ip[24:40]), ip[7], at + 40)
    return None
