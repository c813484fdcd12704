# SPDX-License-Identifier: Apache-2.0
"""What NAT makes of a request and of its reply, whole frames."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, IPOption_RR
from scapy.packet import Raw

from reconciler.dataplane.layout import ConnectionState, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    ENDPOINTS_AT,
    VIP,
    WEB,
    Balancer,
    Traffic,
    to_client,
    to_endpoint,
)
from tests.packets.frames import At, frame, padded, tcp
from tests.packets.table import Ends, Entry

pytestmark = pytest.mark.kernel

SERVER = At(ENDPOINTS_AT[1], 80)


def test_a_request_leaves_for_the_endpoint_with_the_clients_source(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1])
    syn = padded(tcp(CLIENT, WEB, "S"))

    action, out = balancer.send(syn, "front")

    assert action == XdpVerdict.REDIRECT
    assert out == to_endpoint(syn, SERVER)
    assert balancer.verdicts() == {Verdict.REQUEST: 1}


def test_a_reply_leaves_for_the_client_with_the_vip_as_its_source(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1])
    balancer.send(tcp(CLIENT, WEB, "S"))
    syn_ack = padded(tcp(SERVER, CLIENT, "SA"))

    action, out = balancer.send(syn_ack, "back")

    assert action == XdpVerdict.REDIRECT
    assert out == to_client(syn_ack, WEB)
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.REPLY: 1}


@pytest.mark.parametrize(
    ("endpoint_port", "target_port", "arrives_at"), [(0, 0, 80), (0, 8000, 8000), (9000, 0, 9000), (9000, 8000, 9000)]
)
def test_the_endpoints_own_port_wins_over_the_services_target_port(
    balancer: Balancer, endpoint_port: int, target_port: int, arrives_at: int
) -> None:
    balancer.endpoint(1, port=endpoint_port)
    balancer.serve(ring=[1], target_port=target_port)
    server = At(SERVER.address, arrives_at)
    syn, reply = tcp(CLIENT, WEB, "S"), tcp(server, CLIENT, "SA")

    assert balancer.send(syn).frame == to_endpoint(syn, server)
    assert balancer.send(reply, "back").frame == to_client(reply, WEB)


def test_what_follows_the_headers_is_left_alone(balancer: Balancer) -> None:
    """TCP options, an odd number of payload bytes, the type of service, the DF bit."""
    balancer.endpoint(1)
    balancer.serve(ring=[1])
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (5, 0)), ("NOP", None), ("WScale", 7)]
    segment = TCP(sport=CLIENT.port, dport=80, flags="SEC", urgptr=5, options=options) / Raw(bytes(range(201)))
    syn = frame(CLIENT.address, VIP, segment, tos=0xB9, flags="DF", ttl=255)

    assert balancer.send(syn).frame == to_endpoint(syn, SERVER)


WITHOUT_PORTS = {
    "first fragment": {"flags": "MF"},
    "later fragment": {"frag": 5},
    "IP options": {"options": [IPOption_RR(length=7, routers=["0.0.0.0"])]},
}


@pytest.mark.parametrize("ip", WITHOUT_PORTS.values(), ids=WITHOUT_PORTS)
def test_a_reply_without_ports_where_they_always_are_is_left_to_the_kernel(
    balancer: Balancer, ip: dict[str, object]
) -> None:
    balancer.endpoint(1)
    balancer.serve(ring=[1])
    balancer.send(tcp(CLIENT, WEB, "S"))
    reply = tcp(SERVER, CLIENT, "SA", **ip)
    assert balancer.send(reply, "back") == (XdpVerdict.PASS, reply)
    assert balancer.verdicts() == {Verdict.REQUEST: 1}


def test_a_connection_is_one_entry_in_a_bucket_of_its_client(balancer: Balancer) -> None:
    """And the table says what each side acknowledged last."""
    balancer.endpoint(1, port=8080)
    balancer.serve(ring=[1])
    server = At(SERVER.address, 8080)
    balancer.send(tcp(CLIENT, WEB, "S"))
    assert balancer.connections() == {Ends(CLIENT): Entry(1, ConnectionState.OPENING)}
    balancer.send(tcp(server, CLIENT, "SA"), "back")
    balancer.send(tcp(CLIENT, WEB, "A"))
    assert balancer.connections() == {Ends(CLIENT): Entry(1, ConnectionState.OPEN)}


def test_traffic_is_counted_by_service_and_by_endpoint_in_bytes_of_ip_packets(balancer: Balancer) -> None:
    balancer.endpoint(1)
    balancer.endpoint(2)
    balancer.serve(ring=[1, 2])
    balancer.serve(At(VIP, 443), ring=[2], index=2)
    balancer.send(padded(tcp(CLIENT, WEB, "S")))
    balancer.send(padded(tcp(CLIENT, WEB, "PA", b"x" * 100)))
    balancer.send(tcp(SERVER, CLIENT, "A", b"y" * 1000), "back")
    balancer.send(tcp(At(CLIENT.address, 40_001), WEB, "S"))
    balancer.send(tcp(CLIENT, At(VIP, 443), "S"))

    assert balancer.traffic_of_services() == {1: Traffic(2, 3, 40 + 140 + 40, 1, 1040), 2: Traffic(1, 1, 40)}
    assert balancer.traffic_of_endpoints() == {1: Traffic(1, 2, 40 + 140, 1, 1040), 2: Traffic(2, 2, 80)}
    assert balancer.verdicts() == {Verdict.REQUEST: 4, Verdict.REPLY: 1}
