# SPDX-License-Identifier: Apache-2.0
"""Frames made from the addresses and ports of a question to `explain`."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from reconciler.errors import UsageError
from reconciler.model import Address

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}
"""RFC 5237, IANA protocol numbers."""
ICMP6 = 58

TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
"""From the lowest bit on: RFC 9293, section 3.1."""

SENDER = bytes.fromhex("0200ff000001")
"""The MAC that frames come from: no machine has it, so an answer to it is recognised."""

_EXAMPLES = "198.51.100.7:40000 or [2001:db8::7]:40000"
_TTL = 64
_IPV4, _IPV6 = 0x0800, 0x86DD
_DONT_FRAGMENT = 0x4000
_SCTP_INIT = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65_535, 10, 10, 7)  # RFC 9260, section 3.3.2


@dataclass(frozen=True, slots=True)
class Place:
    """An address and, except for ICMP, a port."""

    address: Address
    port: int = 0


def parse_place(text: str, protocol: str) -> Place:
    """`ADDRESS:PORT`, an IPv6 address in brackets; for ICMP the address alone. Raises UsageError."""
    if protocol == "icmp":
        alone = text.removeprefix("[").removesuffix("]")
        if with_port := re.fullmatch(r"\[(.*)\]:[0-9]+|([^:]*):[0-9]+", text):
            host = with_port[1] or with_port[2]
            raise UsageError(f"{text!r} has a port, and icmp has none", hint=f"write {host}")
        return Place(_address(alone, text, "198.51.100.7 or 2001:db8::7"))
    if _is_address(text):
        shown = f"[{text}]" if ":" in text else text
        raise UsageError(
            f"{text!r} has no port, and {protocol} needs one", hint=f"write {shown}:PORT, or --proto icmp"
        )
    match = re.fullmatch(r"\[([^\]]*)\]:([0-9]+)|([^:]*):([0-9]+)", text)
    if not match:
        hint = "an IPv6 address stands in brackets: [2001:db8::7]:40000" if text.count(":") > 1 else ""
        raise UsageError(f"{text!r} is no address with a port", hint=hint or f"write it like {_EXAMPLES}")
    host, port = match[1] or match[3], int(match[2] or match[4])
    if not 0 < port < 65_536:
        raise UsageError(f"{port} in {text!r} is no port", hint="ports are numbers from 1 to 65535")
    return Place(_address(host, text), port)


def _address(host: str, text: str, examples: str = _EXAMPLES) -> Address:
    try:
        return ip_address(host)
    except ValueError as error:
        where = f" in {text!r}" if text != host else ""
        raise UsageError(f"{host!r}{where} is no IP address", hint=f"write it like {examples}") from error


def _is_address(text: str) -> bool:
    """Whether a text is an address and nothing else. False for an IPv6 address whose last part may be a port."""
    try:
        found = ip_address(text)
    except ValueError:
        return False
    return found.version == 4 or not re.search(":[0-9]{2,5}$", text)


def parse_flags(text: str) -> tuple[str, ...]:
    """TCP flags, e.g. `syn` or `psh,ack`, from the lowest bit on. Raises UsageError."""
    names = set(text.lower().split(","))
    if unknown := sorted(names - set(TCP_FLAGS)):
        raise UsageError(f"{unknown[0]!r} is no TCP flag", hint=f"flags are {', '.join(TCP_FLAGS)}")
    return tuple(flag for flag in TCP_FLAGS if flag in names)


def frame(
    protocol: str, source: Place, destination: Place, to: bytes, *, flags: Sequence[str] = (),
    length: int | None = None,
) -> bytes:  # fmt: skip
    """An Ethernet frame for the MAC `to` with a packet of this protocol.

    An SCTP packet is an INIT, an ICMP packet an echo request; TCP has `flags`. `length` is that of the IP packet in
    bytes, filled up with zeros. Checksums are right, except that SCTP's is zero, as of a sender that computes none.
    Raises UsageError if the addresses are of two families or the length is impossible.
    """
    if source.address.version != destination.address.version:
        raise UsageError(
            f"{source.address} is of IPv{source.address.version}, {destination.address} of "
            f"IPv{destination.address.version}: no packet has both"
        )
    transport = _transport(protocol, source, destination, flags)
    shortest = len(transport) + (20 if source.address.version == 4 else 40)
    length = shortest if length is None else length
    if not shortest <= length < 65_536:
        raise UsageError(f"no such packet has {length} bytes", hint=f"from {shortest} to 65535")
    transport += bytes(length - shortest)
    number = ICMP6 if protocol == "icmp" and source.address.version == 6 else PROTOCOLS[protocol]
    if protocol == "udp":
        transport = transport[:4] + struct.pack("!H", len(transport)) + transport[6:]
    transport = _summed(number, source.address, destination.address, transport)
    if isinstance(source.address, IPv4Address):
        return to + SENDER + struct.pack("!H", _IPV4) + _ipv4(number, source, destination, length) + transport
    ip = struct.pack("!IHBB", 6 << 28, len(transport), number, _TTL) + source.address.packed
    return to + SENDER + struct.pack("!H", _IPV6) + ip + destination.address.packed + transport


def _transport(protocol: str, source: Place, destination: Place, flags: Sequence[str]) -> bytes:
    """The header after the IP header, without checksum and length."""
    ports = struct.pack("!HH", source.port, destination.port)
    match protocol:
        case "tcp":
            bits = sum(1 << TCP_FLAGS.index(flag) for flag in flags)
            return ports + struct.pack("!IIBBHHH", 1, int("ack" in flags), 5 << 4, bits, 65_535, 0, 0)
        case "udp":
            return ports + bytes(4)
        case "sctp":
            return ports + bytes(8) + _SCTP_INIT
        case "icmp":
            return struct.pack("!BBHHH", 8 if source.address.version == 4 else 128, 0, 0, 1, 1)
    raise UsageError(f"{protocol!r} is no protocol to ask about", hint=f"there are {', '.join(PROTOCOLS)}")


def _ipv4(number: int, source: Place, destination: Place, length: int) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, _DONT_FRAGMENT, _TTL, number, 0)
    header += source.address.packed + destination.address.packed
    return header[:10] + _checksum(header) + header[12:]


_CHECKSUM_AT = {PROTOCOLS["tcp"]: 16, PROTOCOLS["udp"]: 6, PROTOCOLS["icmp"]: 2, ICMP6: 2}


def _summed(number: int, source: Address, destination: Address, transport: bytes) -> bytes:
    """The transport header with its checksum: RFC 9293, RFC 768, RFC 792, RFC 4443; RFC 8200 for the pseudo header."""
    at = _CHECKSUM_AT.get(number)
    if at is None:
        return transport
    covered = transport
    if number != PROTOCOLS["icmp"]:
        covered = source.packed + destination.packed + struct.pack("!II", len(transport), number) + transport
    total = _checksum(covered)
    if number == PROTOCOLS["udp"] and total == bytes(2):
        total = b"\xff\xff"
    return transport[:at] + total + transport[at + 2 :]


def _checksum(content: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(content) + 1) // 2}H", content + bytes(len(content) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
