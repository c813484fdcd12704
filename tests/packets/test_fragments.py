# SPDX-License-Identifier: Apache-2.0
"""Fragments of packets for services of direct server return, and of datagrams of NAT: all of one packet reach the
endpoint of its flow."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import FRAGMENT_WAYS, AlgorithmCode, EndpointRowState, ModeCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as lab
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    STRANGER,
    VIP,
    Balancer,
    Traffic,
    by_mac,
    macs_towards,
    through_tunnel,
)  # fmt: skip
from tests.packets.frames import IPV4, At, ether, forwarded, tunnelled6
from tests.packets.test_ipv6 import label

pytestmark = pytest.mark.kernel

VIP6 = "2001:db8:f::1"
OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"
PORT = 53
PAYLOAD = bytes(index % 251 for index in range(4_000))


@pytest.fixture(autouse=True)
def _served(balancer: Balancer) -> None:
    balancer.settings(OWN, source6=OWN6)
    for id in (1, 2, 5, 6):
        balancer.endpoint(id)
    serve(balancer)


def serve(balancer: Balancer, mode: ModeCode = ModeCode.DSR_L2, protocol: int = lab.UDP) -> None:
    """A hundred slots, so that two flows hardly ever share one by their port."""
    for index, (vip, ids) in enumerate(((VIP, [1, 2]), (VIP6, [5, 6])), start=1):
        balancer.serve(
            At(vip, PORT), ids * 50, index=index, algorithm=AlgorithmCode.MAGLEV, mode=mode, protocol=protocol
        )  # fmt: skip


def parts(segment: Packet, source: str, destination: str = "", id: int = 7) -> list[bytes]:
    """The fragments of a packet, in order."""
    if ":" in source:
        packet = IPv6(src=source, dst=destination or VIP6) / IPv6ExtHdrFragment(id=id) / segment
        return [bytes(ether() / part) for part in fragment6(packet, 1280)]
    packet = IP(src=source, dst=destination or VIP, id=id) / segment
    return [bytes(ether() / part) for part in fragment(packet, 1200)]


def datagram(source: At, id: int = 7, destination: str = "") -> list[bytes]:
    return parts(UDP(sport=source.port, dport=PORT) / Raw(PAYLOAD), source.address, destination, id)


def server_of(balancer: Balancer, source: At) -> str:
    """The endpoint that this client's whole datagrams go to."""
    is6 = ":" in source.address
    header = IPv6(src=source.address, dst=VIP6) if is6 else IP(src=source.address, dst=VIP)
    whole = bytes(ether() / header / UDP(sport=source.port, dport=PORT) / b"small")
    left = balancer.send(whole).frame
    (server,) = [a for a in (ENDPOINTS6_AT if is6 else ENDPOINTS_AT).values() if left == by_mac(whole, a)]
    return server


CLIENTS = [At(CLIENT.address, 40_000 + n) for n in range(6)] + [At(CLIENT6, 40_000 + n) for n in range(6)]


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_all_fragments_leave_for_the_endpoint_that_whole_datagrams_of_the_flow_go_to(
    balancer: Balancer, client: At
) -> None:
    server = server_of(balancer, client)
    sent = datagram(client)
    assert len(sent) == 4
    for part in sent:
        assert balancer.send(part) == (XdpVerdict.REDIRECT, by_mac(part, server))
    assert balancer.verdicts() == {Verdict.REQUEST: 5}


def test_clients_go_to_both_endpoints(balancer: Balancer) -> None:
    assert len({server_of(balancer, client) for client in CLIENTS}) == 4


@pytest.mark.parametrize("client", CLIENTS[5:7], ids=str)
def test_fragments_go_through_the_tunnel_of_the_flow(balancer: Balancer, client: At) -> None:
    server = server_of(balancer, client)
    serve(balancer, ModeCode.DSR_L3)
    for part in datagram(client):
        left = balancer.send(part).frame
        if ":" in server:
            assert left == tunnelled6(part, OWN6, server, macs_towards(server), label(client, lab.UDP))
        else:
            assert left == through_tunnel(part, server, OWN)


def test_two_datagrams_under_way_at_once_are_not_mixed_up(balancer: Balancer) -> None:
    clients = {server_of(balancer, client): client for client in CLIENTS[:6]}
    one, other = ([(server, part) for part in datagram(client, id)]
                  for id, (server, client) in enumerate(clients.items()))  # fmt: skip
    for server, part in [row for both in zip(one, other, strict=True) for row in both]:
        assert balancer.send(part).frame == by_mac(part, server)


@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[6]], ids=str)
def test_a_fragment_before_the_first_one_or_of_another_packet_is_dropped(balancer: Balancer, client: At) -> None:
    first, later, *_ = datagram(client)
    assert balancer.send(later).verdict == XdpVerdict.DROP
    balancer.send(first)
    strangers = [datagram(client, id=8)[1], datagram(At(_neighbour(client.address), client.port))[1]]
    assert [balancer.send(part).verdict for part in strangers] == [XdpVerdict.DROP] * 2
    assert balancer.send(later).verdict == XdpVerdict.REDIRECT
    assert balancer.verdicts() == {Verdict.REQUEST: 2, Verdict.FRAGMENT: 3}


def _neighbour(address: str) -> str:
    return address[:-1] + "3"


def test_a_fragment_comes_too_late_after_half_a_minute(balancer: Balancer) -> None:
    first, later, *_ = datagram(CLIENTS[0])
    balancer.send(first)
    ((key, value),) = balancer.kernel.dump(FRAGMENT_WAYS.name)
    way = FRAGMENT_WAYS.value.unpack(value)
    for age, verdict in ((26, XdpVerdict.REDIRECT), (30, XdpVerdict.DROP)):
        moment = (way.moment - age) & 0xFFFF_FFFF  # the machine may have booted just now
        row = key, FRAGMENT_WAYS.value.pack(way._replace(moment=moment))
        assert balancer.kernel.update(FRAGMENT_WAYS.name, [row]) == [None]
        assert balancer.send(later).verdict == verdict


def test_an_endpoint_that_died_meanwhile_gets_no_more_fragments(balancer: Balancer) -> None:
    first, later, *_ = datagram(CLIENTS[0])
    balancer.send(first)
    for id in (1, 2):
        balancer.endpoint(id, state=EndpointRowState.DISABLED)
    assert balancer.send(later).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.NO_ENDPOINT: 1}


def test_an_atomic_fragment_is_a_packet(balancer: Balancer) -> None:
    """It has a fragment header, and all of the packet (RFC 6946); nothing is noted for it."""
    server = server_of(balancer, CLIENTS[6])
    packet = IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrFragment(id=9) / UDP(sport=CLIENTS[6].port, dport=PORT) / b"x"
    atomic = bytes(ether() / packet)
    assert balancer.send(atomic).frame == by_mac(atomic, server)
    assert not list(balancer.kernel.dump(FRAGMENT_WAYS.name))


@pytest.mark.parametrize(
    ("protocol", "segment"),
    [(lab.TCP, TCP(sport=40_000, dport=PORT, flags="S") / Raw(PAYLOAD)),
     (lab.SCTP, SCTP(sport=40_000, dport=PORT) / SCTPChunkInit() / Raw(PAYLOAD))],
    ids=["tcp", "sctp"],
)  # fmt: skip
def test_segments_of_other_protocols_may_come_in_fragments_too(
    balancer: Balancer, protocol: int, segment: Packet
) -> None:
    serve(balancer, protocol=protocol)
    left = [balancer.send(part) for part in parts(segment, CLIENT.address)]
    assert {run.verdict for run in left} == {XdpVerdict.REDIRECT}
    assert len({Ether(run.frame).dst for run in left}) == 1
    assert balancer.traffic_of_services()[1] == Traffic(
        connections=1, request_packets=4, request_bytes=len(segment) + 4 * IPV4
    )  # fmt: skip


HOSTILE = {
    "ports cut off": IP(flags="MF", proto=17, id=1) / Raw(bytes(7)),
    "flags of TCP cut off": IP(flags="MF", proto=6, id=1) / Raw(bytes(UDP(dport=PORT)) + bytes(8)),
    "fragment header cut off": IPv6(nh=44, plen=7) / Raw(bytes(7)),
    "ports over IPv6 cut off": IPv6(nh=44) / IPv6ExtHdrFragment(nh=17, m=1) / Raw(bytes(7)),
}


@pytest.mark.parametrize("packet", HOSTILE.values(), ids=HOSTILE)
def test_headers_that_are_cut_off_are_dropped(balancer: Balancer, packet: Packet) -> None:
    client, vip = (CLIENT6, VIP6) if IPv6 in packet else (CLIENT.address, VIP)
    packet.src, packet.dst = client, vip
    assert balancer.send(bytes(ether() / packet)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.MALFORMED: 1}
    assert not list(balancer.kernel.dump(FRAGMENT_WAYS.name))


# --- nat ---------------------------------------------------------------------------------------------------------
SERVER = At(ENDPOINTS_AT[1], 5353)


def serve_by_nat(balancer: Balancer) -> None:
    balancer.endpoint(1, port=SERVER.port)
    balancer.serve(At(VIP, PORT), [1], protocol=lab.UDP)


def answer(source: At, destination: At, id: int = 7) -> list[bytes]:
    """The fragments of a datagram between any two places, in order."""
    segment = UDP(sport=source.port, dport=destination.port) / Raw(PAYLOAD)
    return parts(segment, source.address, destination.address, id)


def test_fragments_of_requests_and_replies_leave_as_those_of_the_translated_datagram(balancer: Balancer) -> None:
    serve_by_nat(balancer)
    client, vip = CLIENTS[0], At(VIP, PORT)
    for number in (7, 8):
        for sent, wanted in zip(answer(client, vip, number), answer(client, SERVER, number), strict=True):
            assert balancer.send(sent) == (XdpVerdict.REDIRECT, forwarded(wanted, macs_towards(SERVER.address)))
        for sent, wanted in zip(answer(SERVER, client, number), answer(vip, client, number), strict=True):
            left = balancer.send(sent, "back")
            assert left == (XdpVerdict.REDIRECT, forwarded(wanted, macs_towards(client.address)))
    assert balancer.verdicts() == {Verdict.REQUEST: 8, Verdict.REPLY: 8}
    assert len(balancer.connections()) == 1
    assert balancer.traffic_of_services()[1][:2] == (1, 8)


def test_a_later_fragment_of_a_reply_alone_and_those_of_strangers_are_none_of_our_business(balancer: Balancer) -> None:
    """The kernel forwards them as they are, and no client knows such a packet."""
    serve_by_nat(balancer)
    for part in (*answer(SERVER, CLIENTS[0])[1:], *answer(SERVER, CLIENTS[1]), *answer(At(STRANGER, 53), CLIENTS[0])):
        assert balancer.send(part, "back") == (XdpVerdict.PASS, part)
    assert balancer.verdicts() == {}


def test_fragments_of_clients_that_may_not_use_a_service_of_nat_open_nothing(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.serve(At(VIP, PORT), [1], protocol=lab.UDP, sources=["192.0.2.0/24"])
    assert {balancer.send(part).verdict for part in datagram(CLIENTS[0])} == {XdpVerdict.DROP}
    assert balancer.connections() == {}


def test_a_fragment_of_nat_too_big_for_its_way_is_answered_and_the_others_too(balancer: Balancer) -> None:
    serve_by_nat(balancer)
    segment = UDP(sport=CLIENTS[0].port, dport=PORT) / Raw(PAYLOAD)
    whole = IP(src=CLIENTS[0].address, dst=VIP, id=7) / segment
    sent = [bytes(ether() / part) for part in fragment(whole, 1_800)]
    assert [balancer.send(part).verdict for part in sent] == [XdpVerdict.TX, XdpVerdict.TX, XdpVerdict.REDIRECT]
    assert balancer.verdicts() == {Verdict.TOO_BIG_ANSWERED: 2, Verdict.REQUEST: 1}


def test_fragments_for_no_service_or_none_that_knows_them_are_dropped(balancer: Balancer) -> None:
    serve(balancer, ModeCode.FULLNAT)
    other = parts(UDP(sport=40_000, dport=PORT + 1) / Raw(PAYLOAD), CLIENT.address, id=8)
    sent = datagram(CLIENTS[0]) + other
    assert {balancer.send(part).verdict for part in sent} == {XdpVerdict.DROP}
    assert balancer.verdicts() == {Verdict.FRAGMENT: 8}


def test_who_may_not_use_the_service_may_not_in_fragments_either(balancer: Balancer) -> None:
    balancer.serve(
        At(VIP, PORT), [1], index=3, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2, protocol=lab.UDP,
        sources=["192.0.2.0/24"],
    )  # fmt: skip
    assert {balancer.send(part).verdict for part in datagram(CLIENTS[0])} == {XdpVerdict.DROP}
    assert balancer.verdicts() == {Verdict.NOT_ALLOWED: 1, Verdict.FRAGMENT: 3}


def test_fragments_for_others_pass_untouched(balancer: Balancer) -> None:
    for part in datagram(CLIENTS[0], destination=STRANGER):
        assert balancer.send(part) == (XdpVerdict.PASS, part)
    assert balancer.verdicts() == {}


def test_a_ttl_that_ends_here_ends_the_fragment(balancer: Balancer) -> None:
    first, later, *_ = datagram(CLIENTS[0])
    balancer.send(first)
    dying = Ether(later)
    dying[IP].ttl = 1
    dying[IP].chksum = None
    assert balancer.send(bytes(dying)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TTL_EXPIRED: 1}
