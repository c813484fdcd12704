# SPDX-License-Identifier: Apache-2.0
"""The way out: routes, neighbours, MTU, TTL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP

from reconciler.dataplane.layout import Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    ENDPOINTS_AT,
    NO_WAY,
    ROUTER,
    STRANGER,
    WEB,
    Balancer,
    Traffic,
    inside,
    to_client,
    to_endpoint,
)
from tests.packets.frames import ETHERNET, IPV4, At, answered, tcp, translated

pytestmark = pytest.mark.kernel

SERVER = At(ENDPOINTS_AT[1], 80)
MTU = 1500
TOLD = ICMP(type=3, code=4, nexthopmtu=MTU)


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1])


def test_what_came_in_by_the_interface_of_its_next_hop_goes_back_out_of_it(balancer: Balancer) -> None:
    syn, reply = tcp(CLIENT, WEB), tcp(SERVER, CLIENT, "SA")
    assert balancer.send(syn, "back") == (XdpVerdict.TX, to_endpoint(syn, SERVER))
    assert balancer.send(reply, "front") == (XdpVerdict.TX, to_client(reply, WEB))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.REPLY: 1}


def test_a_client_far_away_is_reached_by_the_router(balancer: Balancer) -> None:
    client = At("192.0.2.77", 50_000)
    balancer.send(tcp(client, WEB))
    reply = tcp(SERVER, client, "SA")
    assert balancer.send(reply, "back").frame == to_client(reply, WEB, next_hop=ROUTER)


# Requests to port 80 of a server at 192.0.2.7, and what in each case differs: client, VIP, server, type of service.
FAR = At("192.0.2.7", 80)
DETOURS: dict[str, tuple[At, At, At, int]] = {
    "source": (At("20.20.20.7", 5000), WEB, FAR, 0),
    "type of service": (CLIENT, WEB, FAR, 0x10),
    "protocol and source port": (At(CLIENT.address, 777), WEB, FAR, 0),
    "protocol and destination port": (CLIENT, WEB, At(FAR.address, 777), 0),
}


@pytest.mark.parametrize("name", DETOURS)
def test_policy_routing_sees_the_packet_as_it_leaves(balancer: Balancer, name: str) -> None:
    client, vip, server, tos = DETOURS[name]
    balancer.endpoint(1, server.address, server.port)
    request = tcp(client, vip, tos=tos)
    assert balancer.send(request).frame == to_endpoint(request, server, next_hop=ENDPOINTS_AT[4])


def test_policy_routing_sees_the_interface_that_a_packet_came_by(balancer: Balancer) -> None:
    balancer.endpoint(1, FAR.address)
    request = tcp(CLIENT, WEB)
    assert balancer.send(request, "front").frame == to_endpoint(request, FAR, next_hop=ROUTER)
    assert balancer.send(request, "back").frame == to_endpoint(request, FAR, next_hop=ENDPOINTS_AT[4])


def test_policy_routing_sees_a_reply_as_the_vips(balancer: Balancer) -> None:
    vip = At("20.20.20.7", 80)
    balancer.serve(vip, ring=[1], index=2)
    balancer.send(tcp(CLIENT, vip))
    reply = tcp(SERVER, CLIENT, "SA")
    assert balancer.send(reply, "back").frame == to_client(reply, vip, next_hop=ENDPOINTS_AT[4])


# --- neighbours that nobody knows --------------------------------------------------------------------------------
def test_a_request_whose_next_hop_has_no_known_mac_is_rewritten_for_the_kernel_to_forward(balancer: Balancer) -> None:
    """The MACs are as they came and the TTL, too: the kernel takes care of both."""
    balancer.endpoint(1, STRANGER)
    syn = tcp(CLIENT, WEB)
    assert balancer.send(syn) == (XdpVerdict.PASS, translated(syn, destination=At(STRANGER, 80)))
    assert balancer.verdicts() == {Verdict.VIA_KERNEL: 1}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 1, 40)}


def test_a_reply_whose_next_hop_has_no_known_mac_is_rewritten_for_the_kernel_to_forward(balancer: Balancer) -> None:
    client = At("10.1.0.77", 50_000)
    balancer.send(tcp(client, WEB))
    reply = tcp(SERVER, client, "SA")
    assert balancer.send(reply, "back") == (XdpVerdict.PASS, translated(reply, source=WEB))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.VIA_KERNEL: 1}
    assert balancer.traffic_of_services() == {1: Traffic(1, 1, 40, 1, 40)}


# --- no way ------------------------------------------------------------------------------------------------------
NOWHERE = {kind: network.replace(".0/24", ".1") for kind, network in NO_WAY.items()} | {
    "the node itself": "10.1.0.1",
    "broadcast": "10.2.0.255",
}


@pytest.mark.parametrize("address", NOWHERE.values(), ids=NOWHERE)
def test_what_no_route_forwards_is_dropped(balancer: Balancer, address: str) -> None:
    balancer.endpoint(1, address)
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.NO_ROUTE: 1}


@pytest.fixture
def _no_forwarding(balancer: Balancer) -> Iterator[None]:
    with inside(balancer.netns):
        Path("/proc/sys/net/ipv4/conf/front/forwarding").write_text("0")
        yield
        Path("/proc/sys/net/ipv4/conf/front/forwarding").write_text("1")


@pytest.mark.usefixtures("_no_forwarding")
def test_nothing_is_forwarded_from_an_interface_that_does_not_forward(balancer: Balancer) -> None:
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.NO_ROUTE: 1}
    assert balancer.send(tcp(CLIENT, WEB), "back").verdict == XdpVerdict.TX


# --- MTU ---------------------------------------------------------------------------------------------------------
def test_a_packet_of_the_mtu_fits_and_one_more_byte_is_too_much(balancer: Balancer) -> None:
    fits = tcp(CLIENT, WEB, "A", b"x" * (MTU - IPV4 - 20))
    balancer.send(tcp(CLIENT, WEB))
    assert balancer.send(fits) == (XdpVerdict.REDIRECT, to_endpoint(fits, SERVER))
    for content in (tcp(CLIENT, WEB, "A", b"x" * (MTU - IPV4 - 20 + 1)), tcp(CLIENT, WEB, "A", b"x" * 3000)):
        assert balancer.send(content) == (XdpVerdict.TX, answered(content, TOLD, 504))
    assert balancer.verdicts() == {Verdict.REQUEST: 2, Verdict.TOO_BIG_ANSWERED: 2}
    assert balancer.traffic_of_services() == {1: Traffic(1, 2, 40 + MTU)}


def test_a_reply_that_is_too_big_is_answered_and_no_traffic(balancer: Balancer) -> None:
    balancer.send(tcp(CLIENT, WEB))
    content = tcp(SERVER, CLIENT, "A", b"x" * MTU)
    assert balancer.send(content, "back") == (XdpVerdict.TX, answered(content, TOLD, 504))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TOO_BIG_ANSWERED: 1}
    assert balancer.traffic_of_services() == {1: Traffic(1, 1, 40)}


def test_padding_does_not_count_against_the_mtu(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB) + bytes(MTU)
    assert balancer.send(content) == (XdpVerdict.REDIRECT, to_endpoint(content, SERVER))


# --- TTL ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_request_whose_ttl_is_used_up_is_answered_and_leaves_no_flow(balancer: Balancer, ttl: int) -> None:
    request = tcp(CLIENT, WEB, ttl=ttl)
    assert balancer.send(request) == (XdpVerdict.TX, answered(request, ICMP(type=11, code=0), 28))
    assert balancer.verdicts() == {Verdict.TTL_EXPIRED_ANSWERED: 1}
    assert balancer.connections() == {}


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_reply_whose_ttl_is_used_up_is_left_to_the_kernel_which_answers(balancer: Balancer, ttl: int) -> None:
    balancer.send(tcp(CLIENT, WEB))
    reply = tcp(SERVER, CLIENT, "SA", ttl=ttl)
    assert balancer.send(reply, "back") == (XdpVerdict.PASS, reply)
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TTL_EXPIRED_ANSWERED: 1}


@pytest.mark.parametrize("ttl", [2, 255])
def test_the_ttl_of_what_is_forwarded_is_less_by_one(balancer: Balancer, ttl: int) -> None:
    out = balancer.send(tcp(CLIENT, WEB, ttl=ttl)).frame
    assert out[ETHERNET + 8] == ttl - 1
    assert out == to_endpoint(tcp(CLIENT, WEB, ttl=ttl), SERVER)
