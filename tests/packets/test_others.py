# SPDX-License-Identifier: Apache-2.0
"""What is not a service's: untouched and uncounted if it is not for a VIP, else passed or dropped with a reason."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import UndefinedCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import CLIENT, VIP, WEB, Balancer
from tests.packets.frames import ETHERNET, IPV4, At, echo, ether, frame, tcp, udp

pytestmark = pytest.mark.kernel

ELSEWHERE = At("10.2.0.11", 80)
SYN = tcp(CLIENT, WEB, "S")


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    """One service with one endpoint: whatever is taken for a request would be forwarded."""
    balancer.endpoint(1)
    balancer.serve(ring=[1])


def passes_untouched(balancer: Balancer, content: bytes) -> bool:
    """Passed as it came, with no trace left."""
    left = balancer.send(content), balancer.verdicts(), balancer.connections()
    return left == ((XdpVerdict.PASS, content), {}, {})


def dropped_as(balancer: Balancer, content: bytes) -> list[Verdict]:
    """The reasons counted for a frame that is dropped and leaves no flow."""
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.connections() == {}
    return list(balancer.verdicts())


def with_total_length(content: bytes, length: int) -> bytes:
    """The frame with another length in its IP header, whose checksum stays."""
    return content[: ETHERNET + 2] + struct.pack(">H", length) + content[ETHERNET + 4 :]


def _to(destination: str, transport: Packet | None = None, **ip: object) -> bytes:
    return frame(CLIENT.address, destination, transport or TCP(dport=80), **ip)


DATA = Raw(b"x" * 64)
RECORD_ROUTE = [IPOption_RR(length=7, routers=["0.0.0.0"])]
HOSTILE: dict[str, tuple[Callable[[str], bytes], Verdict]] = {
    "first fragment": (lambda to: _to(to, TCP(dport=81), flags="MF"), Verdict.FRAGMENT),
    "later fragment": (lambda to: _to(to, DATA, frag=3, proto=6), Verdict.FRAGMENT),
    "fragment of the second half": (lambda to: _to(to, DATA, frag=0x1000, proto=6), Verdict.FRAGMENT),
    "fragment of UDP": (lambda to: _to(to, DATA, flags="MF", proto=17), Verdict.FRAGMENT),
    "IP options": (lambda to: _to(to, options=RECORD_ROUTE), Verdict.IP_OPTIONS),
    "no IP header length": (lambda to: _to(to, ihl=0), Verdict.MALFORMED),
    "short IP header length": (lambda to: _to(to, ihl=4), Verdict.MALFORMED),
    "IP version 6": (lambda to: _to(to, version=6), Verdict.MALFORMED),
    "no TCP header length": (lambda to: _to(to, TCP(dport=80, dataofs=0)), Verdict.MALFORMED),
    "short TCP header length": (lambda to: _to(to, TCP(dport=80, dataofs=4)), Verdict.MALFORMED),
    "TCP header beyond the packet": (lambda to: _to(to, TCP(dport=80, dataofs=6)), Verdict.MALFORMED),
    "total length 0": (lambda to: with_total_length(_to(to), 0), Verdict.MALFORMED),
    "total length 19": (lambda to: with_total_length(_to(to), 19), Verdict.MALFORMED),
    "total length 20": (lambda to: with_total_length(_to(to), 20), Verdict.MALFORMED),
    "total length 39": (lambda to: with_total_length(_to(to), 39), Verdict.MALFORMED),
    "total length 19 of UDP": (lambda to: with_total_length(_to(to, UDP(dport=80)), 19), Verdict.MALFORMED),
    "one byte more than came": (lambda to: with_total_length(_to(to), 41), Verdict.MALFORMED),
    "total length 65535": (lambda to: with_total_length(_to(to), 0xFFFF), Verdict.MALFORMED),
}
"""To an address, and why it is dropped if that is a VIP."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_to_a_vip_are_dropped_with_their_reason(balancer: Balancer, name: str) -> None:
    make, reason = HOSTILE[name]
    assert dropped_as(balancer, make(VIP)) == [reason]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_to_others_are_none_of_our_business(balancer: Balancer, name: str) -> None:
    make, _ = HOSTILE[name]
    assert passes_untouched(balancer, make(ELSEWHERE.address))


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_undefined_traffic_may_do_a_hostile_packet_may_not(balancer: Balancer, name: str) -> None:
    make, reason = HOSTILE[name]
    balancer.vip(VIP, UndefinedCode.PASS)
    assert dropped_as(balancer, make(VIP)) == [reason]


@pytest.mark.parametrize("length", range(ETHERNET, len(SYN)))
@pytest.mark.parametrize("honest", [False, True], ids=["as sent", "with a total length that fits"])
def test_a_frame_that_is_cut_off_anywhere_is_malformed_if_it_shows_that_it_is_for_a_vip(
    balancer: Balancer, length: int, honest: bool
) -> None:
    cut = SYN[:length]
    if honest:
        cut = with_total_length(SYN, max(length - ETHERNET, 0))[:length]
    if length < ETHERNET + IPV4:
        assert passes_untouched(balancer, cut)
    else:
        assert dropped_as(balancer, cut) == [Verdict.MALFORMED]


def test_a_frame_without_as_much_as_an_ethernet_header_does_not_get_here(balancer: Balancer) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        balancer.send(SYN[: ETHERNET - 1])


@pytest.mark.parametrize(
    "content",
    [
        tcp(CLIENT, ELSEWHERE), tcp(CLIENT, ELSEWHERE, "A"), tcp(CLIENT, ELSEWHERE, ttl=1), udp(CLIENT, ELSEWHERE),
        echo(CLIENT.address, ELSEWHERE.address),
        tcp(WEB, CLIENT, "SA"), tcp(ELSEWHERE, CLIENT, "SA"),
        bytes(ether() / ARP(pdst=VIP)),
        bytes(ether() / IPv6(dst="2001:db8::1") / TCP(dport=80)),
        bytes(ether() / Dot1Q(vlan=5) / IP(src=CLIENT.address, dst=VIP) / TCP(dport=80)),
        bytes(ether(type=0x88CC) / Raw(SYN[ETHERNET:])),
    ],
    ids=["SYN", "ACK", "TTL 1", "UDP", "ping", "from a VIP", "from an endpoint", "ARP", "IPv6", "VLAN tag", "LLDP"],
)  # fmt: skip
def test_what_is_not_for_a_vip_is_untouched_and_uncounted(balancer: Balancer, content: bytes) -> None:
    assert passes_untouched(balancer, content)


UNDEFINED = {
    "another port": tcp(CLIENT, At(VIP, 81)),
    "another port, no SYN": tcp(CLIENT, At(VIP, 81), "A"),
    "UDP to the service's port": udp(CLIENT, WEB),
    "SCTP": frame(CLIENT.address, VIP, Raw(struct.pack(">HHII", 40_000, 80, 0, 0)), proto=132),
    "IPIP": frame(CLIENT.address, VIP, IP(src=CLIENT.address, dst=VIP) / TCP(dport=80)),
}


@pytest.mark.parametrize("content", UNDEFINED.values(), ids=UNDEFINED)
def test_what_a_vip_has_no_service_for_is_dropped(balancer: Balancer, content: bytes) -> None:
    assert dropped_as(balancer, content) == [Verdict.UNDEFINED]


@pytest.mark.parametrize("content", UNDEFINED.values(), ids=UNDEFINED)
def test_what_a_vip_has_no_service_for_passes_if_the_node_says_so(balancer: Balancer, content: bytes) -> None:
    balancer.vip(VIP, UndefinedCode.PASS)
    assert passes_untouched(balancer, content)


@pytest.mark.parametrize(
    "content",
    [
        echo(CLIENT.address, VIP, flags="MF"),
        echo(CLIENT.address, VIP, options=RECORD_ROUTE),
        frame(CLIENT.address, VIP, ICMP(type=13)),
        frame(CLIENT.address, VIP, ICMP(type=3, code=4, nexthopmtu=1400) / IP(src=VIP, dst=CLIENT.address) / TCP()),
    ],
    ids=["fragment of a ping", "ping with options", "timestamp", "fragmentation needed"],
)
def test_icmp_to_a_vip_that_is_no_plain_ping_is_the_kernels(balancer: Balancer, content: bytes) -> None:
    assert passes_untouched(balancer, content)


def test_once_the_vip_is_gone_so_is_every_claim_to_its_packets(balancer: Balancer) -> None:
    balancer.withdraw(WEB)
    assert dropped_as(balancer, SYN) == [Verdict.UNDEFINED]
    balancer.clear()
    assert passes_untouched(balancer, SYN)
