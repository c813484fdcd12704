# SPDX-License-Identifier: Apache-2.0
"""NAT that remembers nothing: the ring says where requests go, and the source of replies whose they are. And the ways
to it from the table, and back."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror
from scapy.packet import Raw

from reconciler.clock import now_ns
from reconciler.dataplane import connections
from reconciler.dataplane.layout import (
    REMEMBERED,
    SERVED,
    AlgorithmCode,
    ConnectionState,
    EndpointRowState,
    ModeCode,
    Verdict,
)
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, UDP, WEB, Balancer, Traffic, to_client, to_endpoint
from tests.packets.frames import At, frame, tcp, udp
from tests.packets.table import Ends, Entry
from tests.rings import write_rings

pytestmark = pytest.mark.kernel

STATELESS, SETTLING, LEAVING = ModeCode.NAT_STATELESS, ModeCode.NAT_SETTLING, ModeCode.NAT_LEAVING
FIRST, SECOND = At(ENDPOINTS_AT[1], 8080), At(ENDPOINTS_AT[2], 8080)
MAGLEV = AlgorithmCode.MAGLEV


def serve(balancer: Balancer, mode: ModeCode = STATELESS, ring: tuple[int, ...] = (1,), protocol: int = 6) -> None:
    for id, server in ((1, FIRST), (2, SECOND)):
        balancer.endpoint(id)
        balancer.serves(server, WEB, id, protocol)
    balancer.serve(ring=ring, mode=mode, algorithm=MAGLEV, target_port=8080, protocol=protocol)


def change_mode(balancer: Balancer, mode: ModeCode) -> None:
    balancer.service(WEB, index=1, target_port=8080, algorithm=MAGLEV, mode=mode)


def edit(balancer: Balancer, *ring: int) -> None:
    assert write_rings(balancer.kernel, {1: np.array(ring, np.uint32)}, {1}) == {1: None}


def is_remembered(balancer: Balancer) -> bool:
    return any(any(row) for _, row in balancer.kernel.dump(REMEMBERED.name))


@pytest.mark.parametrize("protocol", [6, UDP], ids=["tcp", "udp"])
def test_both_ways_without_a_trace(balancer: Balancer, protocol: int) -> None:
    serve(balancer, protocol=protocol)
    request, reply = (
        (tcp(CLIENT, WEB, "S"), tcp(FIRST, CLIENT, "SA")) if protocol == 6 else
        (udp(CLIENT, WEB), udp(FIRST, CLIENT))
    )  # fmt: skip
    assert balancer.send(request) == (XdpVerdict.REDIRECT, to_endpoint(request, FIRST))
    assert balancer.send(reply, "back") == (XdpVerdict.REDIRECT, to_client(reply, WEB))
    assert balancer.connections() == {} and not is_remembered(balancer)
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.REPLY: 1}
    counted = balancer.traffic_of_services()[1]
    assert (counted.request_packets, counted.reply_packets) == (1, 1)
    assert counted == balancer.traffic_of_endpoints()[1]


def test_a_balancer_that_never_saw_a_connection_goes_on_with_it(balancer: Balancer) -> None:
    serve(balancer)
    later, reply = tcp(CLIENT, WEB, "A", b"more"), tcp(FIRST, CLIENT, "PA", b"yes")
    assert balancer.send(reply, "back").frame == to_client(reply, WEB)
    assert balancer.send(later).frame == to_endpoint(later, FIRST)
    assert balancer.traffic_of_services()[1] == Traffic(0, 1, 44, 1, 43)


def test_what_an_endpoint_sends_to_the_node_itself_is_left_to_the_kernel(balancer: Balancer) -> None:
    """The node checks its endpoints directly."""
    serve(balancer)
    answer = tcp(FIRST, At("10.2.0.1", 50_000), "SA")
    assert balancer.send(answer, "back") == (XdpVerdict.PASS, answer)


def test_what_comes_from_another_port_of_an_endpoint_is_left_alone(balancer: Balancer) -> None:
    serve(balancer)
    other = tcp(At(FIRST.address, 22), CLIENT, "SA")
    assert balancer.send(other, "back") == (XdpVerdict.PASS, other)
    datagram = udp(FIRST, CLIENT)
    assert balancer.send(datagram, "back") == (XdpVerdict.PASS, datagram)


def test_open_connections_stay_with_their_endpoint_when_the_ring_changes(balancer: Balancer) -> None:
    serve(balancer)
    balancer.send(tcp(CLIENT, WEB, "S"))
    edit(balancer, 2)
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    old, new = tcp(CLIENT, WEB, "A"), tcp(At(CLIENT.address, 40_001), WEB, "S")
    assert balancer.send(old).frame == to_endpoint(old, FIRST)
    assert balancer.send(new).frame == to_endpoint(new, SECOND)
    for server in (FIRST, SECOND):
        reply = tcp(server, CLIENT, "A")
        assert balancer.send(reply, "back").frame == to_client(reply, WEB)
    assert balancer.connections() == {}


def test_an_endpoint_that_is_disabled_says_nothing_more(balancer: Balancer) -> None:
    serve(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    assert balancer.send(tcp(FIRST, CLIENT, "A"), "back")[0] == XdpVerdict.DROP
    assert balancer.send(tcp(CLIENT, WEB, "S"))[0] == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.ENDPOINT_DISABLED: 1, Verdict.NO_ENDPOINT: 1}


def test_errors_reach_either_side(balancer: Balancer) -> None:
    """As of connections in the table: tests/packets/test_nat_errors.py has whole frames."""
    serve(balancer)
    to = IP(src=CLIENT.address, dst=FIRST.address, flags="DF") / TCP(sport=CLIENT.port, dport=8080) / Raw(b"x" * 500)
    back = IP(src=WEB.address, dst=CLIENT.address, flags="DF") / TCP(sport=80, dport=CLIENT.port) / Raw(b"x" * 500)
    kind = ICMP(type=3, code=4, nexthopmtu=1300)
    about_request = frame("10.2.0.253", CLIENT.address, kind / Raw(bytes(to)[:128]))
    about_reply = frame("198.51.100.1", WEB.address, kind / Raw(bytes(back)[:128]))
    out = IP(balancer.send(about_request, "back").frame[14:])
    assert (out.dst, out[ICMP].nexthopmtu, out[IPerror].dst) == (CLIENT.address, 1300, WEB.address)
    out = IP(balancer.send(about_reply).frame[14:])
    assert (out.dst, out[IPerror].src, bytes(out)[48:50]) == (FIRST.address, FIRST.address, b"\x1f\x90")
    assert balancer.verdicts() == {Verdict.ERROR_RELAYED: 1, Verdict.ICMP_ERROR: 1}


def test_on_the_way_from_the_table_its_connections_go_on(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT)
    balancer.send(tcp(CLIENT, WEB, "S"))
    balancer.ring(1, [2])  # no transition: the table knows
    change_mode(balancer, SETTLING)
    old, new = tcp(CLIENT, WEB, "A"), tcp(At(CLIENT.address, 40_001), WEB, "S")
    assert balancer.send(old).frame == to_endpoint(old, FIRST)
    assert balancer.send(new).frame == to_endpoint(new, SECOND)
    for server in (FIRST, SECOND):
        reply = tcp(server, CLIENT if server is FIRST else At(CLIENT.address, 40_001), "A")
        assert balancer.send(reply, "back").frame == to_client(reply, WEB)
    assert balancer.connections() == {Ends(CLIENT): Entry(1, ConnectionState.OPEN)}


def test_on_the_way_back_to_the_table_connections_it_never_knew_go_on(balancer: Balancer) -> None:
    serve(balancer)
    balancer.send(tcp(CLIENT, WEB, "S"))
    edit(balancer, 2)
    change_mode(balancer, LEAVING)
    old, newer = tcp(CLIENT, WEB, "A"), At(CLIENT.address, 40_001)
    assert balancer.send(old).frame == to_endpoint(old, FIRST)
    assert balancer.connections() == {}
    syn, reply = tcp(newer, WEB, "S"), tcp(FIRST, CLIENT, "A")
    assert balancer.send(syn).frame == to_endpoint(syn, SECOND)
    assert balancer.send(reply, "back").frame == to_client(reply, WEB)
    assert balancer.connections() == {Ends(newer): Entry(2, ConnectionState.OPENING)}


def test_the_source_of_an_endpoint_that_was_given_up_is_known_while_its_connections_move(balancer: Balancer) -> None:
    """As long as a connection may be silent after the last reply."""
    serve(balancer)
    now = now_ns() >> connections.UNIT_SHIFT
    reply = tcp(FIRST, CLIENT, "A")
    balancer.serves(FIRST, WEB, 1, until=now + 5)
    assert balancer.send(reply, "back").frame == to_client(reply, WEB)
    rows = {row.endpoint: row for _, row in SERVED.unpack(balancer.kernel.dump(SERVED.name))}
    assert rows[1].until in (now + 867, now + 868)
    balancer.serves(FIRST, WEB, 1, until=now - 1)
    assert balancer.send(reply, "back") == (XdpVerdict.PASS, reply)


def test_a_service_of_the_table_is_found_first_where_both_are_possible(balancer: Balancer) -> None:
    """Two services with the same endpoint: the one that is on its way has no entry, the other one has."""
    serve(balancer, SETTLING)
    other = At(WEB.address, 443)
    balancer.serve(other, ring=[1], index=2, target_port=8080)
    balancer.send(tcp(CLIENT, other, "S"))
    reply, stranger = tcp(FIRST, CLIENT, "SA"), tcp(FIRST, At(CLIENT.address, 9), "SA")
    assert balancer.send(reply, "back").frame == to_client(reply, other)
    assert balancer.send(stranger, "back").frame == to_client(stranger, WEB)
