# SPDX-License-Identifier: Apache-2.0
"""The program of an endpoint that unpacks tunnels: what is inside leaves as it came, all else is left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, IPOption_RR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from reconciler.dataplane import program
from reconciler.dataplane.layout import MAPS, UNPACKED, VERDICTS, Verdict
from reconciler.dataplane.rows import Number, UnpackedKey
from reconciler.kernel import holders
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.instance import Instance
from reconciler.kernel.real import RealKernel
from tests.packets.balancer import VIP, Balancer, inside, loaded_balancer
from tests.packets.frames import ETHERNET, IPV4, IPV6, MACS, At, echo, ether, padded, tcp, tcp6, udp

pytestmark = pytest.mark.kernel

FEATURES = (program.DECAPSULATE, "IPV6")
OWN, OWN6 = "10.1.0.1", "2001:db8:1::1"
"""Addresses of the node of tests.packets.balancer, which is an endpoint here."""
ELSEWHERE, ELSEWHERE6 = "10.2.0.11", "2001:db8:2::15"
BALANCER, BALANCER6 = "10.1.0.254", "2001:db8:1::fe"
VIP6 = "2001:db8:20::1"
REQUEST = tcp(At("192.0.2.9", 1234), At(VIP, 80), "PA", b"hello", tos=0xB8)
REQUEST6 = tcp6(At("2001:db8:c::9", 1234), At(VIP6, 80), "PA", b"hello", tc=0xB8, fl=0x12345)
NOT_ECT, ECT_1, ECT_0, CE = range(4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    with loaded_balancer(tmp_path_factory.mktemp("lbp-run"), f"lbp-{os.getpid()}-e", FEATURES) as made:
        yield made


@pytest.fixture
def endpoint(loaded: Balancer) -> Iterator[Balancer]:
    """An endpoint that holds one VIP of each family."""
    rows = [(held(vip), bytes(UNPACKED.value_size)) for vip in (VIP, VIP6)]
    assert loaded.kernel.update(UNPACKED.name, rows) == [None, None]
    yield loaded
    loaded.kernel.delete(UNPACKED.name, [key for key, _ in loaded.kernel.dump(UNPACKED.name)])
    loaded.kernel.delete(VERDICTS.name, [VERDICTS.key.pack(Number(row)) for row in range(VERDICTS.capacity)])


def held(vip: str) -> bytes:
    """The key of a VIP that is unpacked for."""
    address = ip_address(vip)
    return UNPACKED.key.pack(UnpackedKey(address.packed.ljust(16, b"\0"), address.version))


def outer4(destination: str = OWN, **fields: object) -> Packet:
    return IP(**({"src": BALANCER, "dst": destination, "id": 0, "flags": "DF"} | fields))


def outer6(destination: str = OWN6, **fields: object) -> Packet:
    return IPv6(**({"src": BALANCER6, "dst": destination, "hlim": 64} | fields))


def packed(content: bytes, outer: Packet) -> bytes:
    """The frame in a tunnel with this outer header."""
    number = {0x0800: 4, 0x86DD: 41}[int.from_bytes(content[12:14])]
    if outer.version == 4:
        outer.proto = outer.proto or number
        outer.len = len(bytes(outer)) + len(content) - ETHERNET
    else:
        outer.nh, outer.plen = number, len(content) - ETHERNET
    return bytes(ether(type=0x0800 if outer.version == 4 else 0x86DD)) + bytes(outer) + content[ETHERNET:]


def marked(content: bytes, ecn: int) -> bytes:
    """The frame with these ECN bits."""
    packet = Ether(content)
    if IPv6 in packet:
        packet[IPv6].tc = packet[IPv6].tc & ~3 | ecn
    else:
        packet[IP].tos = packet[IP].tos & ~3 | ecn
        del packet[IP].chksum
    return bytes(packet)


def assert_untouched(endpoint: Balancer, content: bytes, *counted: Verdict) -> None:
    assert endpoint.send(content) == (XdpVerdict.PASS, content)
    assert endpoint.verdicts() == dict.fromkeys(counted, 1)


WAYS = [(outer4, REQUEST), (outer6, REQUEST), (outer6, REQUEST6)]
WAY_NAMES = [f"{Ether(inner).payload.version}-in-{'6' if outer is outer6 else '4'}" for outer, inner in WAYS]
each_way = pytest.mark.parametrize(("outer", "inner"), WAYS, ids=WAY_NAMES)


# --- unpacked -----------------------------------------------------------------------------------------------
@each_way
def test_what_is_inside_comes_out_as_it_was_sent(endpoint, outer, inner):
    assert endpoint.send(packed(inner, outer())) == (XdpVerdict.PASS, inner)
    assert endpoint.verdicts() == {Verdict.DECAPSULATED: 1}


@each_way
@pytest.mark.parametrize("bytes_", [0, 1, 1448, 3000])
def test_packets_of_all_sizes_come_out_whole(endpoint, outer, inner, bytes_):
    payload = (bytes(range(256)) * 12)[:bytes_]
    if inner is REQUEST:
        content = tcp(At("192.0.2.9", 1), At(VIP, 80), "A", payload)
    else:
        content = tcp6(At("2001:db8:c::9", 1), At(VIP6, 80), "A", payload)
    assert endpoint.send(packed(content, outer())) == (XdpVerdict.PASS, content)


@pytest.mark.parametrize(
    "inner",
    [udp(At("192.0.2.9", 1), At(VIP, 53)), echo("192.0.2.9", VIP),
     tcp(At("192.0.2.9", 1), At(VIP, 80), "S", b"", options=[IPOption_RR(routers=["0.0.0.0"])]),
     tcp(At("192.0.2.9", 1), At(VIP, 80), "A", b"x" * 64, flags="MF"),
     udp(At("192.0.2.9", 1), At(VIP, 53), frag=100)],
    ids=["udp", "ping", "options", "first-fragment", "later-fragment"],
)  # fmt: skip
def test_whatever_is_for_a_vip_comes_out_be_it_of_any_protocol(endpoint, inner):
    assert endpoint.send(packed(inner, outer4())) == (XdpVerdict.PASS, inner)


@each_way
def test_padding_behind_the_outer_packet_stays_behind(endpoint, outer, inner):
    content = packed(inner, outer())
    assert endpoint.send(content + b"\xee" * 7) == (XdpVerdict.PASS, inner + b"\xee" * 7)


@each_way
@pytest.mark.parametrize("outer_ecn", range(4))
@pytest.mark.parametrize("inner_ecn", range(4))
def test_marks_of_congestion_are_merged(endpoint, outer, inner, inner_ecn, outer_ecn):
    """RFC 6040, figure 4."""
    expected = {
        NOT_ECT: [NOT_ECT, NOT_ECT, NOT_ECT, None], ECT_1: [ECT_1, ECT_1, ECT_1, CE],
        ECT_0: [ECT_0, ECT_1, ECT_0, CE], CE: [CE, CE, CE, CE],
    }[inner_ecn][outer_ecn]  # fmt: skip
    header = outer(tos=outer_ecn) if outer is outer4 else outer(tc=outer_ecn)
    ran = endpoint.send(packed(marked(inner, inner_ecn), header))
    if expected is None:
        assert ran.verdict is XdpVerdict.DROP
        assert endpoint.verdicts() == {Verdict.CONGESTED: 1}
    else:
        assert ran == (XdpVerdict.PASS, marked(inner, expected))


def test_a_node_that_forwards_nothing_unpacks_as_well(endpoint):
    switches = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
    with inside(endpoint.netns):
        for switch in switches:
            switch.write_text("0")
    try:
        for outer, inner in WAYS:
            assert endpoint.send(packed(inner, outer())) == (XdpVerdict.PASS, inner)
    finally:
        with inside(endpoint.netns):
            for switch in switches:
                switch.write_text("1")


# --- left alone ---------------------------------------------------------------------------------------------
@each_way
def test_what_is_inside_a_tunnel_but_for_nobody_here_is_left_alone(endpoint, outer, inner):
    packet = Ether(inner)
    packet.payload.dst = "20.20.20.2" if IP in packet else "2001:db8:20::2"
    assert_untouched(endpoint, packed(bytes(packet), outer()), Verdict.NOT_FOR_VIP)


@each_way
def test_tunnels_that_end_at_another_node_are_left_alone(endpoint, outer, inner):
    elsewhere = ELSEWHERE if outer is outer4 else ELSEWHERE6
    assert_untouched(endpoint, packed(inner, outer(elsewhere)), Verdict.TUNNEL_ELSEWHERE)


def test_an_ipv6_address_that_embeds_a_vip_of_ipv4_is_none(endpoint):
    inner = tcp6(At("2001:db8:c::9", 1), At(f"::ffff:{VIP}", 80))
    assert_untouched(endpoint, packed(inner, outer6()), Verdict.NOT_FOR_VIP)
    zeros = tcp6(At("2001:db8:c::9", 1), At(str(IPv6Address(socket.inet_aton(VIP) + bytes(12))), 80))
    assert endpoint.send(packed(zeros, outer6())) == (XdpVerdict.PASS, packed(zeros, outer6()))


def test_a_vip_that_is_taken_away_is_no_longer_unpacked_for(endpoint):
    endpoint.kernel.delete(UNPACKED.name, [held(VIP)])
    assert_untouched(endpoint, packed(REQUEST, outer4()), Verdict.NOT_FOR_VIP)


@pytest.mark.parametrize(
    "content",
    [REQUEST, REQUEST6, udp(At("192.0.2.9", 1), At(OWN, 53)), padded(bytes(ether(type=0x0806) / (b"\0" * 28))),
     bytes(Ether(src=MACS[0], dst=MACS[1]) / Dot1Q(vlan=7)) + packed(REQUEST, outer4())[ETHERNET:],
     bytes(ether(type=0x88B5) / b""),
     bytes(ether() / IP(src=BALANCER, dst=OWN, proto=41)) + REQUEST6[ETHERNET:]],
    ids=["for-a-vip", "for-an-ipv6-vip", "for-itself", "arp", "vlan", "short", "ipv6-in-ipv4"],
)  # fmt: skip
def test_what_is_in_no_tunnel_of_ours_is_left_alone(endpoint, content):
    assert_untouched(endpoint, content)


@pytest.mark.parametrize(
    "outer", [outer4(flags="MF"), outer4(flags=0, frag=1), outer4(options=[IPOption_RR(routers=["0.0.0.0"])])],
    ids=["first-fragment", "later-fragment", "options"],
)  # fmt: skip
def test_unusual_outer_packets_are_left_to_the_kernel(endpoint, outer):
    assert_untouched(endpoint, packed(REQUEST, outer), Verdict.TUNNEL_UNUSUAL)


@pytest.mark.parametrize("extension", [IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1)], ids=["options", "fragment"])
def test_extension_headers_outside_are_left_to_the_kernel(endpoint, extension):
    extension.nh = 4
    outer = IPv6(src=BALANCER6, dst=OWN6, nh=extension.overload_fields.get(IPv6, {}).get("nh", 60)) / extension
    assert_untouched(endpoint, bytes(ether(type=0x86DD) / outer) + REQUEST[ETHERNET:])


@each_way
def test_an_outer_packet_that_is_longer_than_its_frame_is_left_to_the_kernel(endpoint, outer, inner):
    content = packed(inner, outer())
    assert endpoint.send(content[:-1]) == (XdpVerdict.PASS, content[:-1])
    assert Verdict.DECAPSULATED not in endpoint.verdicts()


@each_way
def test_a_header_that_is_cut_off_inside_is_for_nobody(endpoint, outer, inner):
    header = IPV4 if IP in Ether(inner) else IPV6
    assert_untouched(endpoint, packed(inner[: ETHERNET + header - 1], outer()), Verdict.NOT_FOR_VIP)


# --- dropped ------------------------------------------------------------------------------------------------
@each_way
def test_an_inner_packet_that_is_longer_than_its_tunnel_is_dropped(endpoint, outer, inner):
    assert endpoint.send(packed(inner[:-1], outer())).verdict is XdpVerdict.DROP
    assert endpoint.verdicts() == {Verdict.MALFORMED: 1}


@pytest.mark.parametrize("wrong", [{"version": 5}, {"ihl": 4}, {"len": 19}], ids=str)
def test_an_inner_header_that_contradicts_itself_is_dropped(endpoint, wrong):
    content = bytes(ether() / IP(**({"src": "192.0.2.9", "dst": VIP, "proto": 6} | wrong)) / TCP())
    outer = outer4(proto=4, len=IPV4 + len(content) - ETHERNET)
    assert endpoint.send(bytes(ether() / outer) + content[ETHERNET:]).verdict is XdpVerdict.DROP
    assert endpoint.verdicts() == {Verdict.MALFORMED: 1}


def test_the_other_version_inside_than_the_outer_header_says_is_dropped(endpoint):
    """The bytes where the destination would be are those of the VIP."""
    content = REQUEST6[ETHERNET:]
    wrong = content[:16] + socket.inet_aton(VIP) + content[20:]
    outer = outer4(proto=4, len=IPV4 + len(wrong))
    assert endpoint.send(bytes(ether() / outer) + wrong).verdict is XdpVerdict.DROP
    assert endpoint.verdicts() == {Verdict.MALFORMED: 1}


@given(way=st.sampled_from(WAYS), at=st.integers(ETHERNET, 90), value=st.integers(0, 255), cut=st.integers(0, 60))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_lets_out_what_is_for_nobody_here(endpoint, way, at, value, cut):
    outer, inner = way
    content = bytearray(packed(inner, outer()))
    content[at % len(content)] = value
    frame = bytes(content[: len(content) - cut])
    ran = endpoint.send(frame)
    assert ran.verdict in (XdpVerdict.PASS, XdpVerdict.DROP)
    if ran.verdict is XdpVerdict.PASS and ran.frame != frame:
        packet = Ether(ran.frame).payload
        assert packet.dst in (VIP, VIP6)
        assert ran.frame[ETHERNET + 20 :] in frame


# --- what is in the program -----------------------------------------------------------------------------------
@pytest.mark.parametrize("features", [FEATURES, FEATURES[:1]], ids="+".join)
def test_an_endpoint_holds_no_maps_but_those_of_its_program(tmp_path: Path, features: tuple[str, ...]) -> None:
    kernel = RealKernel(f"lbp-{os.getpid()}-m", tmp_path)
    try:
        kernel.load_program(program.program_name(features), features)
        live = holders.live(Instance(f"lbp-{os.getpid()}-m", tmp_path))
        assert live
        made = live.description.ids.keys() & MAPS.keys()
    finally:
        kernel.unload_program()
        kernel.remove_instance()
    assert made == {"unpacked", "verdicts"}
