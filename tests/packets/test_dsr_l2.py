# SPDX-License-Identifier: Apache-2.0
"""Direct server return by MAC: what leaves for the endpoint, whole frames."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import AlgorithmCode, EndpointRowState, ModeCode, TooBigCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    ENDPOINTS_AT,
    STRANGER,
    VIP,
    WEB,
    Balancer,
    Traffic,
    by_mac,
    through_tunnel,
)
from tests.packets.balancer import (
    UDP as UDP_NUMBER,
)
from tests.packets.frames import ETHERNET, IPV4, MACS, At, answered, frame, padded, tcp, udp
from tests.packets.test_forward import NOWHERE
from tests.packets.test_others import HOSTILE, dropped_as
from tests.packets.test_schedule import clients, maglev_slot

pytestmark = pytest.mark.kernel

SERVER = ENDPOINTS_AT[1]
MTU = 1500
DNS = At(VIP, 53)


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)


def test_a_request_leaves_with_another_mac_and_a_ttl_less_by_one(balancer: Balancer) -> None:
    syn = padded(tcp(CLIENT, WEB, "S", tos=0xB9, flags="DF"))
    assert balancer.send(syn) == (XdpVerdict.REDIRECT, by_mac(syn, SERVER))
    assert balancer.verdicts() == {Verdict.REQUEST: 1}
    assert balancer.traffic_of_services() == {1: Traffic(1, 1, 40)}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 1, 40)}


def test_a_balancer_on_one_leg_sends_it_back_out(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB, "PA", b"hello")
    assert balancer.send(content, "back") == (XdpVerdict.TX, by_mac(content, SERVER))


def test_ports_are_never_translated(balancer: Balancer) -> None:
    balancer.endpoint(1, port=8080)
    balancer.serve(ring=[1], target_port=9090, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    assert balancer.send(tcp(CLIENT, WEB)).frame == by_mac(tcp(CLIENT, WEB), SERVER)


def test_a_datagram_leaves_as_it_came_whatever_its_checksum(balancer: Balancer) -> None:
    balancer.serve(
        DNS, [1], index=2, algorithm=AlgorithmCode.SOURCE_HASH, mode=ModeCode.DSR_L2, protocol=UDP_NUMBER
    )  # fmt: skip
    for content in (padded(udp(CLIENT, DNS)), frame(CLIENT.address, VIP, UDP(sport=1, dport=53, chksum=0))):
        assert balancer.send(content).frame == by_mac(content, SERVER)


def test_each_client_goes_to_the_slot_of_its_hash(balancer: Balancer) -> None:
    ring = [1, 2, 3, 4, 3]
    for id in ring:
        balancer.endpoint(id)
    balancer.serve(ring=ring, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    for client in clients(100):
        content = tcp(client, WEB, "A")
        assert balancer.send(content).frame == by_mac(content, ENDPOINTS_AT[ring[maglev_slot(client, len(ring))]])


def test_modes_live_side_by_side(balancer: Balancer) -> None:
    balancer.settings("10.2.0.1")
    tunnel = At(VIP, 443)
    balancer.serve(tunnel, [1], index=2, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    assert balancer.send(tcp(CLIENT, WEB)).frame == by_mac(tcp(CLIENT, WEB), SERVER)
    assert balancer.send(tcp(CLIENT, tunnel)).frame == through_tunnel(tcp(CLIENT, tunnel), SERVER, "10.2.0.1")


# --- neighbours and routes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [tcp(CLIENT, WEB, "A", b"x" * 999, tos=8), padded(tcp(CLIENT, WEB))])
def test_for_an_endpoint_without_a_known_mac_the_kernel_gets_something_to_ask_by(
    balancer: Balancer, content: bytes
) -> None:
    """An echo reply to the endpoint, which hosts ignore: the packet itself the kernel would keep."""
    balancer.endpoint(1, STRANGER)
    probe = Ether(src=MACS[0], dst=MACS[1]) / IP(
        src=CLIENT.address, dst=STRANGER, id=0, flags="DF", ttl=64
    ) / ICMP(type=0, id=0, seq=0)  # fmt: skip
    assert balancer.send(content) == (XdpVerdict.PASS, bytes(probe))
    assert balancer.verdicts() == {Verdict.NEIGHBOUR_UNKNOWN: 1}
    assert balancer.traffic_of_endpoints() == {}


@pytest.mark.parametrize("content", [tcp(CLIENT, WEB), tcp(CLIENT, WEB, tos=0x10)], ids=["router", "detour"])
def test_an_endpoint_behind_a_router_is_out_of_reach(balancer: Balancer, content: bytes) -> None:
    """The router would send the packet to the VIP, which is here."""
    balancer.endpoint(1, "192.0.2.7")
    assert dropped_as(balancer, content) == [Verdict.OFF_LINK]


@pytest.mark.parametrize("address", NOWHERE.values(), ids=NOWHERE)
def test_what_no_route_forwards_is_dropped(balancer: Balancer, address: str) -> None:
    balancer.endpoint(1, address)
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.NO_ROUTE]


# --- hostile -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packets_are_dropped_with_their_reason(balancer: Balancer, name: str) -> None:
    make, reason = HOSTILE[name]
    assert dropped_as(balancer, make(VIP)) == [reason]


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_request_whose_ttl_is_used_up_is_dropped(balancer: Balancer, ttl: int) -> None:
    assert dropped_as(balancer, tcp(CLIENT, WEB, ttl=ttl)) == [Verdict.TTL_EXPIRED]


@pytest.mark.parametrize("state", [EndpointRowState.FREE, EndpointRowState.DISABLED])
def test_what_is_no_endpoint_any_more_gets_nothing(balancer: Balancer, state: EndpointRowState) -> None:
    balancer.endpoint(1, state=state)
    assert dropped_as(balancer, tcp(CLIENT, WEB)) == [Verdict.NO_ENDPOINT]


# --- MTU ---------------------------------------------------------------------------------------------------------
def test_the_sender_of_a_packet_that_does_not_fit_is_told_what_would(balancer: Balancer) -> None:
    fits = tcp(CLIENT, WEB, "A", bytes(MTU - IPV4 - 20))
    assert balancer.send(fits).frame == by_mac(fits, SERVER)
    content = tcp(CLIENT, WEB, "A", bytes(MTU - IPV4 - 19))
    assert balancer.send(content) == (
        XdpVerdict.TX, answered(content, ICMP(type=3, code=4, nexthopmtu=MTU), 504)
    )  # fmt: skip
    balancer.settings("0.0.0.0", too_big=TooBigCode.DROP)
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.TOO_BIG_ANSWERED: 1, Verdict.TOO_BIG: 1}


def test_a_wrong_checksum_of_the_client_stays_wrong(balancer: Balancer) -> None:
    content = frame(CLIENT.address, VIP, TCP(sport=CLIENT.port, dport=80, chksum=0xBAD))
    out = balancer.send(content).frame
    assert out == by_mac(content, SERVER)
    assert out[ETHERNET + IPV4 :] == content[ETHERNET + IPV4 :]
