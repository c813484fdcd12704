# SPDX-License-Identifier: Apache-2.0
"""Errors of routers about packets in tunnels: the client hears that its packets are too big. Whole frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, ModeCode, TooBigCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    ROUTER6,
    VIP,
    WEB,
    Balancer,
    macs_towards,
)
from tests.packets.frames import ETHERNET, IPV4, IPV6, At, frame, frame6, tcp, tcp6
from tests.packets.test_others import passes_untouched

pytestmark = pytest.mark.kernel

OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"
MIDWAY, MIDWAY6 = "10.2.0.250", "2001:db8:2::250"
VIP6, FAR6 = "2001:db8:20::1", "2001:db8:77::2"
WEB6 = At(VIP6, 80)
PAYLOAD = b"x" * 600


@pytest.fixture(autouse=True)
def _tunnels(balancer: Balancer) -> None:
    """Two services of IPv4, one by each kind of endpoint, and one of IPv6."""
    balancer.settings(OWN, source6=OWN6)
    for id in (1, 5):
        balancer.endpoint(id)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    balancer.serve(At(VIP, 443), ring=[5], index=2, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    balancer.serve(WEB6, ring=[5], index=3, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)


def inner4(port: int = 80, client: str = CLIENT.address) -> bytes:
    return tcp(At(client, 40_000), At(VIP, port), "A", PAYLOAD, flags="DF")


def inner6(client: str = FAR6) -> bytes:
    return tcp6(At(client, 40_000), WEB6, "A", PAYLOAD)


def sent(balancer: Balancer, content: bytes) -> bytes:
    """The packet, without Ethernet, that leaves in a tunnel."""
    action, out = balancer.send(content)
    assert action == XdpVerdict.REDIRECT
    return out[ETHERNET:]


def complaint(outer: bytes, mtu: int = 1400, quoted: int = 500, to: str = OWN) -> bytes:
    return frame(MIDWAY, to, ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(outer[:quoted]))


def complaint6(outer: bytes, mtu: int = 1400, quoted: int = 1232) -> bytes:
    return frame6(MIDWAY6, OWN6, ICMPv6PacketTooBig(mtu=mtu) / Raw(outer[:quoted]))


def told(content: bytes, quoted: bytes, mtu: int, next_hop: str = CLIENT.address) -> bytes:
    """What the client must hear about its packet."""
    source, destination = macs_towards(next_hop)
    answer: Packet
    if IPv6 in Ether(content):
        ip = Ether(content)[IPv6]
        answer = IPv6(src=ip.dst, dst=ip.src, hlim=64) / ICMPv6PacketTooBig(mtu=mtu) / Raw(quoted)
    else:
        ip = Ether(content)[IP]
        answer = IP(src=ip.dst, dst=ip.src, tos=0xC0, id=0, flags="DF", ttl=64)
        answer = answer / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted)
    return bytes(Ether(src=source, dst=destination) / answer)


@pytest.mark.parametrize("quoted", [48, 49, 500, 640])
def test_of_ipv4_in_ipv4(balancer: Balancer, quoted: int) -> None:
    outer = sent(balancer, inner4())
    expected = told(inner4(), outer[IPV4:quoted], 1400 - IPV4)
    assert balancer.send(complaint(outer, quoted=quoted), "back") == (XdpVerdict.REDIRECT, expected)
    assert balancer.verdicts()[Verdict.ERROR_RELAYED] == 1


@pytest.mark.parametrize(("mtu", "said"), [(1400, 1360), (1300, 1280), (1280, 1280)])
def test_of_ipv6_in_ipv6(balancer: Balancer, mtu: int, said: int) -> None:
    outer = sent(balancer, inner6())
    expected = told(inner6(), outer[IPV6:], said, ROUTER6)
    assert balancer.send(complaint6(outer, mtu), "back") == (XdpVerdict.REDIRECT, expected)


def test_of_ipv4_in_ipv6(balancer: Balancer) -> None:
    outer = sent(balancer, inner4(443))
    expected = told(inner4(443), outer[IPV6:], 1400 - IPV6)
    assert balancer.send(complaint6(outer), "back") == (XdpVerdict.REDIRECT, expected)


@pytest.mark.parametrize("family", [IP, IPv6])
def test_where_nobody_knows_the_next_hop_the_kernel_forwards_it_in_the_routers_name(
    balancer: Balancer, family: type[Packet]
) -> None:
    content = inner4(client="10.1.0.77") if family is IP else inner6(CLIENT6)
    outer = sent(balancer, content)
    complained = complaint(outer) if family is IP else complaint6(outer)
    expected = Ether(told(content, outer[IPV4:500] if family is IP else outer[IPV6:], 1380 if family is IP else 1360))
    expected.src, expected.dst = Ether(complained).src, Ether(complained).dst
    expected[family].src = Ether(complained)[family].src
    for layer, field in ((IP, "chksum"), (ICMPv6PacketTooBig, "cksum")):
        if layer in expected:
            delattr(expected[layer], field)
    assert balancer.send(complained, "back") == (XdpVerdict.PASS, bytes(expected))


def test_sources_that_are_spread_are_known_for_ours(balancer: Balancer) -> None:
    balancer.settings("10.200.0.0", "0.0.255.255")
    outer = sent(balancer, inner4())
    source = IP(outer).src
    assert source.startswith("10.200.")
    assert balancer.send(complaint(outer, to=source), "back").frame == told(inner4(), outer[IPV4:500], 1380)


STRANGE: dict[str, Callable[[bytes], bytes]] = {
    "too short a quote": lambda outer: complaint(outer, quoted=47),
    "another error": lambda outer: frame(MIDWAY, OWN, ICMP(type=3, code=1) / Raw(outer[:200])),
    "an MTU that nothing fits into": lambda outer: complaint(outer, mtu=80),
    "another tunnel": lambda outer: complaint(
        bytes(IP(src="10.2.0.9", dst=ENDPOINTS_AT[1]) / IP(outer)[IP:2]), to="10.2.0.9"),
    "another service": lambda outer: complaint(bytes(
        IP(src=OWN, dst=ENDPOINTS_AT[1]) / IP(src=CLIENT.address, dst=VIP) / TCP(dport=81) / Raw(b"x" * 20))),
}  # fmt: skip


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_what_is_not_about_our_tunnels_is_the_kernels(balancer: Balancer, make: Callable[[bytes], bytes]) -> None:
    content = make(sent(balancer, inner4()))
    assert balancer.send(content, "back") == (XdpVerdict.PASS, content)


def test_nobody_is_told_where_packets_that_are_too_big_are_dropped_in_silence(balancer: Balancer) -> None:
    outer = sent(balancer, inner4())
    balancer.settings(OWN, too_big=TooBigCode.DROP)
    content = complaint(outer)
    assert balancer.send(content, "back") == (XdpVerdict.PASS, content)


# --- errors about what endpoints sent in fragments ---------------------------------------------------------------
def about_fragment(offset: int) -> bytes:
    fragment = IPv6(src=VIP6, dst=FAR6) / IPv6ExtHdrFragment(nh=6, offset=offset, m=1, id=7)
    reply = fragment / Raw(bytes(TCP(sport=WEB.port, dport=40_000)) + PAYLOAD)
    return frame6("2001:db8:5::5", VIP6, ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(reply)[:200]))


def test_an_error_about_the_first_fragment_goes_to_the_endpoint_that_sent_it(balancer: Balancer) -> None:
    out = Ether(sent_frame(balancer, about_fragment(0)))
    assert out[IPv6].dst == ENDPOINTS6_AT[5]
    assert balancer.verdicts() == {Verdict.ICMP_ERROR: 1}


def sent_frame(balancer: Balancer, content: bytes) -> bytes:
    action, out = balancer.send(content)
    assert action == XdpVerdict.REDIRECT
    return out


def test_an_error_about_a_later_fragment_is_the_kernels(balancer: Balancer) -> None:
    assert passes_untouched(balancer, about_fragment(9))
