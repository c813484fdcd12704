# SPDX-License-Identifier: Apache-2.0
"""Frames, and what NAT makes of them: an independent model that computes every checksum from scratch."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, crc32c
from scapy.packet import Packet, Raw

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
"""Of the frames that come in. The program looks at neither."""

ETHERNET, IPV4, IPV6 = 14, 20, 40
"""Bytes of the headers."""
_SCTP = 132


@dataclass(frozen=True, slots=True)
class At:
    """An address and a port."""

    address: str
    port: int


def tcp(source: At, destination: At, flags: str = "S", payload: bytes = b"", /, **ip: object) -> bytes:
    """A frame with a TCP segment of these flags; named arguments are fields of the IP header.

    Whoever sends it, the other side waits for its number, or for one a little below.
    """
    return frame(source.address, destination.address, TCP(
        sport=source.port, dport=destination.port, flags=flags, seq=0x1000, ack=0x0F00, window=0xFAF0,
    ) / Raw(payload), **ip)  # fmt: skip


def udp(source: At, destination: At, **ip: object) -> bytes:
    return frame(source.address, destination.address, UDP(sport=source.port, dport=destination.port) / b"hello", **ip)


def sctp(source: At, destination: At, chunks: Packet | None = None, tag: int = 0, /, **ip: object) -> bytes:
    """A frame with an SCTP packet of these chunks; of none, one that opens an association."""
    return frame(source.address, destination.address, SCTP(
        sport=source.port, dport=destination.port, tag=tag,
    ) / (chunks or SCTPChunkInit(init_tag=7)), **ip)  # fmt: skip


def echo(source: str, destination: str, **ip: object) -> bytes:
    """A ping."""
    return frame(source, destination, ICMP(id=7, seq=1) / b"hello", **ip)


def frame(source: str, destination: str, transport: Packet, **ip: object) -> bytes:
    return bytes(ether() / IP(**({"src": source, "dst": destination, "id": 0x1234} | ip)) / transport)


def frame6(source: str, destination: str, transport: Packet, **ip: object) -> bytes:
    return bytes(ether() / IPv6(**({"src": source, "dst": destination} | ip)) / transport)


def udp6(source: At, destination: At, payload: bytes = b"hello", **ip: object) -> bytes:
    """As `udp`, for IPv6."""
    segment = UDP(sport=source.port, dport=destination.port) / Raw(payload)
    return frame6(source.address, destination.address, segment, **ip)


def tcp6(source: At, destination: At, flags: str = "S", payload: bytes = b"", /, **ip: object) -> bytes:
    """As `tcp`, for IPv6."""
    return frame6(source.address, destination.address, TCP(
        sport=source.port, dport=destination.port, flags=flags, seq=0x1000, ack=0x0F00, window=0xFAF0,
    ) / Raw(payload), **ip)  # fmt: skip


def ether(**fields: Any) -> Packet:
    return Ether(src=MACS[0], dst=MACS[1], **fields)


def tagged(content: bytes, tag: int, priority: int = 0, type_: int = 0x8100) -> bytes:
    """The same frame in a VLAN: IEEE 802.1Q."""
    return content[:12] + struct.pack(">HH", type_, priority << 13 | tag) + content[12:]


def padded(content: bytes, length: int = 60) -> bytes:
    """As Ethernet pads what is too short for it."""
    return content.ljust(length, b"\xee")


def translated(content: bytes, *, source: At | None = None, destination: At | None = None) -> bytes:
    """What the frame is with another source or destination. Everything else stays, padding included."""
    packet = Ether(content)
    if IP in packet and packet[IP].proto == _SCTP:
        return _translated_sctp(content, source, destination)
    ports = packet[UDP] if UDP in packet else packet[TCP]
    ip = packet[IPv6] if IPv6 in packet else packet[IP]
    if source:
        ip.src, ports.sport = source.address, source.port
    if destination:
        ip.dst, ports.dport = destination.address, destination.port
    return _summed(packet)


def _translated_sctp(content: bytes, source: At | None, destination: At | None) -> bytes:
    """By bytes, since chunks may be anything. A packet whose sender computed no checksum gets none."""
    start = ETHERNET + IPV4
    ip, end = IP(content[ETHERNET:start]), ETHERNET + struct.unpack_from("!H", content, ETHERNET + 2)[0]
    packet = bytearray(content[start:end])
    for at, name, offset in ((source, "src", 0), (destination, "dst", 2)):
        if at:
            setattr(ip, name, at.address)
            struct.pack_into("!H", packet, offset, at.port)
    del ip.chksum
    if any(packet[8:12]):
        packet[8:12] = bytes(4)
        struct.pack_into("!I", packet, 8, crc32c(packet))
    return content[:ETHERNET] + bytes(ip) + bytes(packet) + content[end:]


def forwarded(content: bytes, macs: tuple[str, str]) -> bytes:
    """What the frame is after one hop: new MACs (source, destination) and a TTL less by one."""
    packet = Ether(content)
    packet.src, packet.dst = macs
    if IPv6 in packet:
        packet[IPv6].hlim -= 1
    else:
        packet[IP].ttl -= 1
        del packet[IP].chksum
    return bytes(packet)


def tunnelled(content: bytes, source: str, destination: str, macs: tuple[str, str]) -> bytes:
    """What the frame is after a hop into an IPIP tunnel: forwarded, with another IP header before it."""
    inner = forwarded(content, macs)
    packet = Ether(inner)[IP]
    outer = IP(
        src=source, dst=destination, tos=packet.tos, len=IPV4 + packet.len, id=0, flags="DF", ttl=64, proto=4,
    )  # fmt: skip
    return inner[:ETHERNET] + bytes(outer) + inner[ETHERNET:]


def tunnelled6(content: bytes, source: str, destination: str, macs: tuple[str, str], label: int) -> bytes:
    """What the frame, of IPv4 or IPv6, is after a hop into an IPv6 tunnel."""
    inner = Ether(forwarded(content, macs))
    if IPv6 in inner:
        number, tos, length = 41, inner[IPv6].tc, IPV6 + inner[IPv6].plen
    else:
        number, tos, length = 4, inner[IP].tos, inner[IP].len
    outer = IPv6(src=source, dst=destination, tc=tos, fl=label, plen=length, nh=number, hlim=64)
    return bytes(Ether(src=macs[0], dst=macs[1], type=0x86DD)) + bytes(outer) + bytes(inner)[ETHERNET:]


def echoed(content: bytes) -> bytes:
    """The reply to a ping, of either family: what a host would send, padding included."""
    packet = Ether(content)
    packet.src, packet.dst = packet.dst, packet.src
    if IPv6 in packet:
        ip = packet[IPv6]
        ip.src, ip.dst, ip.hlim, ip.payload.type = ip.dst, ip.src, 64, 129
        del ip.payload.cksum
        return bytes(packet)
    ip = packet[IP]
    ip.src, ip.dst, ip.ttl, packet[ICMP].type = ip.dst, ip.src, 64, 0
    del ip.chksum, packet[ICMP].chksum
    whole = bytearray(bytes(packet))
    check = slice(ETHERNET + IPV4 + 2, ETHERNET + IPV4 + 4)
    if not any(whole[check]):  # the form of zero that is right also where all the rest is zero
        whole[check] = b"\xff\xff"
    return bytes(whole)


def answered6(content: bytes, icmp: Packet, quoted: int) -> bytes:
    """As `answered`, for IPv6."""
    packet = Ether(content)
    quote = content[ETHERNET:][:quoted]
    answer = IPv6(src=packet[IPv6].dst, dst=packet[IPv6].src, hlim=64) / icmp / Raw(quote)
    return bytes(Ether(src=packet.dst, dst=packet.src) / answer)


def answered(content: bytes, icmp: Packet, quoted: int) -> bytes:
    """The ICMP error that goes back to the sender of a frame, from where that was to go."""
    packet = Ether(content)
    quote = content[ETHERNET:][:quoted]
    answer = IP(src=packet[IP].dst, dst=packet[IP].src, tos=0xC0, id=0, flags="DF", ttl=64) / icmp / Raw(quote)
    return bytes(Ether(src=packet.dst, dst=packet.src) / answer)


def _summed(packet: Packet) -> bytes:
    """The frame with its checksums computed anew by scapy. A datagram whose sender computed none gets none."""
    if IPv6 not in packet:
        del packet[IP].chksum
    if UDP not in packet:
        del packet[TCP].chksum
    elif packet[UDP].chksum:
        del packet[UDP].chksum
    return bytes(packet)
