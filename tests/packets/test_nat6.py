# SPDX-License-Identifier: Apache-2.0
"""NAT over IPv6: it does what NAT over IPv4 does. Whole frames, against a model that computes every checksum anew."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, ConnectionState, EndpointRowState, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as site
from tests.packets.balancer import (
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    ROUTER6,
    STRANGER6,
    Balancer,
    Traffic,
    macs_towards,
    to_client,
    to_endpoint,
)
from tests.packets.frames import At, answered6, forwarded, frame6, padded, tcp, tcp6, udp6
from tests.packets.table import Ends, Entry

pytestmark = pytest.mark.kernel

VIP6 = "2001:db8:20::1"
WEB6, CLIENT = At(VIP6, 80), At("2001:db8:77::7", 40_000)
SERVER = At(ENDPOINTS6_AT[5], 8080)
ROUTER_BEFORE, ROUTER_BEHIND = "2001:db8:ff::1", "2001:db8:2::fd"
ERRORS = {
    "packet too big": ICMPv6PacketTooBig(mtu=1280),
    "unreachable": ICMPv6DestUnreach(code=4),
    "time exceeded": ICMPv6TimeExceeded(code=0),
    "parameter problem": ICMPv6ParamProblem(code=1, ptr=6),
}
QUOTED = [48, 56, 58, 59, 1232]
"""The ports alone; all but the checksum of TCP; and it; and more, of odd and even lengths."""


def serve(balancer: Balancer, protocol: int = site.TCP) -> None:
    balancer.endpoint(5, port=SERVER.port)
    balancer.serve(WEB6, ring=[5], protocol=protocol)


def test_requests_and_replies_are_translated(balancer: Balancer) -> None:
    serve(balancer)
    for flags, payload in (("S", b""), ("A", b"odd"), ("PA", bytes(range(200)))):
        request, reply = tcp6(CLIENT, WEB6, flags, payload, tc=0xB9), tcp6(SERVER, CLIENT, "A", payload, hlim=3)
        assert balancer.send(request) == (XdpVerdict.REDIRECT, to_endpoint(request, SERVER))
        assert balancer.send(reply, "back") == (XdpVerdict.REDIRECT, to_client(reply, WEB6, ROUTER6))
    assert balancer.verdicts() == {Verdict.REQUEST: 3, Verdict.REPLY: 3}
    assert balancer.traffic_of_services() == {1: Traffic(1, 3, 3 * 60 + 203, 3, 3 * 60 + 203)}


def test_datagrams_are_translated_and_those_without_a_checksum_get_none(balancer: Balancer) -> None:
    serve(balancer, site.UDP)
    for payload in (b"", b"odd", bytes(1400)):
        question, answer = udp6(CLIENT, WEB6, payload), udp6(SERVER, CLIENT, payload)
        assert balancer.send(question) == (XdpVerdict.REDIRECT, to_endpoint(question, SERVER))
        assert balancer.send(answer, "back") == (XdpVerdict.REDIRECT, to_client(answer, WEB6, ROUTER6))
    bare = frame6(CLIENT.address, VIP6, UDP(sport=CLIENT.port, dport=80, chksum=0) / b"x")
    assert balancer.send(bare).frame == to_endpoint(bare, SERVER)


def test_each_client_keeps_its_endpoint_and_has_an_entry_in_the_table_of_ipv6(balancer: Balancer) -> None:
    serve(balancer)
    balancer.endpoint(6)
    balancer.ring(1, [5, 6])
    others = [At(f"2001:db8:1::{number:x}", CLIENT.port) for number in range(3, 30)]
    chosen = {}
    for client in (CLIENT, *others):
        _, out = balancer.send(tcp6(client, WEB6, "S"))
        chosen[client] = Ether(out)[IPv6].dst
    assert set(chosen.values()) == {ENDPOINTS6_AT[5], ENDPOINTS6_AT[6]}
    for client, endpoint in chosen.items():
        assert Ether(balancer.send(tcp6(client, WEB6, "A")).frame)[IPv6].dst == endpoint
    assert balancer.connections() == {
        Ends(client): Entry(5 if endpoint == ENDPOINTS6_AT[5] else 6, ConnectionState.OPEN)
        for client, endpoint in chosen.items()
    }


def test_an_address_that_differs_in_any_bit_is_another_clients(balancer: Balancer) -> None:
    """The key has 32 bits of a hash of it that anybody can compute, so the address itself is compared: an entry that
    has everything of a client but its address isn't the client's."""
    serve(balancer)
    balancer.send(tcp6(CLIENT, WEB6, "S"))
    (entry,) = balancer.connections().values()
    for bit in (0, 31, 32, 63, 64, 95, 96, 127):
        ends = Ends(CLIENT)
        bucket = balancer.table.buckets_of(ends)[0]
        balancer.table.clear()
        balancer.table.put_at(bucket, 0, ends, entry, address=flipped(CLIENT.address, bit))
        assert balancer.send(tcp6(SERVER, CLIENT, "A"), "back").verdict == XdpVerdict.PASS
    balancer.table.clear()
    balancer.table.put(Ends(CLIENT), entry)
    assert balancer.send(tcp6(SERVER, CLIENT, "A"), "back").verdict == XdpVerdict.REDIRECT


def flipped(address: str, bit: int) -> bytes:
    return (int(ip_address(address)) ^ 1 << bit).to_bytes(16, "big")


# --- errors ------------------------------------------------------------------------------------------------------
def segment(source: At, destination: At, extension: Packet | None = None) -> Packet:
    """What one of the three sees of a segment of the connection."""
    ip = IPv6(src=source.address, dst=destination.address, hlim=60)
    part = TCP(sport=source.port, dport=destination.port, flags="A", seq=0x1234, ack=0x5678)
    payload = Raw(bytes(range(256)) * 5)
    if extension is None:
        return ip / part / payload
    whole = IPv6(bytes(ip / part / payload))[TCP]  # its checksum knows of no extension header
    return ip / extension / Raw(bytes(whole))


def error(source: str, to: str, about: Packet, kind: Packet, quoted: int = 1232) -> bytes:
    return frame6(source, to, kind / Raw(bytes(about)[:quoted]))


@pytest.mark.parametrize("extension", [None, IPv6ExtHdrFragment(nh=6, m=1, id=7)], ids=["whole", "first fragment"])
@pytest.mark.parametrize("quoted", QUOTED)
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_errors_reach_the_side_that_sent_the_packet(
    balancer: Balancer, kind: Packet, quoted: int, extension: Packet | None
) -> None:
    serve(balancer)
    balancer.send(tcp6(CLIENT, WEB6, "S"))
    quoted += 8 * (extension is not None and quoted < 1232)
    about_reply = padded(error(ROUTER_BEFORE, VIP6, segment(WEB6, CLIENT, extension), kind, quoted))
    meant = padded(error(ROUTER_BEFORE, SERVER.address, segment(SERVER, CLIENT, extension), kind, quoted))
    assert balancer.send(about_reply) == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(SERVER.address)))
    about_request = error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, SERVER, extension), kind, quoted)
    meant = error(VIP6, CLIENT.address, segment(CLIENT, WEB6, extension), kind, quoted)
    assert balancer.send(about_request, "back") == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(ROUTER6)))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ICMP_ERROR: 1, Verdict.ERROR_RELAYED: 1}


def test_what_is_too_big_is_answered_both_ways(balancer: Balancer) -> None:
    serve(balancer)
    balancer.send(tcp6(CLIENT, WEB6, "S"))
    request, reply = tcp6(CLIENT, WEB6, "A", bytes(1500)), tcp6(SERVER, CLIENT, "A", bytes(1500))
    told = ICMPv6PacketTooBig(mtu=1500)
    assert balancer.send(request) == (XdpVerdict.TX, answered6(request, told, 1232))
    assert balancer.send(reply, "back") == (XdpVerdict.TX, answered6(reply, told, 1232))


@pytest.mark.parametrize("hlim", [0, 1])
def test_what_must_go_no_further_is_answered_and_a_reply_left_to_the_kernel(balancer: Balancer, hlim: int) -> None:
    serve(balancer)
    request, reply = tcp6(CLIENT, WEB6, hlim=hlim), tcp6(SERVER, CLIENT, "SA", hlim=hlim)
    assert balancer.send(request) == (XdpVerdict.TX, answered6(request, ICMPv6TimeExceeded(code=0), 48))
    assert balancer.verdicts() == {Verdict.TTL_EXPIRED_ANSWERED: 1}
    balancer.send(tcp6(CLIENT, WEB6))
    assert balancer.send(reply, "back") == (XdpVerdict.PASS, reply)
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TTL_EXPIRED_ANSWERED: 2}


def test_for_a_neighbour_without_a_known_mac_the_kernel_gets_what_it_forwards(balancer: Balancer) -> None:
    balancer.endpoint(5, STRANGER6, port=SERVER.port)
    balancer.serve(WEB6, ring=[5])
    request = tcp6(CLIENT, WEB6, "S")
    action, out = balancer.send(request)
    assert (action, Ether(out)[IPv6].dst, Ether(out)[TCP].dport) == (XdpVerdict.PASS, STRANGER6, SERVER.port)
    packet = Ether(out)
    del packet[TCP].chksum
    assert bytes(packet) == out


# --- as over IPv4 ------------------------------------------------------------------------------------------------
CLIENTS = {"10.1.0.2": "2001:db8:78::2", "192.0.2.7": CLIENT.address}
FAMILIES = {
    4: (tcp, "20.20.20.1", ENDPOINTS_AT[1], ENDPOINTS_AT[2], {c: c for c in CLIENTS}),
    6: (tcp6, VIP6, ENDPOINTS6_AT[5], ENDPOINTS6_AT[6], CLIENTS),
}
"""By version: who makes frames, the VIP, two endpoints, and its clients by those of IPv4."""
Step = tuple[str, str, int, str]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.sampled_from(sorted(CLIENTS)), st.sampled_from([80, 81, 82]),
                  st.sampled_from(["S", "A", "FA", "R", "PA"])),
        st.tuples(st.just("reply"), st.sampled_from(sorted(CLIENTS)), st.sampled_from([0, 1]),
                  st.sampled_from(["SA", "A", "FA", "R"])),
        st.tuples(st.just("state"), st.just(""), st.sampled_from([0, 1]),
                  st.sampled_from(["USABLE", "RETIRED", "DISABLED"])),
        st.tuples(st.just("rest"), st.just(""), st.sampled_from([2, 30]), st.just("")),
    ),
    max_size=25,
)  # fmt: skip


def told(balancer: Balancer, version: int, steps: list[Step]) -> list[tuple[int, object]]:
    """What becomes of each packet, in words that are the same for both versions."""
    make, vip, one, two, clients = FAMILIES[version]
    ids = {4: (1, 2), 6: (5, 6)}[version]
    roles = {vip: "vip", one: "one", two: "two"} | {address: name for name, address in clients.items()}
    balancer.clear()
    for id_ in ids:
        balancer.endpoint(id_, port=8080)
    balancer.serve(At(vip, 80), ring=list(ids), algorithm=AlgorithmCode.ROUND_ROBIN)
    balancer.serve(At(vip, 81), ring=list(ids), index=2, algorithm=AlgorithmCode.ROUND_ROBIN)
    found: list[tuple[int, object]] = []
    for what, client, number, word in steps:
        if what == "state":
            balancer.endpoint(ids[number], port=8080, state=EndpointRowState[word])
            continue
        if what == "rest":
            balancer.table.rest(number)
            continue
        at = At(clients[client], 40_000)
        if what == "request":
            action, out = balancer.send(make(at, At(vip, number), word))
        else:
            action, out = balancer.send(make(At((one, two)[number], 8080), at, word), "back")
        packet = Ether(out)
        ip = packet.payload
        ports = (packet[TCP].sport, packet[TCP].dport)
        check = packet[TCP].chksum
        del packet[TCP].chksum
        assert Ether(bytes(packet))[TCP].chksum == check
        found.append((action, (roles[ip.src], roles[ip.dst], ports)))
    return [*found, (0, balancer.verdicts())]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_of_packets_has_the_same_end_over_both_versions(balancer: Balancer, steps: list[Step]) -> None:
    assert told(balancer, 6, steps) == told(balancer, 4, steps)
