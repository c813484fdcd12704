# SPDX-License-Identifier: Apache-2.0
"""The headers of a frame, from the outside in, for people and machines to read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from reconciler.explain.packet import ICMP6, PROTOCOLS, TCP_FLAGS

Header = Mapping[str, str | int]
"""The key `header` holds the header's name; the other keys are its fields."""

_IPV4, _IPV6, _ARP, _VLANS = 0x0800, 0x86DD, 0x0806, (0x8100, 0x88A8)
_IPIP, _IP6 = 4, 41
_WITH_PORTS = {number: name for name, number in PROTOCOLS.items() if name != "icmp"}
_SHORTEST = {"tcp": 20, "udp": 8, "sctp": 12}
_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded",
         12: "parameter problem"}  # fmt: skip
_ICMP6 = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem", 128: "echo request",
          129: "echo reply", 135: "neighbour solicitation", 136: "neighbour advertisement"}  # fmt: skip
_SCTP_CHUNKS = {0: "data", 1: "init", 2: "init ack", 3: "sack", 6: "abort", 7: "shutdown", 10: "cookie echo",
                11: "cookie ack"}  # fmt: skip


def headers(frame: bytes) -> list[Header]:
    """The Ethernet header and all known headers in the frame, including those of the packet that an ICMP error quotes.

    A header that is cut off ends the list with `{"header": "cut off"}`.
    """
    found: list[Header] = []
    try:
        for header in _ethernet(frame):
            found.append(header)  # noqa: PERF402 - keeps the headers before one that is cut off
    except struct.error:
        found.append({"header": "cut off"})
    return found


def _ethernet(frame: bytes) -> Iterator[Header]:
    destination, source, kind = struct.unpack_from("!6s6sH", frame)
    yield {"header": "ethernet", "source": source.hex(":"), "destination": destination.hex(":")}
    position = 14
    while kind in _VLANS:
        tag, kind = struct.unpack_from("!HH", frame, position)
        yield {"header": "vlan", "id": tag & 0xFFF}
        position += 4
    if kind == _IPV4:
        yield from _ipv4(frame[position:])
    elif kind == _IPV6:
        yield from _ipv6(frame[position:])
    else:
        yield {"header": "arp" if kind == _ARP else f"ethertype 0x{kind:04x}"}


def _ipv4(packet: bytes) -> Iterator[Header]:
    first, tos, length, identification, offset, ttl, protocol, source, destination = struct.unpack_from(
        "!BBHHHBBxx4s4s", packet
    )
    header: dict[str, str | int] = {
        "header": "ipv4", "source": str(ip_address(source)), "destination": str(ip_address(destination)),
        "ttl": ttl, "tos": tos, "length": length, "identification": identification,
    }  # fmt: skip
    header |= {"dont_fragment": 1} if offset & 0x4000 else {}
    header |= {"more_fragments": 1} if offset & 0x2000 else {}
    header |= {"fragment_offset": (offset & 0x1FFF) * 8} if offset & 0x1FFF else {}
    header |= {"options_bytes": (first & 0xF) * 4 - 20} if first & 0xF > 5 else {}
    yield header
    if not offset & 0x1FFF:
        yield from _transport(protocol, packet[(first & 0xF) * 4 :])


def _ipv6(packet: bytes) -> Iterator[Header]:
    first, length, protocol, ttl, source, destination = struct.unpack_from("!IHBB16s16s", packet)
    yield {
        "header": "ipv6", "source": str(ip_address(source)), "destination": str(ip_address(destination)),
        "ttl": ttl, "tos": first >> 20 & 0xFF, "length": 40 + length, "flow_label": first & 0xFFFFF,
    }  # fmt: skip
    yield from _transport(protocol, packet[40:])


def _transport(protocol: int, content: bytes) -> Iterator[Header]:
    if protocol == _IPIP:
        yield from _ipv4(content)
    elif protocol == _IP6:
        yield from _ipv6(content)
    elif protocol in _WITH_PORTS:
        source, destination = struct.unpack_from("!HH", content)
        name = _WITH_PORTS[protocol]
        header: dict[str, str | int] = {"header": name, "source_port": source, "destination_port": destination}
        if name == "tcp" and len(content) > 13:
            header["flags"] = ",".join(flag for bit, flag in enumerate(TCP_FLAGS) if content[13] >> bit & 1) or "none"
        elif name == "sctp" and len(content) > 12:
            header["chunk"] = _SCTP_CHUNKS.get(content[12], str(content[12]))
        yield header
        if len(content) < _SHORTEST[name]:
            yield {"header": "cut off"}
    elif protocol in (PROTOCOLS["icmp"], ICMP6):
        yield from _icmp(protocol, content)
    else:
        yield {"header": f"protocol {protocol}"}


def _icmp(protocol: int, content: bytes) -> Iterator[Header]:
    kind, code, detail = struct.unpack_from("!BBxxI", content)
    is_4 = protocol == PROTOCOLS["icmp"]
    header: dict[str, str | int] = {
        "header": "icmp" if is_4 else "icmp6", "type": (_ICMP if is_4 else _ICMP6).get(kind, str(kind)), "code": code,
    }  # fmt: skip
    if is_4 and (kind, code) == (_UNREACHABLE, _FRAGMENTATION_NEEDED):
        header |= {"type": "fragmentation needed", "mtu": detail & 0xFFFF}
    elif not is_4 and kind == 2:
        header |= {"mtu": detail}
    yield header
    is_error = kind in (3, 5, 11, 12) if is_4 else kind < 128
    if is_error:
        yield {"header": "quoted"}
        yield from (_ipv4 if is_4 else _ipv6)(content[8:])
