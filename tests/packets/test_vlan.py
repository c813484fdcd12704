# SPDX-License-Identifier: Apache-2.0
"""Trunks: frames come in on one VLAN and leave on another, whole frames.

The interfaces that stand for VLANs are plain ones here: to the program they are what its maps say.
"""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, EchoCode, ModeCode, UndefinedCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    STRANGER,
    VIP,
    WEB,
    Balancer,
    by_mac,
    macs_towards,
    through_tunnel,
    to_client,
    to_endpoint,
)
from tests.packets.frames import (
    ETHERNET,
    IPV4,
    MACS,
    At,
    answered,
    echo,
    echoed,
    ether,
    frame,
    frame6,
    tagged,
    tcp,
    tcp6,
    tunnelled6,
)
from tests.packets.test_ipv6 import label
from tests.packets.test_others import HOSTILE
from tests.packets.test_reject import reset

pytestmark = pytest.mark.kernel

CLIENTS, SERVERS = 100, 200
"""VLANs of the trunk `front`: the interfaces that stand for them are `front` and `back`."""
SERVER, SERVER6 = ENDPOINTS_AT[1], ENDPOINTS6_AT[5]
OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"
WEB6, SOURCE6 = At("2001:db8:20::1", 80), At(CLIENT6, 40_000)


@pytest.fixture(autouse=True)
def _trunk(balancer: Balancer) -> None:
    balancer.settings(OWN, source6=OWN6)
    balancer.vlan("front", CLIENTS, "front")
    balancer.vlan("front", SERVERS, "back")
    balancer.endpoint(1)
    balancer.endpoint(5)
    serve(balancer, ModeCode.DSR_L3)


def serve(balancer: Balancer, mode: ModeCode) -> None:
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=mode)
    if mode is not ModeCode.NAT:
        balancer.serve(WEB6, [5], index=2, algorithm=AlgorithmCode.MAGLEV, mode=mode)


def untouched(balancer: Balancer, content: bytes) -> bool:
    return (balancer.send(content), balancer.verdicts()) == ((XdpVerdict.PASS, content), {})


# --- in on one, out on another -----------------------------------------------------------------------------------
@pytest.mark.parametrize("payload", [b"", b"hello", b"x" * 1400])
def test_a_request_leaves_on_the_vlan_of_its_endpoint(balancer: Balancer, payload: bytes) -> None:
    content = tcp(CLIENT, WEB, "A", payload, tos=8)
    content6 = tcp6(SOURCE6, WEB6, "A", payload)
    for mode, expected, expected6 in (
        (ModeCode.DSR_L2, by_mac(content, SERVER), by_mac(content6, SERVER6)),
        (
            ModeCode.DSR_L3, through_tunnel(content, SERVER, OWN),
            tunnelled6(content6, OWN6, SERVER6, macs_towards(SERVER6), label(SOURCE6)),
        ),
    ):  # fmt: skip
        serve(balancer, mode)
        assert balancer.send(tagged(content, CLIENTS)) == (XdpVerdict.TX, tagged(expected, SERVERS))
        assert balancer.send(tagged(content6, CLIENTS)) == (XdpVerdict.TX, tagged(expected6, SERVERS))
    assert balancer.verdicts() == {Verdict.REQUEST: 4}


def test_fragments_leave_on_the_vlan_of_their_endpoint(balancer: Balancer) -> None:
    balancer.serve(
        ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3, protocol=socket.IPPROTO_UDP
    )  # fmt: skip
    whole = IP(src=CLIENT.address, dst=VIP, id=7) / UDP(sport=CLIENT.port, dport=WEB.port) / Raw(bytes(3_000))
    for part in (bytes(ether() / part) for part in fragment(whole, 1_200)):
        expected = tagged(through_tunnel(part, SERVER, OWN), SERVERS)
        assert balancer.send(tagged(part, CLIENTS)) == (XdpVerdict.TX, expected)
    assert balancer.verdicts() == {Verdict.REQUEST: 3}


def test_nat_takes_requests_and_replies_from_one_vlan_to_the_other(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT)
    request, reply = tcp(CLIENT, WEB), tcp(At(SERVER, 80), CLIENT, "SA")
    assert balancer.send(tagged(request, CLIENTS)) == (
        XdpVerdict.TX, tagged(to_endpoint(request, At(SERVER, 80)), SERVERS)
    )  # fmt: skip
    assert balancer.send(tagged(reply, SERVERS)) == (XdpVerdict.TX, tagged(to_client(reply, At(VIP, 80)), CLIENTS))


def test_a_tag_is_kept_where_client_and_endpoint_share_a_vlan(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB)
    expected = through_tunnel(content, SERVER, OWN)
    assert balancer.send(tagged(content, SERVERS)) == (XdpVerdict.TX, tagged(expected, SERVERS))


def test_a_tag_is_put_on_what_came_without(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB)
    expected = through_tunnel(content, SERVER, OWN)
    assert balancer.send(content) == (XdpVerdict.TX, tagged(expected, SERVERS))


def test_a_tag_is_taken_off_what_leaves_by_an_interface_of_its_own(balancer: Balancer) -> None:
    balancer.clear()
    balancer.settings(OWN)
    balancer.vlan("front", CLIENTS, "front")
    balancer.endpoint(1)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    content = tcp(CLIENT, WEB)
    assert balancer.send(tagged(content, CLIENTS)) == (XdpVerdict.REDIRECT, by_mac(content, SERVER))


def test_another_trunk_is_another_interface(balancer: Balancer) -> None:
    balancer.vlan("back", 300, "back")
    content = tcp(CLIENT, WEB)
    expected = tagged(through_tunnel(content, SERVER, OWN), 300)
    assert balancer.send(tagged(content, CLIENTS)) == (XdpVerdict.REDIRECT, expected)
    assert balancer.send(tagged(content, 300), "back") == (XdpVerdict.TX, expected)


@pytest.mark.parametrize("priority", [1, 7])
def test_the_priority_stays(balancer: Balancer, priority: int) -> None:
    content = tcp(CLIENT, WEB)
    assert balancer.send(tagged(content, CLIENTS, priority)).frame == tagged(
        through_tunnel(content, SERVER, OWN), SERVERS, priority
    )


def test_a_tag_of_no_vlan_is_a_priority_on_the_trunk_itself(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB)
    expected = through_tunnel(content, SERVER, OWN)
    assert balancer.send(tagged(content, 0, 5)) == (XdpVerdict.TX, tagged(expected, SERVERS, 5))


def test_a_gateway_is_that_of_the_vlan(balancer: Balancer) -> None:
    balancer.gateway("back", ENDPOINTS_AT[2])
    balancer.endpoint(1, "198.51.100.11")
    content = tcp(CLIENT, WEB)
    expected = through_tunnel(content, "198.51.100.11", OWN, ENDPOINTS_AT[2])
    assert balancer.send(tagged(content, SERVERS)) == (XdpVerdict.TX, tagged(expected, SERVERS))


# --- back to where it came from ----------------------------------------------------------------------------------
def test_answers_leave_on_the_vlan_that_the_question_came_by(balancer: Balancer) -> None:
    ping, ping6 = echo(CLIENT.address, VIP), frame6(CLIENT6, WEB6.address, ICMPv6EchoRequest(data=b"hello"))
    for content in (ping, ping6):
        assert balancer.send(tagged(content, CLIENTS, 3)) == (XdpVerdict.TX, tagged(echoed(content), CLIENTS, 3))
    large = tcp(CLIENT, WEB, "A", bytes(1500 - IPV4 - 20))
    too_big = answered(large, ICMP(type=3, code=4, nexthopmtu=1480), 504)
    assert balancer.send(tagged(large, CLIENTS)) == (XdpVerdict.TX, tagged(too_big, CLIENTS))
    balancer.vip(VIP, UndefinedCode.REJECT)
    closed = tcp(CLIENT, At(VIP, 81))
    assert balancer.send(tagged(closed, CLIENTS)) == (XdpVerdict.TX, tagged(reset(closed), CLIENTS))


def test_what_the_kernel_gets_has_the_tag_that_it_came_with(balancer: Balancer) -> None:
    balancer.endpoint(1, STRANGER)
    serve(balancer, ModeCode.DSR_L2)
    probe = Ether(src=MACS[0], dst=MACS[1]) / IP(
        src=CLIENT.address, dst=STRANGER, id=0, flags="DF", ttl=64
    ) / ICMP(type=0, id=0, seq=0)  # fmt: skip
    assert balancer.send(tagged(tcp(CLIENT, WEB), CLIENTS, 2)) == (XdpVerdict.PASS, tagged(bytes(probe), CLIENTS, 2))


# --- none of our business ----------------------------------------------------------------------------------------
SYN = tcp(CLIENT, WEB)
STRANGE = {
    "a VLAN that the node has no interface for": tagged(SYN, 300),
    "two tags": tagged(tagged(SYN, CLIENTS), CLIENTS),
    "a service tag": tagged(SYN, CLIENTS, type_=0x88A8),
    "a service tag around": tagged(tagged(SYN, CLIENTS), 7, type_=0x88A8),
    "ARP": tagged(bytes(ether() / ARP(pdst=VIP)), CLIENTS),
    "a type inside that is none": tagged(bytes(ether(type=0x88CC)) + SYN[ETHERNET:], CLIENTS),
    "not for a VIP": tagged(tcp(CLIENT, At("10.2.0.11", 80)), CLIENTS, 6),
    "not for a VIP, IPv6": tagged(tcp6(SOURCE6, At("2001:db8:2::15", 80)), CLIENTS),
    "a fragment for somebody else": tagged(frame(CLIENT.address, "10.2.0.11", TCP(), flags="MF"), CLIENTS),
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_what_is_not_ours_is_untouched(balancer: Balancer, content: bytes) -> None:
    assert untouched(balancer, content)


@pytest.mark.parametrize("content", [SYN, tcp6(SOURCE6, WEB6)], ids=["IPv4", "IPv6"])
def test_every_cut_of_a_tagged_frame_is_malformed_or_none_of_our_business(
    balancer: Balancer, content: bytes
) -> None:
    header = 20 if content == SYN else 40
    for length in range(ETHERNET, len(content) + 4):
        cut = tagged(content, CLIENTS)[:length]
        action, out = balancer.send(cut)
        assert action == (XdpVerdict.PASS if length < ETHERNET + 4 + header else XdpVerdict.DROP)
        if action == XdpVerdict.PASS:
            assert out == cut
    assert balancer.verdicts() == {Verdict.MALFORMED: 20}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_in_a_vlan_are_dropped_with_their_reason(balancer: Balancer, name: str) -> None:
    make, reason = HOSTILE[name]
    assert balancer.send(tagged(make(VIP), CLIENTS)).verdict == XdpVerdict.DROP
    assert list(balancer.verdicts()) == [reason]


@pytest.mark.parametrize("transport", [IPv6() / TCP(dport=80), IP() / TCP(dport=80)], ids=["IPv6", "IPv4"])
def test_undefined_traffic_in_a_vlan_is_dropped(balancer: Balancer, transport: Packet) -> None:
    balancer.vip(VIP, echo=EchoCode.DROP)
    assert balancer.send(tagged(frame(CLIENT.address, VIP, transport), CLIENTS)).verdict == XdpVerdict.DROP
    assert balancer.send(tagged(echo(CLIENT.address, VIP), CLIENTS)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 1, Verdict.ECHO_DROPPED: 1}
