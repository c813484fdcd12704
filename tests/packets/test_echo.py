# SPDX-License-Identifier: Apache-2.0
"""Pings of a VIP: answered, sent to an endpoint, or dropped; those of anybody else are none of our business."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from reconciler.dataplane.layout import VIPS, VIPS6, AlgorithmCode, EchoCode, EndpointRowState, ModeCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    ICMPV6,
    VIP,
    Balancer,
    Traffic,
    by_mac,
    macs_towards,
    through_tunnel,
)
from tests.packets.balancer import ICMP as ICMP_NUMBER
from tests.packets.frames import ETHERNET, IPV4, MACS, At, echo, echoed, frame, frame6, padded, tunnelled6
from tests.packets.test_ipv6 import folded, hashed
from tests.packets.test_others import RECORD_ROUTE, dropped_as, passes_untouched, with_total_length
from tests.packets.test_schedule import clients, maglev_slot

pytestmark = pytest.mark.kernel

VIP6 = "2001:db8:20::1"
OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"


def echo6(source: str = CLIENT6, destination: str = VIP6, data: bytes = b"hello", **ip: object) -> bytes:
    return frame6(source, destination, ICMPv6EchoRequest(id=7, seq=1, data=data), **ip)


@pytest.fixture(autouse=True)
def _vips(balancer: Balancer) -> None:
    balancer.settings(OWN, source6=OWN6)
    balancer.vip(VIP)
    balancer.vip(VIP6)


def to_endpoints(balancer: Balancer, mode: ModeCode) -> None:
    for id in (*ENDPOINTS_AT, *ENDPOINTS6_AT):
        balancer.endpoint(id)
    for vip, protocol, ring in (VIP, ICMP_NUMBER, list(ENDPOINTS_AT)), (VIP6, ICMPV6, list(ENDPOINTS6_AT)):
        index = protocol % 16
        balancer.serve(
            At(vip, 0), ring, index=index, algorithm=AlgorithmCode.MAGLEV, mode=mode, protocol=protocol
        )  # fmt: skip
        balancer.vip(vip, echo=EchoCode.ENDPOINT)


# --- answered ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [
        echo(CLIENT.address, VIP), padded(echo(CLIENT.address, VIP)), echo(CLIENT.address, VIP, ttl=1),
        echo(CLIENT.address, VIP, tos=0xB9, flags="DF", id=0xFFFF),
        frame(CLIENT.address, VIP, ICMP(id=1, seq=2) / Raw(b"x" * 1472)),
        frame(CLIENT.address, VIP, ICMP(id=0, seq=0)),
        frame(CLIENT.address, VIP, ICMP(code=3, id=1, seq=1)),
        echo6(), padded(echo6(), 90), echo6(hlim=1, tc=7, fl=0x12345), echo6(data=b"x" * 1452), echo6(data=b""),
        echo6("fe80::1"),
    ],
    ids=[
        "plain", "padded", "TTL 1", "tos", "large", "zeros", "code 3", "IPv6", "IPv6 padded", "IPv6 hop limit 1",
        "IPv6 large", "IPv6 empty", "IPv6 link-local",
    ],
)  # fmt: skip
def test_a_ping_of_a_vip_is_answered_to_where_it_came_from(balancer: Balancer, content: bytes) -> None:
    assert balancer.send(content) == (XdpVerdict.TX, echoed(content))
    assert balancer.verdicts() == {Verdict.ECHO_ANSWERED: 1}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 255), st.binary(max_size=8))
@example(0, 0, 0, b"")
@example(0, 0, 0, bytes(7))
@example(0xFFFF, 0, 0, b"")  # all that is summed up is a zero of the other form
@example(0xF7FF, 0, 8, b"")
@example(0xF800, 0x7FE, 1, b"")
def test_checksums_are_those_of_a_full_sum_whatever_carries(
    balancer: Balancer, id: int, seq: int, ttl: int, data: bytes
) -> None:
    content = frame(CLIENT.address, VIP, ICMP(id=id, seq=seq) / Raw(data), ttl=ttl, id=id)
    out = balancer.send(content).frame
    assert out == echoed(content)
    words = out[ETHERNET + IPV4 :] + bytes(len(data) % 2)
    total = sum(int.from_bytes(words[i : i + 2]) for i in range(0, len(words), 2))
    assert total
    assert total % 0xFFFF == 0
    content6 = frame6(CLIENT6, VIP6, ICMPv6EchoRequest(id=id, seq=seq, data=data), hlim=ttl)
    assert balancer.send(content6).frame == echoed(content6)


@pytest.mark.parametrize("wrong", [ICMP(id=1, seq=1, chksum=0xBAD), ICMP(id=1, seq=1, chksum=0)])
def test_what_was_damaged_stays_damaged(balancer: Balancer, wrong: ICMP) -> None:
    out = Ether(balancer.send(frame(CLIENT.address, VIP, wrong / b"hello", chksum=0x1234)).frame)
    right = Ether(echoed(bytes(out)))
    assert (out[IP].chksum, out[ICMP].chksum) != (right[IP].chksum, right[ICMP].chksum)
    assert out[ICMP].chksum != right[ICMP].chksum
    assert out[IP].chksum != right[IP].chksum


@pytest.mark.parametrize(
    "content",
    [
        echo("0.0.0.0", VIP), echo("127.0.0.1", VIP), echo("224.0.0.1", VIP), echo("255.255.255.255", VIP),
        echo(VIP, VIP), b"\xff" * 6 + echo(CLIENT.address, VIP)[6:],
        echo6("::"), echo6("::1"), echo6("ff02::1"), echo6(VIP6), b"\x33\x33\0\0\0\1" + echo6()[6:],
    ],
)  # fmt: skip
def test_a_ping_that_nobody_in_particular_sent_is_the_kernels(balancer: Balancer, content: bytes) -> None:
    assert passes_untouched(balancer, content)


@pytest.mark.parametrize(
    "content",
    [
        echo(CLIENT.address, "10.2.0.11"), echo(CLIENT.address, "10.1.0.1"), echo(VIP, CLIENT.address),
        echo6(destination="2001:db8:2::15"), echo6(destination="2001:db8:20::2"), echo6(VIP6, CLIENT6),
        frame(CLIENT.address, VIP, ICMP(type=0, id=1, seq=1)), frame6(CLIENT6, VIP6, ICMPv6EchoReply()),
        frame6(CLIENT6, VIP6, ICMPv6ND_NS(tgt=VIP6), hlim=255),
    ],
    ids=[
        "of an endpoint", "of the node", "from a VIP", "IPv6 of an endpoint", "next to a VIP", "from an IPv6 VIP",
        "a reply", "a reply in IPv6", "a search for a neighbour",
    ],
)  # fmt: skip
@pytest.mark.parametrize("policy", EchoCode)
def test_nothing_but_pings_of_vips_is_touched(balancer: Balancer, content: bytes, policy: EchoCode) -> None:
    balancer.vip(VIP, echo=policy)
    balancer.vip(VIP6, echo=policy)
    assert passes_untouched(balancer, content)


@pytest.mark.parametrize("length", range(ETHERNET, len(echo(CLIENT.address, VIP))))
@pytest.mark.parametrize("honest", [False, True], ids=["as sent", "with a total length that fits"])
def test_a_ping_that_is_cut_off_before_its_header_ends_is_the_kernels(
    balancer: Balancer, length: int, honest: bool
) -> None:
    content = echo(CLIENT.address, VIP)
    cut = with_total_length(content, max(length - ETHERNET, 0))[:length] if honest else content[:length]
    if honest and length >= ETHERNET + IPV4 + 8:
        assert balancer.send(cut).verdict == XdpVerdict.TX
    else:
        assert passes_untouched(balancer, cut)


def test_every_cut_of_a_ping_in_ipv6_is_dropped_by_nobody(balancer: Balancer) -> None:
    for length in range(ETHERNET, len(echo6())):
        assert balancer.send(echo6()[:length]) == (XdpVerdict.PASS, echo6()[:length])
    short = frame6(CLIENT6, VIP6, ICMPv6EchoRequest(), plen=7)
    assert passes_untouched(balancer, short)


# --- dropped -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [echo(CLIENT.address, VIP), echo6()], ids=["IPv4", "IPv6"])
def test_a_ping_is_dropped_where_the_service_says_so(balancer: Balancer, content: bytes) -> None:
    balancer.vip(VIP, echo=EchoCode.DROP)
    balancer.vip(VIP6, echo=EchoCode.DROP)
    assert dropped_as(balancer, content) == [Verdict.ECHO_DROPPED]


DISGUISED: dict[str, tuple[Callable[[], bytes], Verdict]] = {
    "fragment": (lambda: echo(CLIENT.address, VIP, flags="MF"), Verdict.FRAGMENT),
    "options": (lambda: echo(CLIENT.address, VIP, options=RECORD_ROUTE), Verdict.IP_OPTIONS),
    "longer than the frame": (lambda: with_total_length(echo(CLIENT.address, VIP), 99), Verdict.MALFORMED),
}


@pytest.mark.parametrize("policy", [EchoCode.DROP, EchoCode.ENDPOINT])
@pytest.mark.parametrize("name", DISGUISED)
def test_nor_does_the_kernel_answer_what_is_a_ping_in_disguise(
    balancer: Balancer, name: str, policy: EchoCode
) -> None:
    make, reason = DISGUISED[name]
    balancer.vip(VIP, echo=policy)
    assert dropped_as(balancer, make()) == [reason]


@pytest.mark.parametrize("policy", EchoCode)
def test_other_icmp_is_the_kernels_whatever_becomes_of_pings(balancer: Balancer, policy: EchoCode) -> None:
    balancer.vip(VIP, echo=policy)
    error = ICMP(type=3, code=4, nexthopmtu=1400) / IP(src=VIP, dst=CLIENT.address) / TCP()
    assert passes_untouched(balancer, frame(CLIENT.address, VIP, error))


# --- sent to an endpoint -----------------------------------------------------------------------------------------
def test_a_ping_goes_to_the_endpoint_of_the_clients_address(balancer: Balancer) -> None:
    ring = list(ENDPOINTS_AT)
    for client in clients(40, port=0):
        server = ENDPOINTS_AT[ring[maglev_slot(client, len(ring), ICMP_NUMBER)]]
        content = echo(client.address, VIP)
        to_endpoints(balancer, ModeCode.DSR_L3)
        assert balancer.send(content) == (XdpVerdict.REDIRECT, through_tunnel(content, server, OWN))
        to_endpoints(balancer, ModeCode.DSR_L2)
        assert balancer.send(content) == (XdpVerdict.REDIRECT, by_mac(content, server))
    assert balancer.verdicts() == {Verdict.ECHO_FORWARDED: 80}
    assert balancer.traffic_of_services() == {1: Traffic(0, 80, 80 * 33)}


def test_a_ping_in_ipv6_goes_to_the_endpoint_of_the_clients_address(balancer: Balancer) -> None:
    ring = list(ENDPOINTS6_AT)
    for i in range(40):
        source = f"2001:db8:{i % 7:x}:{i * 7919 % 65536:x}::{i + 1:x}"
        hash = hashed(folded(source), 0, ICMPV6)
        server = ENDPOINTS6_AT[ring[hash * len(ring) >> 32]]
        content = echo6(source)
        to_endpoints(balancer, ModeCode.DSR_L3)
        expected = tunnelled6(content, OWN6, server, macs_towards(server), hash & 0xFFFFF)
        assert balancer.send(content) == (XdpVerdict.REDIRECT, expected)
        to_endpoints(balancer, ModeCode.DSR_L2)
        assert balancer.send(content) == (XdpVerdict.REDIRECT, by_mac(content, server))
    assert balancer.verdicts() == {Verdict.ECHO_FORWARDED: 80}


def test_a_large_ping_is_told_what_would_fit(balancer: Balancer) -> None:
    to_endpoints(balancer, ModeCode.DSR_L3)
    content = frame(CLIENT.address, VIP, ICMP(id=1, seq=1) / Raw(bytes(1472)))
    action, out = balancer.send(content)
    assert action == XdpVerdict.TX
    assert (Ether(out)[ICMP].type, Ether(out)[ICMP].code, Ether(out)[ICMP].nexthopmtu) == (3, 4, 1480)
    assert (Ether(out).src, Ether(out).dst) == (MACS[1], MACS[0])


def test_a_ping_that_no_endpoint_answers_is_dropped(balancer: Balancer) -> None:
    """Whoever pings the VIP to learn whether it works is not told that it does."""
    to_endpoints(balancer, ModeCode.DSR_L3)
    for id in ENDPOINTS_AT:
        balancer.endpoint(id, state=EndpointRowState.DISABLED)
    assert balancer.send(echo(CLIENT.address, VIP)).verdict == XdpVerdict.DROP
    assert balancer.send(echo(CLIENT.address, VIP, ttl=1)).verdict == XdpVerdict.DROP
    balancer.withdraw(At(VIP, 0), ICMP_NUMBER)
    assert balancer.send(echo(CLIENT.address, VIP)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.NO_ENDPOINT: 2, Verdict.TTL_EXPIRED: 1}


def test_other_services_of_the_vip_stay_what_they_are(balancer: Balancer) -> None:
    to_endpoints(balancer, ModeCode.DSR_L3)
    assert balancer.send(frame(CLIENT.address, VIP, TCP(dport=80))).verdict == XdpVerdict.DROP
    assert balancer.send(frame6(CLIENT6, VIP6, IPv6())).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.UNDEFINED: 2}


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_what_a_vip_does_with_pings_changes_at_once(balancer: Balancer, vip: str) -> None:
    """Though each CPU keeps what it has found."""
    ping = echo(CLIENT.address, vip) if vip == VIP else echo6()
    assert balancer.send(ping).verdict == XdpVerdict.TX
    balancer.vip(vip, echo=EchoCode.DROP)
    assert balancer.send(ping).verdict == XdpVerdict.DROP
    balancer.vip(vip)
    assert balancer.send(ping).verdict == XdpVerdict.TX
    balancer.kernel.delete((VIPS6 if vip == VIP6 else VIPS).name, [ip_address(vip).packed])
    assert balancer.send(ping) == (XdpVerdict.PASS, ping)
