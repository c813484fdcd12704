# SPDX-License-Identifier: Apache-2.0
"""Services that not everybody may use: whom the program lets through is held against `ipaddress`."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

from reconciler.dataplane.layout import AlgorithmCode, EchoCode, ModeCode, UndefinedCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from reconciler.model import Prefix
from tests.packets import balancer as lab
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS_AT,
    VIP,
    WEB,
    Balancer,
    to_client,
    to_endpoint,
)
from tests.packets.frames import At, answered, answered6, echo, frame, frame6, sctp, tcp, tcp6, udp
from tests.packets.test_reject import LEAST, LEAST6, reset, reset6
from tests.test_source_nodes import networks

pytestmark = pytest.mark.kernel

WEB6 = At("2001:db8:20::1", 80)
SOURCE6 = At(CLIENT6, 40_000)
SERVER = At(ENDPOINTS_AT[1], 80)
ELSEWHERE, ELSEWHERE6 = ["192.0.2.0/24", "2001:db8:7::/48"], ["2001:db8:7::/48"]
HERE = ["10.1.0.0/24", "2001:db8:1::/64"]
DENIED = (XdpVerdict.DROP, {Verdict.NOT_ALLOWED: 1})


@pytest.fixture(autouse=True)
def _endpoints(balancer: Balancer) -> None:
    balancer.settings("10.2.0.1", source6="2001:db8:2::1")
    balancer.sources("10.2.0.9")
    balancer.endpoint(1)
    balancer.endpoint(5)


def serve(balancer: Balancer, mode: ModeCode, sources: list[str], protocol: int = lab.TCP) -> None:
    balancer.serve(ring=[1], mode=mode, algorithm=AlgorithmCode.MAGLEV, protocol=protocol, sources=sources)


def serve6(balancer: Balancer, mode: ModeCode, sources: list[str], protocol: int = lab.TCP) -> None:
    balancer.serve(WEB6, [5], index=2, mode=mode, algorithm=AlgorithmCode.MAGLEV, protocol=protocol, sources=sources)


def outcome(balancer: Balancer, content: bytes, interface: str = "front") -> tuple[int, dict[Verdict, int]]:
    """The action and what was counted."""
    before = balancer.verdicts()
    action = balancer.send(content, interface).verdict
    after = balancer.verdicts()
    return action, {v: n - before.get(v, 0) for v, n in after.items() if n != before.get(v, 0)}


def is_let_through(balancer: Balancer, content: bytes) -> bool:
    action, counted = outcome(balancer, content)
    if (action, counted) == DENIED:
        return False
    assert action in (XdpVerdict.REDIRECT, XdpVerdict.PASS, XdpVerdict.TX)
    assert counted in ({Verdict.REQUEST: 1}, {Verdict.VIA_KERNEL: 1})
    return True


# --- who ----------------------------------------------------------------------------------------------------
def _sources(found: list[Prefix], more: list[int]) -> list[str]:
    """Addresses at the edges of networks, and others, as far as a client can have them."""
    width = 32 if isinstance(found[0], IPv4Network) else 128
    edges = [int(end) + step for n in found for end in (n[0], n[-1]) for step in (-1, 0, 1)]
    addresses = [ip_address((number % 2**width).to_bytes(width // 8)) for number in [*edges, *more]]
    return [
        str(a) for a in addresses
        if not (a.is_multicast or a.is_loopback or a.is_unspecified or int(a) >> 24 in (0, *range(240, 256)))
        and not (a.version == 6 and a.ipv4_mapped) and str(a) not in (WEB.address, WEB6.address)
    ]  # fmt: skip


@given(networks(4, 1), st.lists(st.integers(0, 2**32 - 1), max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ipv4_clients_in_one_of_the_networks_are_let_through(
    balancer: Balancer, found: list[Prefix], more: list[int]
) -> None:
    serve(balancer, ModeCode.DSR_L3, list(map(str, found)))
    for source in _sources(found, more)[:60]:
        expected = any(ip_address(source) in network for network in found)
        assert is_let_through(balancer, tcp(At(source, 7), WEB, "A")) == expected, source


@given(networks(6, 1), st.lists(st.integers(0, 2**128 - 1), max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ipv6_clients_in_one_of_the_networks_are_let_through(
    balancer: Balancer, found: list[Prefix], more: list[int]
) -> None:
    serve6(balancer, ModeCode.DSR_L3, list(map(str, found)))
    for source in _sources(found, more)[:60]:
        expected = any(ip_address(source) in network for network in found)
        assert is_let_through(balancer, tcp6(At(source, 7), WEB6, "A")) == expected, source


def test_twenty_thousand_networks_are_told_from_their_neighbours(balancer: Balancer) -> None:
    rng = random.Random(7)
    found = {IPv4Network((rng.randrange(1 << 24, 223 << 24) >> 8 << 8, 24)) for _ in range(20_000)}
    serve(balancer, ModeCode.DSR_L3, list(map(str, found)))
    for network in sorted(found)[::400]:
        for number in (int(network[0]) - 1, int(network[0]), int(network[77]), int(network[-1]) + 1):
            source = ip_address(number)
            expected = IPv4Network((number >> 8 << 8, 24)) in found
            assert is_let_through(balancer, tcp(At(str(source), 7), WEB, "A")) == expected


@pytest.mark.parametrize("mode", list(ModeCode), ids=lambda mode: mode.name)
def test_it_holds_in_every_mode(balancer: Balancer, mode: ModeCode) -> None:
    serve(balancer, mode, HERE)
    assert is_let_through(balancer, tcp(CLIENT, WEB))
    serve(balancer, mode, ELSEWHERE)
    assert outcome(balancer, tcp(CLIENT, WEB)) == DENIED
    serve(balancer, mode, [])
    assert is_let_through(balancer, tcp(CLIENT, WEB))


@pytest.mark.parametrize("make", [udp, sctp], ids=["UDP", "SCTP"])
def test_it_holds_for_every_protocol(balancer: Balancer, make: type[object]) -> None:
    protocol = lab.UDP if make is udp else lab.SCTP
    for mode in ModeCode if make is udp else (ModeCode.DSR_L2, ModeCode.DSR_L3):
        serve(balancer, mode, HERE, protocol)
        assert is_let_through(balancer, make(CLIENT, WEB))  # type: ignore[arg-type, call-arg]
        serve(balancer, mode, ELSEWHERE, protocol)
        assert outcome(balancer, make(CLIENT, WEB)) == DENIED  # type: ignore[arg-type, call-arg]


def test_a_list_without_networks_of_a_family_lets_nobody_of_it_through(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L3, ELSEWHERE6)
    assert outcome(balancer, tcp(CLIENT, WEB)) == DENIED
    serve6(balancer, ModeCode.DSR_L3, ["0.0.0.0/0"])
    assert outcome(balancer, tcp6(SOURCE6, WEB6)) == DENIED


def test_other_services_of_the_vip_are_for_everybody(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT, ELSEWHERE)
    balancer.serve(At(VIP, 81), [1], index=2)
    assert is_let_through(balancer, tcp(CLIENT, At(VIP, 81)))


# --- open connections ------------------------------------------------------------------------------------------------
def test_a_connection_of_nat_ends_for_both_sides_when_its_client_goes(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT, HERE)
    balancer.send(tcp(CLIENT, WEB))
    answer = tcp(SERVER, CLIENT, "SA")
    assert balancer.send(answer, "back") == (XdpVerdict.REDIRECT, to_client(answer, WEB))
    serve(balancer, ModeCode.NAT, ELSEWHERE)
    assert outcome(balancer, tcp(CLIENT, WEB, "A")) == DENIED
    assert balancer.connections() == {}
    serve(balancer, ModeCode.NAT, HERE)
    content = tcp(CLIENT, WEB, "S")
    assert balancer.send(content) == (XdpVerdict.REDIRECT, to_endpoint(content, SERVER))


def test_a_stranger_ends_no_connection_of_somebody_else(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT, HERE)
    balancer.send(tcp(CLIENT, WEB))
    before = balancer.connections()
    assert outcome(balancer, tcp(At("198.51.100.9", CLIENT.port), WEB, "R")) == DENIED
    assert balancer.connections() == before


# --- ICMP ----------------------------------------------------------------------------------------------------
def about(client: str, family: int = 4) -> bytes:
    """The error of a router, in no list, about what an endpoint sent to a client."""
    if family == 6:
        reply = IPv6(src=WEB6.address, dst=client) / TCP(sport=80, dport=40_000) / Raw(b"x" * 40)
        return frame6("2001:db8:99::1", WEB6.address, ICMPv6DestUnreach() / Raw(bytes(reply)[:60]))
    reply = IP(src=VIP, dst=client) / TCP(sport=80, dport=40_000) / Raw(b"x" * 40)
    return frame("198.51.100.1", VIP, ICMP(type=3, code=4, nexthopmtu=1400) / Raw(bytes(reply)[:28]))


def test_an_error_is_judged_by_the_client_that_it_is_about(balancer: Balancer) -> None:
    """Whoever sends it: a router on the way is nobody's client."""
    for mode in (ModeCode.DSR_L2, ModeCode.DSR_L3):
        serve(balancer, mode, HERE)
        serve6(balancer, mode, HERE)
        assert outcome(balancer, about(CLIENT.address))[1] == {Verdict.ICMP_ERROR: 1}
        assert outcome(balancer, about(CLIENT6, 6))[1] == {Verdict.ICMP_ERROR: 1}
        for undefined in (UndefinedCode.DROP, UndefinedCode.REJECT):
            balancer.vip(VIP, undefined)
            assert outcome(balancer, about("198.51.100.9")) == DENIED
        assert outcome(balancer, about("2001:db8:99::9", 6)) == DENIED


def test_pings_follow_the_service_only_if_they_go_to_its_endpoints(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L3, ELSEWHERE)
    assert outcome(balancer, echo(CLIENT.address, VIP))[1] == {Verdict.ECHO_ANSWERED: 1}
    balancer.serve(At(VIP, 0), [1], index=3, mode=ModeCode.DSR_L3, protocol=lab.ICMP,
                   algorithm=AlgorithmCode.MAGLEV, sources=ELSEWHERE)  # fmt: skip
    balancer.vip(VIP, UndefinedCode.REJECT, EchoCode.ENDPOINT)
    assert outcome(balancer, echo(CLIENT.address, VIP)) == DENIED
    balancer.serve(At(WEB6.address, 0), [5], index=4, mode=ModeCode.DSR_L3, protocol=lab.ICMPV6,
                   algorithm=AlgorithmCode.MAGLEV, sources=HERE)  # fmt: skip
    balancer.vip(WEB6.address, echo=EchoCode.ENDPOINT)
    assert outcome(balancer, frame6(CLIENT6, WEB6.address, ICMPv6EchoRequest()))[1] == {Verdict.ECHO_FORWARDED: 1}


# --- answers ----------------------------------------------------------------------------------------------------
def test_where_undefined_traffic_is_rejected_the_client_is_told(balancer: Balancer) -> None:
    for protocol in (lab.TCP, lab.UDP):
        serve(balancer, ModeCode.DSR_L3, ELSEWHERE, protocol)
        serve6(balancer, ModeCode.DSR_L3, ELSEWHERE, protocol)
    balancer.vip(VIP, UndefinedCode.REJECT)
    balancer.vip(WEB6.address, UndefinedCode.REJECT)
    segment, segment6 = tcp(CLIENT, WEB, "A", b"data"), tcp6(SOURCE6, WEB6, "S")
    datagram, datagram6 = udp(CLIENT, WEB), frame6(CLIENT6, WEB6.address, UDP(sport=7, dport=80) / Raw(b"hello"))
    assert balancer.send(segment) == (XdpVerdict.TX, reset(segment))
    assert balancer.send(segment6) == (XdpVerdict.TX, reset6(segment6))
    assert balancer.send(datagram) == (XdpVerdict.TX, answered(datagram, ICMP(type=3, code=3), LEAST))
    assert balancer.send(datagram6) == (XdpVerdict.TX, answered6(datagram6, ICMPv6DestUnreach(code=4), LEAST6))
    assert balancer.verdicts() == {Verdict.NOT_ALLOWED_ANSWERED: 4}
    assert outcome(balancer, tcp(CLIENT, WEB, "R")) == DENIED
    balancer.vip(VIP, UndefinedCode.PASS)
    assert outcome(balancer, tcp(CLIENT, WEB)) == DENIED
