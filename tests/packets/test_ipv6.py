# SPDX-License-Identifier: Apache-2.0
"""Direct server return with IPv6: VIPs, endpoints, tunnels of both kinds, whole frames."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, EndpointRowState, ModeCode, TooBigCode, UndefinedCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as lab
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ROUTER6,
    STRANGER6,
    WEB,
    Balancer,
    Traffic,
    by_mac,
    macs_towards,
)
from tests.packets.frames import (
    ETHERNET,
    IPV6,
    MACS,
    At,
    answered,
    answered6,
    frame6,
    padded,
    tcp,
    tcp6,
    tunnelled6,
)
from tests.packets.test_others import dropped_as, passes_untouched
from tests.packets.test_schedule import maglev_slot, mixed

pytestmark = pytest.mark.kernel

OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"
VIP = "2001:db8:20::1"
SERVICE = At(VIP, 80)
SOURCE = At(CLIENT6, 40_000)
SERVER = ENDPOINTS6_AT[5]
MTU = 1500
FITS = MTU - IPV6
RING = [5, 6, 7, 6, 5]


def folded(address: str) -> int:
    """The one number that is hashed for an address."""
    packed = IPv6Address(address).packed
    high, low = int.from_bytes(packed[:8]), int.from_bytes(packed[8:])
    high = (high ^ high >> 29) * 0xFF51AFD7ED558CCD % 2**64
    low = (low ^ low >> 29) * 0xC4CEB9FE1A85EC53 % 2**64
    return (high ^ low) >> 32


def hashed(address: int, port: int, protocol: int = lab.TCP) -> int:
    return mixed((mixed(address) + (port << 8 | protocol)) % 2**32)


def slot(client: At, slots: int, protocol: int = lab.TCP) -> int:
    return hashed(folded(client.address), client.port, protocol) * slots >> 32


def label(client: At, protocol: int = lab.TCP) -> int:
    return hashed(folded(client.address), client.port, protocol) & 0xFFFFF


def through_tunnel(
    content: bytes, endpoint: str = SERVER, client: At = SOURCE, next_hop: str = "", protocol: int = lab.TCP
) -> bytes:  # fmt: skip
    return tunnelled6(content, OWN6, endpoint, macs_towards(next_hop or endpoint), label(client, protocol))


def clients(count: int) -> list[At]:
    return [At(f"2001:db8:{i % 7:x}:{i * 7919 % 65536:x}::{i + 1:x}", 1024 + i) for i in range(count)]


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    balancer.settings(OWN, source6=OWN6)
    balancer.endpoint(5)
    serve(balancer)


def serve(
    balancer: Balancer, mode: ModeCode = ModeCode.DSR_L3, ring: list[int] | None = None, protocol: int = lab.TCP,
    at: At = SERVICE,
) -> None:  # fmt: skip
    ring = [5] if ring is None else ring
    balancer.serve(at, ring, algorithm=AlgorithmCode.MAGLEV, mode=mode, protocol=protocol)


def sized(ip_bytes: int, **ip: object) -> bytes:
    return tcp6(SOURCE, SERVICE, "A", bytes(i % 251 for i in range(ip_bytes - IPV6 - 20)), **ip)


# --- what leaves -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [{}, {"tc": 0xB9, "fl": 0xABCDE, "hlim": 255}, {"hlim": 2}], ids=str)
def test_a_request_leaves_as_it_came_in_another_ip_header(balancer: Balancer, fields: dict[str, object]) -> None:
    content = padded(tcp6(SOURCE, SERVICE, "S", b"odd", **fields), 90)
    assert balancer.send(content) == (XdpVerdict.REDIRECT, through_tunnel(content))
    assert balancer.verdicts() == {Verdict.REQUEST: 1}
    assert balancer.traffic_of_services() == {1: Traffic(1, 1, 63)}
    assert balancer.traffic_of_endpoints() == {5: Traffic(1, 1, 63)}


def test_a_request_leaves_by_another_mac(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L2)
    content = tcp6(SOURCE, SERVICE, "PA", b"hello", tc=0xFF, fl=1)
    assert balancer.send(content) == (XdpVerdict.REDIRECT, by_mac(content, SERVER))
    assert balancer.send(content, "back") == (XdpVerdict.TX, by_mac(content, SERVER))


@pytest.mark.parametrize(
    "transport", [UDP(sport=SOURCE.port, dport=80, chksum=0) / b"x", SCTP(sport=SOURCE.port, dport=80)]
)
def test_other_protocols_leave_the_same_way(balancer: Balancer, transport: Packet) -> None:
    protocol = lab.UDP if UDP in transport else lab.SCTP
    serve(balancer, protocol=protocol)
    content = frame6(CLIENT6, VIP, transport)
    assert balancer.send(content).frame == through_tunnel(content, protocol=protocol)


def test_ipv4_goes_to_an_ipv6_endpoint_through_an_ipv6_tunnel(balancer: Balancer) -> None:
    serve(balancer, at=WEB)
    content = padded(tcp(CLIENT, WEB, "S", tos=0x2E))
    expected = hashed(int.from_bytes(bytes((10, 1, 0, 2)), "big"), CLIENT.port) & 0xFFFFF
    assert balancer.send(content) == (
        XdpVerdict.REDIRECT, tunnelled6(content, OWN6, SERVER, macs_towards(SERVER), expected)
    )  # fmt: skip


def test_ipv4_has_no_way_to_an_ipv6_endpoint_by_mac(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L2, at=WEB)
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.OFF_LINK]


def test_an_ipv6_endpoint_is_none_for_nat(balancer: Balancer) -> None:
    balancer.serve(WEB, [5])
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.NO_ENDPOINT]


def test_an_ipv4_endpoint_is_none_for_ipv6(balancer: Balancer) -> None:
    balancer.endpoint(1)
    for mode in (ModeCode.DSR_L2, ModeCode.DSR_L3):
        serve(balancer, mode, [1])
        assert balancer.send(tcp6(SOURCE, SERVICE)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.NO_ENDPOINT: 2}


def test_pools_may_hold_endpoints_of_both_families_for_ipv4(balancer: Balancer) -> None:
    balancer.endpoint(1)
    serve(balancer, ring=[1, 5], at=WEB)
    kinds = set()
    for port in range(1024, 1064):
        out = Ether(balancer.send(tcp(At(CLIENT.address, port), WEB)).frame)
        assert (IPv6 in out) == (maglev_slot(At(CLIENT.address, port), 2) == 1)
        kinds.add(IPv6 in out)
    assert kinds == {True, False}


def test_each_client_goes_to_the_slot_of_its_hash(balancer: Balancer) -> None:
    for id in ENDPOINTS6_AT:
        balancer.endpoint(id)
    serve(balancer, ring=RING)
    seen = set()
    for client in clients(150):
        endpoint = ENDPOINTS6_AT[RING[slot(client, len(RING))]]
        content = tcp6(client, SERVICE, "A")
        assert balancer.send(content).frame == through_tunnel(content, endpoint, client)
        seen.add(endpoint)
    assert seen == set(ENDPOINTS6_AT.values())


def test_sources_are_spread_over_the_prefix_and_stay_the_same_for_a_flow(balancer: Balancer) -> None:
    balancer.settings(OWN, source6="2001:db8:77::", spread6="::ffff:ffff:ffff:ffff")
    contents = [tcp6(client, SERVICE, "A") for client in clients(100)]
    found = [IPv6Address(Ether(balancer.send(content).frame)[IPv6].src).packed for content in contents]
    assert found == [IPv6Address(Ether(balancer.send(content).frame)[IPv6].src).packed for content in contents]
    assert {source[:8] for source in found} == {IPv6Address("2001:db8:77::").packed[:8]}
    assert len({source[8:12] for source in found}) == len({source[12:] for source in found}) == 100


# --- neighbours and routes ---------------------------------------------------------------------------------------
def test_an_endpoint_far_away_is_reached_by_the_router_and_only_in_a_tunnel(balancer: Balancer) -> None:
    balancer.endpoint(5, "2001:db8:33::7")
    content = tcp6(SOURCE, SERVICE)
    assert balancer.send(content).frame == through_tunnel(content, "2001:db8:33::7", next_hop=ROUTER6)
    serve(balancer, ModeCode.DSR_L2)
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.OFF_LINK: 1}


def test_a_next_hop_without_a_known_mac_gets_the_packet_from_the_kernel(balancer: Balancer) -> None:
    balancer.endpoint(5, STRANGER6)
    content = tcp6(SOURCE, SERVICE)
    expected = tunnelled6(content, OWN6, STRANGER6, MACS, label(SOURCE))
    assert balancer.send(content) == (XdpVerdict.PASS, expected)
    assert balancer.verdicts() == {Verdict.VIA_KERNEL: 1}


@pytest.mark.parametrize("payload", [b"", b"x" * 999])
def test_for_an_endpoint_without_a_known_mac_the_kernel_gets_something_to_ask_by(
    balancer: Balancer, payload: bytes
) -> None:
    serve(balancer, ModeCode.DSR_L2)
    balancer.endpoint(5, STRANGER6)
    probe = bytes(Ether(src=MACS[0], dst=MACS[1]) / IPv6(src=CLIENT6, dst=STRANGER6, nh=59, hlim=64))
    assert balancer.send(tcp6(SOURCE, SERVICE, "A", payload)) == (XdpVerdict.PASS, probe)
    assert balancer.verdicts() == {Verdict.NEIGHBOUR_UNKNOWN: 1}


@pytest.mark.parametrize("address", ["2001:db8:9::1", "2001:db8:1::1"], ids=["blackhole", "itself"])
def test_what_no_route_forwards_is_dropped(balancer: Balancer, address: str) -> None:
    balancer.endpoint(5, address)
    assert dropped_as(balancer, tcp6(SOURCE, SERVICE)) == [Verdict.NO_ROUTE]


def test_without_a_source_there_is_no_tunnel(balancer: Balancer) -> None:
    balancer.settings(OWN)
    assert dropped_as(balancer, tcp6(SOURCE, SERVICE)) == [Verdict.NO_ROUTE]


@pytest.mark.parametrize("hlim", [0, 1])
def test_a_request_whose_hop_limit_is_used_up_is_dropped(balancer: Balancer, hlim: int) -> None:
    assert dropped_as(balancer, tcp6(SOURCE, SERVICE, hlim=hlim)) == [Verdict.TTL_EXPIRED]


@pytest.mark.parametrize("state", [EndpointRowState.FREE, EndpointRowState.DISABLED])
def test_what_is_no_endpoint_any_more_gets_nothing(balancer: Balancer, state: EndpointRowState) -> None:
    balancer.endpoint(5, state=state)
    assert dropped_as(balancer, tcp6(SOURCE, SERVICE)) == [Verdict.NO_ENDPOINT]


# --- MTU ---------------------------------------------------------------------------------------------------------
def packet_too_big(content: bytes, mtu: int = FITS) -> bytes:
    return answered6(content, ICMPv6PacketTooBig(mtu=mtu), 1232)


def test_the_sender_of_a_packet_that_fits_no_more_is_told_what_would(balancer: Balancer) -> None:
    fits = sized(FITS)
    assert balancer.send(fits).frame == through_tunnel(fits)
    for length in (FITS + 1, MTU, 3000):
        content = sized(length, tc=0xFF, fl=7)
        assert balancer.send(content) == (XdpVerdict.TX, packet_too_big(content))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TOO_BIG_ANSWERED: 3}


def test_the_answer_is_right_whatever_it_quotes(balancer: Balancer) -> None:
    for seed in range(200):
        content = tcp6(At(CLIENT6, 1024 + seed), SERVICE, "A", bytes((seed * i) % 256 for i in range(FITS - 59)))
        assert balancer.send(content).frame == packet_too_big(content)


def test_ipv4_in_an_ipv6_tunnel_is_told_the_mtu_of_ipv4(balancer: Balancer) -> None:
    serve(balancer, at=WEB)
    content = tcp(CLIENT, WEB, "A", bytes(FITS - 39))
    assert balancer.send(content).frame == answered(content, ICMP(type=3, code=4, nexthopmtu=FITS), 504)


def test_by_mac_the_whole_mtu_may_be_used(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L2)
    assert balancer.send(sized(MTU)).frame == by_mac(sized(MTU), SERVER)
    assert balancer.send(sized(MTU + 1)).frame == packet_too_big(sized(MTU + 1), MTU)


@pytest.mark.parametrize("source", ["::", "::1", "ff02::1"])
def test_a_sender_that_is_nobody_or_many_is_not_told(balancer: Balancer, source: str) -> None:
    assert dropped_as(balancer, tcp6(At(source, 1), SERVICE, "A", bytes(FITS))) == [Verdict.IMPOSSIBLE_SOURCE]


def test_what_came_to_many_is_not_answered(balancer: Balancer) -> None:
    assert dropped_as(balancer, b"\x33\x33\x00\x00\x00\x01" + sized(MTU)[6:]) == [Verdict.LINK_BROADCAST]


def test_nobody_is_told_if_the_node_says_so(balancer: Balancer) -> None:
    balancer.settings(OWN, source6=OWN6, too_big=TooBigCode.DROP)
    assert dropped_as(balancer, sized(MTU)) == [Verdict.TOO_BIG]


# --- ICMPv6 errors -----------------------------------------------------------------------------------------------
ERRORS: dict[str, Packet] = {
    "unreachable": ICMPv6DestUnreach(code=4),
    "packet too big": ICMPv6PacketTooBig(mtu=1280),
    "time exceeded": ICMPv6TimeExceeded(),
    "parameter problem": ICMPv6ParamProblem(),
}


def about(packet: Packet, kind: Packet = ERRORS["packet too big"], to: str = VIP, quoted: int = 1232) -> bytes:
    return frame6("2001:db8:44::1", to, kind / Raw(bytes(packet)[:quoted]))


def reply(client: At, **ip: object) -> Packet:
    return IPv6(**({"src": VIP, "dst": client.address} | ip)) / TCP(sport=80, dport=client.port) / Raw(b"x" * 40)


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_an_error_goes_to_the_endpoint_that_the_clients_requests_go_to(balancer: Balancer, kind: Packet) -> None:
    for id in ENDPOINTS6_AT:
        balancer.endpoint(id)
    serve(balancer, ring=RING)
    for client in clients(20):
        content = about(reply(client), kind)
        endpoint = ENDPOINTS6_AT[RING[slot(client, len(RING))]]
        assert balancer.send(content).frame == through_tunnel(content, endpoint, client)
    assert balancer.verdicts() == {Verdict.ICMP_ERROR: 20}


KERNELS = {
    "about a port without a service": about(IPv6(src=VIP, dst=CLIENT6) / TCP(sport=81)),
    "about a packet of the client's": about(IPv6(src=CLIENT6, dst=VIP) / TCP(sport=80, dport=80)),
    "about a fragment": about(IPv6(src=VIP, dst=CLIENT6) / IPv6ExtHdrFragment(offset=1) / TCP(sport=80)),
    "about IPv4": about(reply(SOURCE, version=4)),
    "ports cut off": about(reply(SOURCE), quoted=47),
    "no quote": about(reply(SOURCE), quoted=0),
    "a search for a neighbour": frame6(CLIENT6, VIP, ICMPv6ND_NS(tgt=VIP), hlim=255),
}


@pytest.mark.parametrize("content", KERNELS.values(), ids=KERNELS)
def test_the_rest_of_icmp_is_the_kernels(balancer: Balancer, content: bytes) -> None:
    assert passes_untouched(balancer, content)


def test_an_error_to_another_address_than_it_is_about_is_not_ours(balancer: Balancer) -> None:
    assert passes_untouched(balancer, about(reply(SOURCE), to="2001:db8:2::15"))


def test_an_error_that_is_too_big_is_never_answered(balancer: Balancer) -> None:
    assert dropped_as(balancer, about(reply(SOURCE) / Raw(bytes(1500)), quoted=1500)) == [Verdict.TOO_BIG]


# --- hostile and undefined ---------------------------------------------------------------------------------------
SEGMENT = TCP(sport=1, dport=80)
HOSTILE: dict[str, tuple[Packet, dict[str, object], Verdict]] = {
    "fragment": (IPv6ExtHdrFragment(m=1) / TCP(dport=81), {}, Verdict.FRAGMENT),
    "atomic fragment": (IPv6ExtHdrFragment() / TCP(dport=81), {}, Verdict.FRAGMENT),
    "hop-by-hop options": (IPv6ExtHdrHopByHop() / SEGMENT, {}, Verdict.IP_OPTIONS),
    "destination options": (IPv6ExtHdrDestOpt() / SEGMENT, {}, Verdict.IP_OPTIONS),
    "routing header": (IPv6ExtHdrRouting() / SEGMENT, {}, Verdict.IP_OPTIONS),
    "payload length 0": (SEGMENT, {"plen": 0}, Verdict.MALFORMED),
    "payload length 19": (SEGMENT, {"plen": 19}, Verdict.MALFORMED),
    "one byte more than came": (SEGMENT, {"plen": 21}, Verdict.MALFORMED),
    "payload length 65535": (SEGMENT, {"plen": 65_535}, Verdict.MALFORMED),
    "IP version 4": (SEGMENT, {"version": 4}, Verdict.MALFORMED),
    "short TCP header length": (TCP(dport=80, dataofs=4), {}, Verdict.MALFORMED),
    "UDP length of more than the packet": (UDP(dport=80, len=9), {}, Verdict.MALFORMED),
    "another port": (TCP(dport=81), {}, Verdict.UNDEFINED),
    "another protocol": (UDP(dport=80), {}, Verdict.UNDEFINED),
    "ICMP of IPv4": (ICMP(), {"nh": 1}, Verdict.UNDEFINED),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_are_dropped_if_they_are_for_a_vip(balancer: Balancer, name: str) -> None:
    transport, ip, reason = HOSTILE[name]
    assert passes_untouched(balancer, frame6(CLIENT6, "2001:db8:20::2", transport, **ip))
    assert dropped_as(balancer, frame6(CLIENT6, VIP, transport, **ip)) == [reason]


def test_every_cut_of_a_frame_is_dropped_or_none_of_our_business(balancer: Balancer) -> None:
    content = tcp6(SOURCE, SERVICE)
    for length in range(ETHERNET, len(content)):
        action, out = balancer.send(content[:length])
        assert action == (XdpVerdict.PASS if length < ETHERNET + IPV6 else XdpVerdict.DROP)
        assert out == content[:length]
    assert balancer.verdicts() == {Verdict.MALFORMED: 20}


def test_undefined_traffic_passes_if_the_node_says_so(balancer: Balancer) -> None:
    balancer.vip(VIP, UndefinedCode.PASS)
    assert passes_untouched(balancer, tcp6(SOURCE, At(VIP, 81)))


def test_the_families_do_not_mix(balancer: Balancer) -> None:
    """An IPv4 VIP is no prefix of an IPv6 one, and endpoints of IPv4 go on as before."""
    balancer.endpoint(1)
    balancer.serve(WEB, [1], index=2)
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.REDIRECT
    assert balancer.send(tcp6(SOURCE, SERVICE)).frame == through_tunnel(tcp6(SOURCE, SERVICE))
