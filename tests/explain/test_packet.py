# SPDX-License-Identifier: Apache-2.0
"""The frames that are asked about are those that scapy makes of the same words."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet

from reconciler.errors import UsageError
from reconciler.explain.packet import Place, frame, parse_flags, parse_place

TO = bytes.fromhex("020f00000001")
FOUR = ("198.51.100.7:40000", "20.20.20.1:80")
SIX = ("[2001:db8::7]:40000", "[2001:db8:20::1]:80")


def made(protocol: str, source: str, destination: str, flags: str = "syn", length: int | None = None) -> Packet:
    places = [parse_place(text, protocol) for text in (source, destination)]
    chosen = parse_flags(flags) if protocol == "tcp" else ()
    return Ether(frame(protocol, *places, TO, flags=chosen, length=length))


def check(packet: Packet) -> None:
    """Every length and checksum is what scapy computes."""
    whole = bytes(packet)
    for layer in (IP, TCP, UDP, ICMP, IPv6, ICMPv6EchoRequest):
        if layer in packet:
            for field in ("chksum", "cksum", "len", "plen"):
                if field in packet[layer].fields:
                    delattr(packet[layer], field)
    assert bytes(packet) == whole
    assert packet.dst == TO.hex(":")


@pytest.mark.parametrize("where", [FOUR, SIX], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("length", [None, 201, 1500])
@pytest.mark.parametrize(("protocol", "layer"), [("tcp", TCP), ("udp", UDP)])
def test_ports_lengths_and_checksums_are_right(
    where: tuple[str, str], length: int | None, protocol: str, layer: type[Packet]
) -> None:
    packet = made(protocol, *where, length=length)
    check(packet)
    assert (packet[layer].sport, packet[layer].dport) == (40_000, 80)
    if length:
        assert len(packet) == 14 + length


def test_flags_of_tcp_are_as_asked() -> None:
    assert str(made("tcp", *FOUR, flags="psh,ack")[TCP].flags) == "PA"
    assert str(made("tcp", *FOUR, flags="SYN")[TCP].flags) == "S"


@pytest.mark.parametrize("where", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_sctp_opens_an_association(where: tuple[str, str]) -> None:
    packet = made("sctp", *where)
    assert packet[SCTP].tag == 0
    assert packet[SCTPChunkInit].init_tag != 0


def test_icmp_is_an_echo_request() -> None:
    packet = made("icmp", "198.51.100.7", "20.20.20.1")
    check(packet)
    assert packet[ICMP].type == 8
    packet = made("icmp", "2001:db8::7", "[2001:db8:20::1]")
    check(packet)
    assert ICMPv6EchoRequest in packet


def test_places_are_read() -> None:
    assert str(parse_place("[2001:db8::7]:443", "tcp").address) == "2001:db8::7"
    assert parse_place("192.0.2.1:65535", "udp").port == 65_535


@pytest.mark.parametrize(
    "text", ["192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.256:80", "2001:db8::7:80", "[2001:db8::7]", "a:1",
             "", "[192.0.2.1:80", "192.0.2.1:٣"],
)  # fmt: skip
def test_what_is_no_place_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_place(text, "tcp")
    assert refused.value.hint


def test_two_families_make_no_packet() -> None:
    with pytest.raises(UsageError, match=r"IPv4.*IPv6"):
        made("tcp", FOUR[0], SIX[1])


@pytest.mark.parametrize("length", [39, 65_536])
def test_impossible_lengths_are_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"{length} bytes"):
        made("tcp", *FOUR, length=length)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(UsageError, match="sin"):
        parse_flags("sin")


def test_a_udp_checksum_is_never_zero() -> None:
    """Zero means that there is none: RFC 768."""
    def checksum(port: int) -> int:
        places = [parse_place(text, "udp") for text in (f"0.0.0.1:{port}", "0.0.0.1:9")]
        return int.from_bytes(frame("udp", *places, TO)[40:42])

    one_more = 1 + checksum(1)  # the port that makes the sum complete
    assert checksum(one_more - 1) == 1
    assert checksum(one_more) == 0xFFFF


def test_a_place_of_icmp_has_no_port() -> None:
    assert parse_place("192.0.2.1", "icmp") == Place(parse_place("192.0.2.1:1", "tcp").address)
