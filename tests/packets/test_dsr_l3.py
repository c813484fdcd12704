# SPDX-License-Identifier: Apache-2.0
"""Direct server return through a tunnel: what leaves for the endpoint, whole frames."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from reconciler.dataplane.layout import AlgorithmCode, EndpointRowState, ModeCode, TooBigCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as lab
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, ROUTER, STRANGER, VIP, WEB, Balancer, Traffic, through_tunnel
from tests.packets.frames import ETHERNET, IPV4, MACS, At, answered, frame, padded, sctp, tcp, udp
from tests.packets.test_forward import NOWHERE
from tests.packets.test_others import HOSTILE, dropped_as
from tests.packets.test_schedule import clients, maglev_slot

pytestmark = pytest.mark.kernel

OWN = "10.2.0.1"
SERVER = ENDPOINTS_AT[1]
MTU = 1500
FITS = MTU - IPV4
QUOTED = 504
DNS = At(VIP, 53)


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    balancer.settings(OWN)
    balancer.endpoint(1)
    serve(balancer, [1])


def serve(balancer: Balancer, ring: list[int], at: At = WEB, protocol: int = lab.TCP, index: int = 1) -> None:
    balancer.serve(
        at, ring, index=index, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3, protocol=protocol
    )  # fmt: skip


def sized(ip_bytes: int, **ip: object) -> bytes:
    """A frame of the client's with a packet of this length."""
    return tcp(CLIENT, WEB, "A", bytes(i % 251 for i in range(ip_bytes - IPV4 - 20)), **ip)


# --- what leaves -------------------------------------------------------------------------------------------------
def test_a_request_leaves_as_it_came_in_another_ip_header(balancer: Balancer) -> None:
    syn = padded(tcp(CLIENT, WEB, "S"))
    assert balancer.send(syn) == (XdpVerdict.REDIRECT, through_tunnel(syn, SERVER, OWN))
    assert balancer.verdicts() == {Verdict.REQUEST: 1}
    assert balancer.connections() == {}


def test_what_came_in_by_the_interface_of_its_next_hop_goes_back_out_of_it(balancer: Balancer) -> None:
    syn = tcp(CLIENT, WEB, "S")
    assert balancer.send(syn, "back") == (XdpVerdict.TX, through_tunnel(syn, SERVER, OWN))


def test_any_segment_finds_its_endpoint_without_a_syn_before_it(balancer: Balancer) -> None:
    for flags in ("A", "PA", "SA", "FA", "R", "SF", "", "SEC"):
        content = tcp(CLIENT, WEB, flags)
        assert balancer.send(content).frame == through_tunnel(content, SERVER, OWN)
    assert balancer.verdicts() == {Verdict.REQUEST: 8}


def test_ports_are_never_translated(balancer: Balancer) -> None:
    balancer.endpoint(1, port=8080)
    balancer.serve(ring=[1], target_port=9090, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    syn = tcp(CLIENT, WEB)
    assert balancer.send(syn).frame == through_tunnel(syn, SERVER, OWN)


@pytest.mark.parametrize("tos", [0, 0xB8, 0x03, 0xFF])
@pytest.mark.parametrize("flags", ["", "DF"])
def test_the_type_of_service_is_copied_and_the_outer_header_cant_be_fragmented(
    balancer: Balancer, tos: int, flags: str
) -> None:
    content = tcp(CLIENT, WEB, "A", b"odd", tos=tos, flags=flags, id=0xFFFF, ttl=255)
    out = balancer.send(content).frame
    assert out == through_tunnel(content, SERVER, OWN)
    outer = Ether(out)[IP]
    assert (outer.tos, outer.id, outer.flags, outer.ttl) == (tos, 0, "DF", 64)


def test_every_outer_checksum_is_right(balancer: Balancer) -> None:
    """Sums that carry once, twice and not at all: 500 lengths by 3 endpoints."""
    for id in (1, 2, 3):
        balancer.endpoint(1, ENDPOINTS_AT[id])
        for length in range(500):
            content = tcp(CLIENT, WEB, "A", bytes(length), tos=length % 256)
            assert balancer.send(content).frame == through_tunnel(content, ENDPOINTS_AT[id], OWN)


def test_a_wrong_checksum_of_the_client_stays_wrong(balancer: Balancer) -> None:
    content = frame(CLIENT.address, VIP, TCP(sport=CLIENT.port, dport=80, chksum=0xBAD))
    assert balancer.send(content).frame == through_tunnel(content, SERVER, OWN)


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_request_whose_ttl_is_used_up_is_dropped(balancer: Balancer, ttl: int) -> None:
    assert dropped_as(balancer, tcp(CLIENT, WEB, ttl=ttl)) == [Verdict.TTL_EXPIRED]


def test_an_endpoint_far_away_is_reached_by_the_router(balancer: Balancer) -> None:
    balancer.endpoint(1, "192.0.2.7")
    syn = tcp(CLIENT, WEB)
    assert balancer.send(syn).frame == through_tunnel(syn, "192.0.2.7", OWN, next_hop=ROUTER)


def test_policy_routing_sees_the_outer_source(balancer: Balancer) -> None:
    balancer.endpoint(1, "192.0.2.7")
    balancer.settings("20.20.20.7")
    syn = tcp(CLIENT, WEB)
    assert balancer.send(syn).frame == through_tunnel(syn, "192.0.2.7", "20.20.20.7", next_hop=ENDPOINTS_AT[4])


def test_neither_ports_nor_the_type_of_service_choose_the_way(balancer: Balancer) -> None:
    """There is one way to an endpoint, whatever comes in."""
    balancer.endpoint(1, "192.0.2.7")
    for syn in (tcp(CLIENT, WEB, tos=0x10), tcp(At(CLIENT.address, 777), WEB)):
        assert balancer.send(syn).frame == through_tunnel(syn, "192.0.2.7", OWN, next_hop=ROUTER)


# --- UDP ---------------------------------------------------------------------------------------------------------
def test_a_datagram_leaves_as_it_came_whatever_its_checksum(balancer: Balancer) -> None:
    serve(balancer, [1], DNS, lab.UDP, index=2)
    for content in (
        padded(udp(CLIENT, DNS)),
        frame(CLIENT.address, VIP, UDP(sport=1, dport=53, chksum=0)),
        frame(CLIENT.address, VIP, UDP(sport=0, dport=53, chksum=0xFFFF) / Raw(b"x" * 1000)),
    ):
        assert balancer.send(content).frame == through_tunnel(content, SERVER, OWN)
    assert balancer.verdicts() == {Verdict.REQUEST: 3}
    assert balancer.traffic_of_services() == {2: Traffic(0, 3, 33 + 28 + 1028)}


def test_protocols_with_the_same_port_are_apart(balancer: Balancer) -> None:
    assert dropped_as(balancer, udp(CLIENT, WEB)) == [Verdict.UNDEFINED]


BROKEN_UDP = {
    "header cut off": Raw(struct.pack(">HHH", 1, 53, 8)),
    "no length": UDP(sport=1, dport=53, len=0),
    "length of less than a header": UDP(sport=1, dport=53, len=7),
    "length of more than the packet": UDP(sport=1, dport=53, len=9),
}


@pytest.mark.parametrize("transport", BROKEN_UDP.values(), ids=BROKEN_UDP)
def test_a_broken_datagram_is_malformed(balancer: Balancer, transport: UDP) -> None:
    serve(balancer, [1], DNS, lab.UDP)
    assert dropped_as(balancer, padded(frame(CLIENT.address, VIP, transport, proto=17))) == [Verdict.MALFORMED]


# --- SCTP --------------------------------------------------------------------------------------------------------
def test_an_sctp_packet_leaves_as_it_came_whatever_its_checksum(balancer: Balancer) -> None:
    serve(balancer, [1], WEB, lab.SCTP, index=2)
    content = sctp(CLIENT, WEB)
    for changed in (content, content[:-1] + b"?", padded(content, 80)):
        assert balancer.send(changed).frame == through_tunnel(changed, SERVER, OWN)
    assert balancer.traffic_of_services() == {2: Traffic(3, 3, 3 * (len(content) - ETHERNET))}


def test_an_sctp_header_that_is_cut_off_is_malformed(balancer: Balancer) -> None:
    serve(balancer, [1], WEB, lab.SCTP)
    header = struct.pack(">HHII", 40_000, 80, 0, 0)
    assert balancer.send(padded(frame(CLIENT.address, VIP, Raw(header), proto=132))).verdict == XdpVerdict.REDIRECT
    for length in range(12):
        content = padded(frame(CLIENT.address, VIP, Raw(header[:length]), proto=132))
        assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.MALFORMED: 12}


# --- hostile -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_are_dropped_with_their_reason(balancer: Balancer, name: str) -> None:
    make, reason = HOSTILE[name]
    assert dropped_as(balancer, make(VIP)) == [reason]


def test_every_cut_of_a_frame_is_dropped_or_none_of_our_business(balancer: Balancer) -> None:
    syn = tcp(CLIENT, WEB)
    for length in range(ETHERNET, len(syn)):
        action, out = balancer.send(syn[:length])
        assert (action, out) == (XdpVerdict.PASS, syn[:length]) or action == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.MALFORMED: 20}


# --- which endpoint ----------------------------------------------------------------------------------------------
def test_each_client_goes_to_the_slot_of_its_hash(balancer: Balancer) -> None:
    ring = [1, 2, 3, 4, 3]
    for id in ring:
        balancer.endpoint(id)
    serve(balancer, ring)
    for client in clients(100):
        content = tcp(client, WEB, "A")
        endpoint = ENDPOINTS_AT[ring[maglev_slot(client, len(ring))]]
        assert balancer.send(content).frame == through_tunnel(content, endpoint, OWN)


def test_a_disabled_endpoint_gets_nothing_and_a_retired_one_keeps_what_the_ring_gives_it(balancer: Balancer) -> None:
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.REDIRECT
    for state in (EndpointRowState.DISABLED, EndpointRowState.FREE):
        balancer.endpoint(1, state=state)
        assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.NO_ENDPOINT: 2}


@pytest.mark.parametrize("ring", [[], [0], [131_072], [2**32 - 1]], ids=str)
def test_a_ring_that_names_no_endpoint_drops(balancer: Balancer, ring: list[int]) -> None:
    serve(balancer, ring)
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.NO_ENDPOINT]


def test_traffic_is_that_of_the_inner_packets_and_syns_are_connections(balancer: Balancer) -> None:
    balancer.send(padded(tcp(CLIENT, WEB, "S")))
    balancer.send(tcp(CLIENT, WEB, "PA", b"x" * 100))
    balancer.send(tcp(CLIENT, WEB, "SA"))
    assert balancer.traffic_of_services() == {1: Traffic(1, 3, 40 + 140 + 40)}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 3, 40 + 140 + 40)}


# --- the outer source --------------------------------------------------------------------------------------------
def outer_sources(balancer: Balancer, sources: list[At]) -> list[IPv4Address]:
    return [IPv4Address(Ether(balancer.send(tcp(client, WEB, "A")).frame)[IP].src) for client in sources]


def test_without_a_prefix_to_spread_over_all_packets_have_the_balancers_address(balancer: Balancer) -> None:
    assert set(outer_sources(balancer, clients(50))) == {IPv4Address(OWN)}


def test_sources_are_spread_over_the_prefix_and_stay_the_same_for_a_flow(balancer: Balancer) -> None:
    balancer.settings("10.77.0.0", "0.0.255.255")
    sources = [At(client.address, port) for client in clients(100) for port in (1000, 2000)]
    found = outer_sources(balancer, sources)
    assert found == outer_sources(balancer, sources)
    assert all(address.packed[:2] == bytes((10, 77)) for address in found)
    assert len(set(found)) > 190
    for octet in (2, 3):
        assert len({address.packed[octet] for address in found}) > 100
    balancer.send(tcp(CLIENT, WEB, "A"))
    content = tcp(sources[0], WEB, "A")
    assert balancer.send(content).frame == through_tunnel(content, SERVER, str(found[0]))


def test_sources_are_spread_within_each_endpoint(balancer: Balancer) -> None:
    """The bits that choose the slot must not be those that choose the source."""
    balancer.settings("10.77.0.0", "0.0.0.7")
    for id in ENDPOINTS_AT:
        balancer.endpoint(id)
    serve(balancer, [1, 2, 3, 4])
    seen: dict[str, set[str]] = {}
    for client in clients(400):
        outer = Ether(balancer.send(tcp(client, WEB, "A")).frame)[IP]
        seen.setdefault(outer.dst, set()).add(outer.src)
    assert [len(sources) for sources in seen.values()] == [8, 8, 8, 8]


def test_without_a_source_there_is_no_tunnel(balancer: Balancer) -> None:
    balancer.settings("0.0.0.0")
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.NO_ROUTE]


# --- neighbours and routes ---------------------------------------------------------------------------------------
def test_a_next_hop_without_a_known_mac_gets_the_packet_from_the_kernel(balancer: Balancer) -> None:
    """With the client's address outside, since the kernel takes nothing in that claims to be from itself."""
    balancer.endpoint(1, STRANGER)
    syn = tcp(CLIENT, WEB)
    assert balancer.send(syn) == (XdpVerdict.PASS, through_tunnel_to_kernel(syn))
    assert balancer.verdicts() == {Verdict.VIA_KERNEL: 1}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 1, 40)}


def through_tunnel_to_kernel(content: bytes) -> bytes:
    return lab.tunnelled(content, CLIENT.address, STRANGER, MACS)


@pytest.mark.parametrize("address", NOWHERE.values(), ids=NOWHERE)
def test_what_no_route_forwards_is_dropped(balancer: Balancer, address: str) -> None:
    balancer.endpoint(1, address)
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.NO_ROUTE]


# --- MTU ---------------------------------------------------------------------------------------------------------
def frag_needed(content: bytes) -> bytes:
    return answered(content, ICMP(type=3, code=4, nexthopmtu=FITS), QUOTED)


def test_a_packet_that_just_fits_with_its_outer_header_leaves(balancer: Balancer) -> None:
    content = sized(FITS)
    assert balancer.send(content) == (XdpVerdict.REDIRECT, through_tunnel(content, SERVER, OWN))


@pytest.mark.parametrize("length", [FITS + 1, MTU, 3000])
@pytest.mark.parametrize("flags", ["", "DF"])
def test_the_sender_of_a_packet_that_fits_no_more_is_told_what_would(
    balancer: Balancer, length: int, flags: str
) -> None:
    content = sized(length, flags=flags, tos=0x10)
    assert balancer.send(content) == (XdpVerdict.TX, frag_needed(content))
    assert balancer.verdicts() == {Verdict.TOO_BIG_ANSWERED: 1}
    assert balancer.traffic_of_services() == {}


def test_the_answer_is_right_whatever_it_quotes(balancer: Balancer) -> None:
    """Checksums that carry and that don't."""
    for seed in range(200):
        content = tcp(At(CLIENT.address, 1024 + seed), WEB, "A", bytes((seed * i) % 256 for i in range(1461)))
        assert balancer.send(content).frame == frag_needed(content)


def test_padding_does_not_count_against_the_mtu_and_is_not_quoted(balancer: Balancer) -> None:
    small, large = tcp(CLIENT, WEB) + bytes(MTU), sized(FITS + 1)
    assert balancer.send(small).frame == through_tunnel(small, SERVER, OWN)
    assert balancer.send(large + b"padding").frame == frag_needed(large)


def test_nobody_is_told_if_the_node_says_so(balancer: Balancer) -> None:
    balancer.settings(OWN, too_big=TooBigCode.DROP)
    assert dropped_as(balancer, sized(FITS + 1)) == [Verdict.TOO_BIG]


@pytest.mark.parametrize("source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"])
def test_a_sender_that_is_nobody_or_many_is_not_told(balancer: Balancer, source: str) -> None:
    assert dropped_as(balancer, tcp(At(source, 1), WEB, "A", bytes(MTU - 40))) == [Verdict.IMPOSSIBLE_SOURCE]


def test_what_came_to_many_is_not_answered(balancer: Balancer) -> None:
    content = b"\xff" * 6 + sized(FITS + 1)[6:]
    assert dropped_as(balancer, content) == [Verdict.LINK_BROADCAST]

