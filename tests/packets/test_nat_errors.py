# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about connections of NAT: each reaches the side that sent what the error is about, as if nobody had
translated anything. The quotes are built twice, as one side of the balancer saw the packet and as the other."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import EndpointRowState, TooBigCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    ENDPOINTS_AT,
    STRANGER,
    VIP,
    WEB,
    Balancer,
    Traffic,
    macs_towards,
    to_client,
    to_endpoint,
)
from tests.packets.frames import ETHERNET, At, answered, forwarded, frame, padded, tcp

pytestmark = pytest.mark.kernel

SERVER = At(ENDPOINTS_AT[1], 8080)
ROUTER_BEFORE, ROUTER_BEHIND = "198.51.100.1", "10.2.0.253"
"""A router between client and balancer, and one between balancer and endpoint."""
FRAG_NEEDED = ICMP(type=3, code=4, nexthopmtu=1300)
ERRORS = {
    "fragmentation needed": FRAG_NEEDED,
    "host unreachable": ICMP(type=3, code=1),
    "port unreachable": ICMP(type=3, code=3),
    "time exceeded": ICMP(type=11, code=0),
    "parameter problem": ICMP(type=12, code=0),
}
QUOTED = [28, 36, 38, 39, 548]
"""The ports alone; all but the checksum of TCP; and it; and more, of odd and even lengths."""


@pytest.fixture(autouse=True)
def _connection(balancer: Balancer) -> None:
    balancer.endpoint(1, port=SERVER.port)
    balancer.serve(ring=[1])
    balancer.send(tcp(CLIENT, WEB))


def segment(source: At, destination: At, ttl: int = 60) -> Packet:
    """What one of the three sees of a segment of the connection."""
    return IP(src=source.address, dst=destination.address, ttl=ttl, id=77, flags="DF") / TCP(
        sport=source.port, dport=destination.port, flags="A", seq=0x1234, ack=0x5678
    ) / Raw(bytes(range(256)) * 5)  # fmt: skip


def error(source: str, to: str, about: Packet, kind: Packet = FRAG_NEEDED, quoted: int = 548, **ip: object) -> bytes:
    return frame(source, to, kind / Raw(bytes(about)[:quoted]), **ip)


@pytest.mark.parametrize("quoted", QUOTED)
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_an_error_about_a_reply_goes_to_the_endpoint(balancer: Balancer, kind: Packet, quoted: int) -> None:
    content = padded(error(ROUTER_BEFORE, VIP, segment(WEB, CLIENT), kind, quoted))
    meant = padded(error(ROUTER_BEFORE, SERVER.address, segment(SERVER, CLIENT), kind, quoted))
    expected = forwarded(meant, macs_towards(SERVER.address))
    assert balancer.send(content) == (XdpVerdict.REDIRECT, expected)
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ICMP_ERROR: 1}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 2, 40 + 28 + quoted)}


@pytest.mark.parametrize("quoted", QUOTED)
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("source", [ROUTER_BEHIND, SERVER.address])
def test_an_error_about_a_request_goes_to_the_client_in_the_name_of_the_vip(
    balancer: Balancer, source: str, kind: Packet, quoted: int
) -> None:
    content = padded(error(source, CLIENT.address, segment(CLIENT, SERVER), kind, quoted))
    meant = padded(error(VIP, CLIENT.address, segment(CLIENT, WEB), kind, quoted))
    expected = forwarded(meant, macs_towards(CLIENT.address))
    assert balancer.send(content, "back") == (XdpVerdict.REDIRECT, expected)
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ERROR_RELAYED: 1}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 1, 40, 1, 28 + quoted)}


def test_an_error_changes_nothing_about_its_connection(balancer: Balancer) -> None:
    before = balancer.connections()
    balancer.send(error(ROUTER_BEFORE, VIP, segment(WEB, CLIENT)))
    balancer.send(error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, SERVER)), "back")
    assert balancer.connections() == before
    request, reply = tcp(CLIENT, WEB, "A"), tcp(SERVER, CLIENT, "A")
    assert balancer.send(request).frame == to_endpoint(request, SERVER)
    assert balancer.send(reply, "back").frame == to_client(reply, WEB)


OTHERS = {
    "another client": error(ROUTER_BEFORE, VIP, segment(WEB, At(CLIENT.address, 1))),
    "another port of the VIP": error(ROUTER_BEFORE, VIP, segment(At(VIP, 81), CLIENT)),
    "another port of the endpoint": error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, At(SERVER.address, 80))),
    "another endpoint": error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, At(ENDPOINTS_AT[2], 8080))),
    "not from where it goes to": error(ROUTER_BEHIND, "10.1.0.3", segment(CLIENT, SERVER)),
    "ports cut off": error(ROUTER_BEFORE, VIP, segment(WEB, CLIENT), quoted=27),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_an_error_about_no_connection_is_the_kernels(balancer: Balancer, content: bytes) -> None:
    assert balancer.send(content) == (XdpVerdict.PASS, content)
    assert balancer.verdicts() == {Verdict.REQUEST: 1}


def test_an_error_about_an_endpoint_that_serves_no_more_is_the_kernels(balancer: Balancer) -> None:
    balancer.endpoint(1, port=SERVER.port, state=EndpointRowState.DISABLED)
    for content in (
        error(ROUTER_BEFORE, VIP, segment(WEB, CLIENT)),
        error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, SERVER)),
    ):
        assert balancer.send(content) == (XdpVerdict.PASS, content)


@pytest.mark.parametrize("length", range(ETHERNET, ETHERNET + 56))
def test_an_error_that_is_cut_off_anywhere_is_left_alone(balancer: Balancer, length: int) -> None:
    assert passes_untouched_since(balancer, error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, SERVER))[:length])


def passes_untouched_since(balancer: Balancer, content: bytes) -> bool:
    """As `passes_untouched`, after the one packet that opened the connection."""
    return balancer.send(content) == (XdpVerdict.PASS, content) and balancer.verdicts() == {Verdict.REQUEST: 1}


@pytest.mark.parametrize("ttl", [0, 1])
def test_an_error_whose_ttl_is_used_up_is_dropped(balancer: Balancer, ttl: int) -> None:
    assert balancer.send(error(ROUTER_BEFORE, VIP, segment(WEB, CLIENT), ttl=ttl)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TTL_EXPIRED: 1}


def test_an_error_that_is_too_big_is_dropped_and_never_answered(balancer: Balancer) -> None:
    content = frame(ROUTER_BEFORE, VIP, FRAG_NEEDED / segment(WEB, CLIENT) / Raw(bytes(1500)))
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TOO_BIG: 1}


def test_for_a_client_without_a_known_mac_the_kernel_gets_an_error_that_it_forwards(balancer: Balancer) -> None:
    """From the router that complained: the kernel drops packets that come in from an address of its own."""
    client = At(STRANGER, 50_000)
    balancer.send(tcp(client, WEB))
    content = error(ROUTER_BEHIND, client.address, segment(client, SERVER))
    meant = error(ROUTER_BEHIND, client.address, segment(client, WEB))
    assert balancer.send(content, "front") == (XdpVerdict.PASS, meant)
    assert balancer.verdicts() == {Verdict.REQUEST: 2, Verdict.VIA_KERNEL: 1}


# --- what is too big for its way ---------------------------------------------------------------------------------
BIG = b"x" * (1500 - 40 + 1)


@pytest.mark.parametrize("length", [1500 - 40 + 1, 3000])
def test_a_packet_that_is_too_big_is_answered_in_both_directions(balancer: Balancer, length: int) -> None:
    request, reply = tcp(CLIENT, WEB, "A", b"x" * length), tcp(SERVER, CLIENT, "A", b"x" * length)
    told = ICMP(type=3, code=4, nexthopmtu=1500)
    assert balancer.send(request) == (XdpVerdict.TX, answered(request, told, 504))
    assert balancer.send(reply, "back") == (XdpVerdict.TX, answered(reply, told, 504))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TOO_BIG_ANSWERED: 2}
    assert balancer.traffic_of_services() == {1: Traffic(1, 1, 40)}


def test_a_node_that_answers_nothing_drops_what_is_too_big(balancer: Balancer) -> None:
    balancer.settings("10.2.0.1", too_big=TooBigCode.DROP)
    for content, interface in ((tcp(CLIENT, WEB, "A", BIG), "front"), (tcp(SERVER, CLIENT, "A", BIG), "back")):
        assert balancer.send(content, interface).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TOO_BIG: 2}
