# SPDX-License-Identifier: Apache-2.0
"""NAT of UDP: whole frames both ways, checksums, how long a flow keeps its endpoint, and errors about datagrams."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, ConnectionState, EndpointRowState, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as site
from tests.packets.balancer import (
    CLIENT,
    ENDPOINTS_AT,
    VIP,
    Balancer,
    Traffic,
    macs_towards,
    to_client,
    to_endpoint,
)
from tests.packets.frames import At, forwarded, frame, padded, tcp, udp
from tests.packets.table import Ends, Entry

pytestmark = pytest.mark.kernel

NAMES = At(VIP, 53)
ONE, TWO = At(ENDPOINTS_AT[1], 5353), At(ENDPOINTS_AT[2], 5353)
ENDS = Ends(CLIENT, protocol=site.UDP)
OPENING, IDLE = 4, 14
"""How long a flow may be silent until the endpoint has answered, and then, in units of 8.6 seconds."""
SUM = 14 + 20 + 6
"""Where the checksum lies in a frame."""


@pytest.fixture(autouse=True)
def _names(balancer: Balancer) -> None:
    """A service whose first new flow goes to endpoint 1, the second to endpoint 2, and so on."""
    balancer.endpoint(1)
    balancer.endpoint(2)
    balancer.serve(NAMES, ring=[1, 2], target_port=ONE.port, protocol=site.UDP)


def datagram(source: At, destination: At, payload: bytes = b"odd", **fields: int) -> bytes:
    segment = UDP(sport=source.port, dport=destination.port, **fields) / Raw(payload)
    return frame(source.address, destination.address, segment)


def goes_to(balancer: Balancer, source: At = CLIENT) -> str | None:
    """The endpoint's address that a client's datagram is sent to, None if it is sent nowhere."""
    action, out = balancer.send(udp(source, NAMES))
    return Ether(out)["IP"].dst if action == XdpVerdict.REDIRECT else None


# --- frames ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("payload", [b"", b"odd", bytes(1400)], ids=len)
def test_a_datagram_and_its_answer_are_translated(balancer: Balancer, payload: bytes) -> None:
    question, answer = padded(datagram(CLIENT, NAMES, payload)), padded(datagram(ONE, CLIENT, payload))
    assert balancer.send(question) == (XdpVerdict.REDIRECT, to_endpoint(question, ONE))
    assert balancer.send(answer, "back") == (XdpVerdict.REDIRECT, to_client(answer, NAMES))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.REPLY: 1}
    assert balancer.traffic_of_services() == {1: Traffic(1, 1, 28 + len(payload), 1, 28 + len(payload))}


def test_a_datagram_whose_sender_computed_no_checksum_gets_none(balancer: Balancer) -> None:
    question, answer = datagram(CLIENT, NAMES, chksum=0), datagram(ONE, CLIENT, chksum=0)
    assert balancer.send(question).frame == to_endpoint(question, ONE)
    assert balancer.send(answer, "back").frame == to_client(answer, NAMES)


@pytest.mark.parametrize("wanted", [0x0001, 0x00FF, 0xFF00, 0xFFFE, 0xFFFF])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("way", ["request", "reply"])
def test_a_checksum_at_the_edges_comes_out_right(balancer: Balancer, way: str, side: str, wanted: int) -> None:
    """A sum of 0 is written as 0xffff: 0 would say that there is none."""
    goes_to(balancer)
    ends = (CLIENT, NAMES) if way == "request" else (ONE, CLIENT)

    def expected(content: bytes) -> bytes:
        return to_endpoint(content, ONE) if way == "request" else to_client(content, NAMES)

    blank = datagram(*ends, bytes(4))
    base = expected(blank) if side == "after" else blank
    content = datagram(*ends, bytes(2) + ((int.from_bytes(base[SUM : SUM + 2]) - wanted) % 0xFFFF).to_bytes(2))
    result = expected(content)
    shown = result if side == "after" else content
    assert int.from_bytes(shown[SUM : SUM + 2]) == wanted
    assert balancer.send(content, "front" if way == "request" else "back").frame == result


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(port=st.integers(1, 65_535), payload=st.binary(max_size=64), ttl=st.integers(2, 255), id=st.integers(0, 65_535))
def test_any_datagram_comes_out_as_if_its_checksums_were_computed_anew(
    balancer: Balancer, port: int, payload: bytes, ttl: int, id: int
) -> None:
    client = At(CLIENT.address, port)
    balancer.ring(1, [1])
    question = frame(client.address, VIP, UDP(sport=port, dport=53) / Raw(payload), ttl=ttl, id=id)
    answer = frame(ONE.address, client.address, UDP(sport=ONE.port, dport=port) / Raw(payload), ttl=ttl, id=id)
    assert balancer.send(question).frame == to_endpoint(question, ONE)
    assert balancer.send(answer, "back").frame == to_client(answer, NAMES)


@pytest.mark.parametrize("length", [7, 12])
def test_a_datagram_whose_length_is_wrong_is_dropped(balancer: Balancer, length: int) -> None:
    assert balancer.send(datagram(CLIENT, NAMES, b"odd", len=length)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.MALFORMED: 1}


# --- the life of a flow ------------------------------------------------------------------------------------------
def test_a_flow_keeps_its_endpoint_and_another_port_makes_another_flow(balancer: Balancer) -> None:
    assert [goes_to(balancer) for _ in range(3)] == [ONE.address] * 3
    assert goes_to(balancer, At(CLIENT.address, 40_001)) == TWO.address
    assert balancer.traffic_of_services()[1].connections == 2


def test_a_flow_is_open_once_the_endpoint_has_answered(balancer: Balancer) -> None:
    goes_to(balancer)
    goes_to(balancer)
    assert balancer.connections() == {ENDS: Entry(1, ConnectionState.OPENING)}
    balancer.send(udp(ONE, CLIENT), "back")
    goes_to(balancer)
    assert balancer.connections() == {ENDS: Entry(1, ConnectionState.OPEN)}


@pytest.mark.parametrize(
    ("answered", "silence", "to"), [(False, OPENING - 1, ONE), (False, OPENING + 1, TWO),
                                    (True, IDLE - 1, ONE), (True, IDLE + 1, TWO)],
)  # fmt: skip
def test_a_flow_ends_by_silence_sooner_if_nobody_answered(
    balancer: Balancer, answered: bool, silence: int, to: At
) -> None:
    goes_to(balancer)
    if answered:
        balancer.send(udp(ONE, CLIENT), "back")
    balancer.table.rest(silence)
    assert goes_to(balancer) == to.address


def test_an_answer_after_the_end_of_its_flow_is_the_kernels(balancer: Balancer) -> None:
    goes_to(balancer)
    balancer.table.rest(OPENING + 1)
    late = udp(ONE, CLIENT)
    assert balancer.send(late, "back") == (XdpVerdict.PASS, late)


@pytest.mark.parametrize("algorithm", list(AlgorithmCode))
def test_a_flow_survives_edits_of_its_pool_but_not_a_disabled_endpoint(
    balancer: Balancer, algorithm: AlgorithmCode
) -> None:
    balancer.serve(NAMES, ring=[1], target_port=ONE.port, protocol=site.UDP, algorithm=algorithm)
    goes_to(balancer)
    balancer.ring(1, [2])
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    assert goes_to(balancer) == ONE.address
    assert balancer.send(udp(ONE, CLIENT), "back").frame == to_client(udp(ONE, CLIENT), NAMES)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    assert balancer.send(udp(ONE, CLIENT), "back").verdict == XdpVerdict.DROP
    assert goes_to(balancer) == TWO.address


def test_a_flow_leaves_a_dead_endpoint_whose_late_answers_still_reach_the_client(balancer: Balancer) -> None:
    goes_to(balancer)
    balancer.endpoint(1, state=EndpointRowState.DEAD)
    assert balancer.send(udp(ONE, CLIENT), "back").frame == to_client(udp(ONE, CLIENT), NAMES)
    assert goes_to(balancer) == TWO.address
    assert goes_to(balancer) == TWO.address


def test_tcp_and_udp_of_the_same_addresses_and_ports_are_apart(balancer: Balancer) -> None:
    balancer.serve(NAMES, ring=[2], target_port=ONE.port, index=2)
    segment, answer = tcp(CLIENT, NAMES), tcp(TWO, CLIENT, "SA")
    assert goes_to(balancer) == ONE.address
    assert balancer.send(segment).frame == to_endpoint(segment, TWO)
    assert balancer.send(answer, "back").frame == to_client(answer, NAMES)
    stray = udp(TWO, CLIENT)
    assert balancer.send(stray, "back") == (XdpVerdict.PASS, stray)
    assert balancer.connections().keys() == {ENDS, Ends(CLIENT, 2)}


def test_a_datagram_to_the_client_of_no_flow_is_left_alone(balancer: Balancer) -> None:
    for content in (udp(ONE, CLIENT), udp(At(ONE.address, 53), CLIENT)):
        assert balancer.send(content, "back") == (XdpVerdict.PASS, content)
    assert balancer.verdicts() == {}


# --- errors ------------------------------------------------------------------------------------------------------
ERRORS = {"port unreachable": ICMP(type=3, code=3), "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1300)}


def quoted(source: At, destination: At, chksum: int | None) -> Packet:
    fields = {} if chksum is None else {"chksum": chksum}
    return IP(src=source.address, dst=destination.address, ttl=60, id=77) / UDP(
        sport=source.port, dport=destination.port, **fields
    ) / Raw(bytes(range(256)) * 5)  # fmt: skip


@pytest.mark.parametrize("chksum", [None, 0], ids=["checksum", "no checksum"])
@pytest.mark.parametrize("length", [28, 29, 548])
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_an_error_about_a_datagram_reaches_who_sent_it(
    balancer: Balancer, kind: Packet, length: int, chksum: int | None
) -> None:
    """Built twice, as one side of the balancer saw the datagram and as the other."""
    goes_to(balancer)

    def error(source: str, to: str, about: Packet) -> bytes:
        return padded(frame(source, to, kind / Raw(bytes(about)[:length])))

    content = error(ONE.address, CLIENT.address, quoted(CLIENT, ONE, chksum))
    meant = error(VIP, CLIENT.address, quoted(CLIENT, NAMES, chksum))
    assert balancer.send(content, "back") == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(CLIENT.address)))
    content = error("198.51.100.1", VIP, quoted(NAMES, CLIENT, chksum))
    meant = error("198.51.100.1", ONE.address, quoted(ONE, CLIENT, chksum))
    assert balancer.send(content) == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(ONE.address)))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ERROR_RELAYED: 1, Verdict.ICMP_ERROR: 1}
