# SPDX-License-Identifier: Apache-2.0
"""Packets as they pass between the switch and a balancer.

They are taken at the switch's port: what XDP handles natively never reaches a packet socket on the balancer's
own interface. Segments of a TCP stream may have been merged before they are seen, so counts are lower bounds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from reconciler.lab import LabError
from reconciler.lab.netns import inside

_ETH_P_ALL = 3
_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 << 20
_SNAP_BYTES = 128
_IPIP, _TCP, _UDP = 4, 6, 17


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment or a UDP datagram. `to_balancer`: whether it was on its way to the balancer, or came from it.
    `mac` is that of the frame's destination, `tunnel` the destination of the packet that it is in, if it is in one."""

    to_balancer: bool
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    flags: int
    """The low byte of the TCP flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16; of a datagram 0."""
    ttl: int
    mac: str
    tunnel: IPv4Address | None


class Capture:
    """Packets since the capture began."""

    def __init__(self, tap: socket.socket, balancer_mac: bytes) -> None:
        self._tap, self._mac = tap, balancer_mac
        self._packets: list[Packet] = []

    def packets(self) -> list[Packet]:
        """All so far. Raises LabError if there were more than fit into the buffer."""
        while True:
            try:
                frame, origin = self._tap.recvfrom(_SNAP_BYTES)
            except BlockingIOError:
                break
            to_balancer = origin[2] == _PACKET_OUTGOING
            # What the switch only floods to this port is for somebody else.
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
        # Protocol 0 until it is bound, or it would take packets of all devices.
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        tap.setblocking(False)
        tap.bind((port, _ETH_P_ALL))
        return tap

    with inside(switch, open_tap) as tap:
        yield Capture(tap, bytes.fromhex(balancer_mac.replace(":", "")))


def _decode(frame: bytes, to_balancer: bool) -> Iterator[Packet]:
    """The packet in an Ethernet frame, be it in a tunnel of IP in IP, or nothing."""
    if len(frame) < 34 or struct.unpack_from("!H", frame, 12)[0] != _ETH_P_IP:
        return
    ip, tunnel = 14, None
    if frame[ip + 9] == _IPIP:
        tunnel = IPv4Address(frame[ip + 16 : ip + 20])
        ip += 4 * (frame[ip] & 15)
    if len(frame) < ip + 20 or frame[ip + 9] not in (_TCP, _UDP):
        return
    ports = ip + 4 * (frame[ip] & 15)
    is_tcp = frame[ip + 9] == _TCP
    if len(frame) < ports + (14 if is_tcp else 8):
        return
    source_port, destination_port = struct.unpack_from("!HH", frame, ports)
    yield Packet(
        to_balancer, IPv4Address(frame[ip + 12 : ip + 16]), source_port, IPv4Address(frame[ip + 16 : ip + 20]),
        destination_port, flags=frame[ports + 13] if is_tcp else 0, ttl=frame[ip + 8], mac=frame[:6].hex(":"),
        tunnel=tunnel,
    )  # fmt: skip
