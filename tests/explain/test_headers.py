# SPDX-License-Identifier: Apache-2.0
"""Headers are read as scapy wrote them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkCookieEcho

from reconciler.explain.headers import headers
from tests.packets.frames import At, tcp

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
ETHERNET = {"header": "ethernet", "source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02"}


def names(frame: bytes) -> list[object]:
    return [header["header"] for header in headers(frame)]


def test_a_tunnelled_segment_from_the_outside_in() -> None:
    frame = bytes(
        ETHER / Dot1Q(vlan=7) / IP(src="10.0.0.1", dst="10.0.0.2", tos=8, id=3, ttl=9)
        / IP(src="10.0.0.3", dst="10.0.0.4", flags="DF") / TCP(sport=1, dport=2, flags="SA")
    )  # fmt: skip
    assert headers(frame) == [
        ETHERNET,
        {"header": "vlan", "id": 7},
        {"header": "ipv4", "source": "10.0.0.1", "destination": "10.0.0.2", "ttl": 9, "tos": 8, "length": 60,
         "identification": 3},
        {"header": "ipv4", "source": "10.0.0.3", "destination": "10.0.0.4", "ttl": 64, "tos": 0, "length": 40,
         "identification": 1, "dont_fragment": 1},
        {"header": "tcp", "source_port": 1, "destination_port": 2, "flags": "syn,ack"},
    ]  # fmt: skip


def test_ipv6_in_ipv6_with_a_flow_label() -> None:
    frame = bytes(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2", fl=5, tc=3, hlim=9) / IPv6() / UDP(dport=53))
    assert names(frame) == ["ethernet", "ipv6", "ipv6", "udp"]
    assert headers(frame)[1] == {
        "header": "ipv6", "source": "2001:db8::1", "destination": "2001:db8::2", "ttl": 9, "tos": 3, "length": 88,
        "flow_label": 5,
    }  # fmt: skip


def test_an_icmp_error_says_its_mtu_and_what_it_quotes() -> None:
    quoted = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=7, dport=8)
    frame = bytes(ETHER / IP() / ICMP(type=3, code=4, nexthopmtu=1400) / quoted)
    assert headers(frame)[2:4] == [
        {"header": "icmp", "type": "fragmentation needed", "code": 4, "mtu": 1400}, {"header": "quoted"},
    ]  # fmt: skip
    assert names(frame)[4:] == ["ipv4", "udp"]
    frame = bytes(ETHER / IPv6() / ICMPv6PacketTooBig(mtu=1280) / IPv6())
    assert headers(frame)[2] == {"header": "icmp6", "type": "packet too big", "code": 0, "mtu": 1280}


def test_fragments_and_options_are_told() -> None:
    later = headers(bytes(ETHER / IP(frag=5, flags="MF", proto=6) / bytes(40)))
    assert (later[-1]["header"], later[-1]["fragment_offset"], later[-1]["more_fragments"]) == ("ipv4", 40, 1)
    optional = headers(bytes(ETHER / IP(options=b"\x01" * 8) / TCP(dport=9)))
    assert optional[1]["options_bytes"] == 8
    assert optional[2]["destination_port"] == 9


def test_chunks_of_sctp_and_what_is_unknown() -> None:
    assert headers(bytes(ETHER / IP() / SCTP() / SCTPChunkCookieEcho()))[-1]["chunk"] == "cookie echo"
    assert names(bytes(ETHER / ARP())) == ["ethernet", "arp"]
    assert names(bytes(ETHER / IP(proto=89))) == ["ethernet", "ipv4", "protocol 89"]


@given(st.data())
def test_whatever_is_cut_off_ends_with_saying_so(data: st.DataObject) -> None:
    whole = tcp(At("10.1.0.2", 4000), At("20.20.20.1", 80))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert names(cut)[-1] == "cut off"
    assert names(cut)[:-1] == names(whole)[: len(names(cut)) - 1]


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00"]))
def test_no_bytes_are_too_strange(content: bytes, kind: bytes) -> None:
    assert headers(bytes(12) + kind + content)
    assert headers(content)
