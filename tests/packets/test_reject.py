# SPDX-License-Identifier: Apache-2.0
"""Undefined traffic that is rejected: what a host with a closed port says."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6ParamProblem, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import UndefinedCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import CLIENT, CLIENT6, VIP, WEB, Balancer
from tests.packets.frames import MACS, At, answered, answered6, echo, frame, frame6, padded, sctp, tcp, tcp6, udp
from tests.packets.test_others import HOSTILE, dropped_as, passes_untouched

pytestmark = pytest.mark.kernel

CLOSED = At(VIP, 81)
LEAST = 28


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1])
    balancer.vip(VIP, UndefinedCode.REJECT)


def reset(segment: bytes) -> bytes:
    """RFC 9293, section 3.10.7.1, computed from what scapy sees in the segment."""
    packet = Ether(segment)
    tcp = packet[TCP]
    length = packet[IP].len - 20 - tcp.dataofs * 4 + ("S" in tcp.flags) + ("F" in tcp.flags)
    fields = {"flags": "R", "seq": tcp.ack} if "A" in tcp.flags else {
        "flags": "RA", "seq": 0, "ack": (tcp.seq + length) % 2**32
    }  # fmt: skip
    back = IP(src=packet[IP].dst, dst=packet[IP].src, id=0, flags="DF", ttl=64)
    return bytes(
        Ether(src=MACS[1], dst=MACS[0]) / back / TCP(sport=tcp.dport, dport=tcp.sport, window=0, **fields)
    )


@pytest.mark.parametrize("flags", ["S", "A", "PA", "FA", "F", "SA", "", "SEC", "SF", "FPU"])
@pytest.mark.parametrize("payload", [b"", b"x", b"data" * 300], ids=["empty", "1 byte", "1,200 bytes"])
def test_a_segment_is_reset(balancer: Balancer, flags: str, payload: bytes) -> None:
    segment = tcp(CLIENT, CLOSED, flags, payload)
    assert balancer.send(segment) == (XdpVerdict.TX, reset(segment))
    assert balancer.verdicts() == {Verdict.REJECTED: 1}


def test_a_reset_is_right_whatever_it_answers(balancer: Balancer) -> None:
    """Sequence numbers that wrap, padding, TCP options, and checksums that carry and that don't."""
    for number in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF0000, 0x0000FFFF):
        for flags in ("S", "A"):
            for port in (1, 255, 65_535):
                segment = TCP(
                    sport=port, dport=65_535, seq=number, ack=number, flags=flags, options=[("MSS", 1460)]
                )  # fmt: skip
                for content in (frame("11.0.0.1", VIP, segment), padded(frame("223.255.255.255", VIP, segment), 90)):
                    assert balancer.send(content).frame == reset(content)


def test_a_reset_is_never_answered(balancer: Balancer) -> None:
    for flags in ("R", "RA"):
        assert balancer.send(tcp(CLIENT, CLOSED, flags)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 2}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (udp(CLIENT, CLOSED), 3),
        (padded(udp(CLIENT, CLOSED, tos=0xFF, flags="DF")), 3),
        (frame(CLIENT.address, VIP, UDP(sport=1, dport=2) / Raw(b"x" * 1400)), 3),
        (frame(CLIENT.address, VIP, UDP(sport=1, dport=2)), 3),
        (sctp(CLIENT, CLOSED), 3),
        (frame(CLIENT.address, VIP, IP(src="10.0.0.1", dst=VIP)), 2),
        (frame(CLIENT.address, VIP, Raw(bytes(8)), proto=253), 2),
    ],
    ids=["UDP", "padded UDP", "large UDP", "empty UDP", "SCTP", "IPIP", "experimental"],
)
def test_another_protocol_is_answered_as_unreachable(balancer: Balancer, content: bytes, code: int) -> None:
    assert balancer.send(content) == (XdpVerdict.TX, answered(content, ICMP(type=3, code=code), LEAST))
    assert balancer.verdicts() == {Verdict.REJECTED: 1}


def test_what_is_too_short_to_be_quoted_is_dropped(balancer: Balancer) -> None:
    for length in range(8):
        content = padded(frame(CLIENT.address, VIP, Raw(bytes(length)), proto=253))
        assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 8}


@pytest.mark.parametrize("source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"])
def test_a_sender_that_is_nobody_or_many_gets_no_answer(balancer: Balancer, source: str) -> None:
    for content in (tcp(At(source, 1), CLOSED), udp(At(source, 1), CLOSED)):
        assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 2}


def test_what_came_to_many_gets_no_answer(balancer: Balancer) -> None:
    for content in (tcp(CLIENT, CLOSED), udp(CLIENT, CLOSED)):
        assert balancer.send(b"\x01\x00\x5e\x00\x00\x01" + content[6:]).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 2}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_are_dropped_in_silence(balancer: Balancer, name: str) -> None:
    make, reason = HOSTILE[name]
    assert dropped_as(balancer, make(VIP)) == [reason]


# --- IPv6 --------------------------------------------------------------------------------------------------------
VIP6 = "2001:db8:20::1"
CLOSED6 = At(VIP6, 81)
SOURCE6 = At(CLIENT6, 40_000)
LEAST6 = 48


@pytest.fixture
def _vip6(balancer: Balancer) -> None:
    balancer.vip(VIP6, UndefinedCode.REJECT)


def reset6(segment: bytes) -> bytes:
    """As `reset`, in IPv6."""
    packet = Ether(segment)
    tcp = packet[TCP]
    length = packet[IPv6].plen - tcp.dataofs * 4 + ("S" in tcp.flags) + ("F" in tcp.flags)
    fields = {"flags": "R", "seq": tcp.ack} if "A" in tcp.flags else {
        "flags": "RA", "seq": 0, "ack": (tcp.seq + length) % 2**32
    }  # fmt: skip
    back = IPv6(src=packet[IPv6].dst, dst=packet[IPv6].src, hlim=64)
    return bytes(
        Ether(src=MACS[1], dst=MACS[0]) / back / TCP(sport=tcp.dport, dport=tcp.sport, window=0, **fields)
    )


@pytest.mark.usefixtures("_vip6")
def test_a_segment_in_ipv6_is_reset(balancer: Balancer) -> None:
    segments = [
        tcp6(SOURCE6, CLOSED6, flags, payload, tc=9, fl=9)
        for flags in ("S", "A", "PA", "FA", "F", "SA", "", "SF") for payload in (b"", b"x", b"data" * 300)
    ]  # fmt: skip
    segments += [tcp6(At(f"2001:db8::{i:x}", 1 + i * 60), CLOSED6, "S") for i in range(1000)]
    for segment in segments:
        assert balancer.send(segment) == (XdpVerdict.TX, reset6(segment))
    assert balancer.verdicts() == {Verdict.REJECTED: len(segments)}


@pytest.mark.usefixtures("_vip6")
@pytest.mark.parametrize(
    ("transport", "icmp"),
    [
        (UDP(sport=1, dport=2) / Raw(b"hello"), ICMPv6DestUnreach(code=4)),
        (UDP(sport=1, dport=2) / Raw(b"x" * 1400), ICMPv6DestUnreach(code=4)),
        (SCTP(sport=1, dport=2), ICMPv6DestUnreach(code=4)),
        (IPv6() / UDP(), ICMPv6ParamProblem(code=1, ptr=6)),
    ],
    ids=["UDP", "large UDP", "SCTP", "IPv6 in IPv6"],
)
def test_another_protocol_in_ipv6_is_answered_as_unreachable(
    balancer: Balancer, transport: Packet, icmp: Packet
) -> None:
    content = padded(frame6(CLIENT6, VIP6, transport), 120)
    assert balancer.send(content) == (XdpVerdict.TX, answered6(content, icmp, LEAST6))
    assert balancer.verdicts() == {Verdict.REJECTED: 1}


@pytest.mark.usefixtures("_vip6")
def test_what_must_not_be_answered_in_ipv6_is_dropped_in_silence(balancer: Balancer) -> None:
    for source in ("::", "::1", "ff02::1"):
        for content in (tcp6(At(source, 1), CLOSED6), frame6(source, VIP6, UDP(dport=81))):
            assert balancer.send(content).verdict == XdpVerdict.DROP
    for content in (
        tcp6(SOURCE6, CLOSED6, "R"), tcp6(SOURCE6, CLOSED6, "RA"), frame6(CLIENT6, VIP6, Raw(bytes(7)), nh=253),
        b"\x33\x33\x00\x00\x00\x01" + tcp6(SOURCE6, CLOSED6)[6:],
    ):  # fmt: skip
        assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 10}
    ping = frame6(CLIENT6, VIP6, ICMPv6EchoRequest())
    assert balancer.send(ping).verdict == XdpVerdict.TX
    assert balancer.verdicts() == {Verdict.UNDEFINED: 10, Verdict.ECHO_ANSWERED: 1}


def test_pings_and_services_and_others_are_not_rejected(balancer: Balancer) -> None:
    assert passes_untouched(balancer, tcp(CLIENT, At("10.2.0.11", 81)))
    assert balancer.send(echo(CLIENT.address, VIP)).verdict == XdpVerdict.TX
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.REDIRECT
    assert Verdict.REJECTED not in balancer.verdicts()
