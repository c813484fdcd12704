# SPDX-License-Identifier: Apache-2.0
"""The life of a connection: what keeps it at its endpoint, what ends it, what may take its place."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether

from reconciler.clock import now_ns
from reconciler.dataplane.layout import AlgorithmCode, Direction, EndpointRowState, FlowState, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, VIP, WEB, Balancer, Flow, FlowKey
from tests.packets.frames import At, tcp

pytestmark = pytest.mark.kernel

ONE, TWO = At(ENDPOINTS_AT[1], 80), At(ENDPOINTS_AT[2], 80)
REQUEST = FlowKey(CLIENT, WEB)
REPLY, REPLY_OF_TWO = FlowKey(ONE, CLIENT), FlowKey(TWO, CLIENT)
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def _web(balancer: Balancer) -> None:
    """A service whose first new connection goes to endpoint 1, the second to endpoint 2, and so on."""
    balancer.endpoint(1)
    balancer.endpoint(2)
    balancer.serve(ring=[1, 2])


def goes_to(balancer: Balancer, flags: str, source: At = CLIENT, to: At = WEB) -> At | None:
    """Where a client's packet with these flags is sent, None if it is sent nowhere."""
    action, out = balancer.send(tcp(source, to, flags))
    packet = Ether(out)
    return At(packet["IP"].dst, packet["TCP"].dport) if action == XdpVerdict.REDIRECT else None


def comes_from(balancer: Balancer, flags: str, server: At) -> At | None:
    """Whose answer a server's packet to the client becomes, None if it is dropped."""
    action, out = balancer.send(tcp(server, CLIENT, flags), "back")
    packet = Ether(out)
    return At(packet["IP"].src, packet["TCP"].sport) if action == XdpVerdict.REDIRECT else None


def establish(balancer: Balancer) -> None:
    """The handshake of a connection to endpoint 1; the turn is endpoint 2's after it."""
    assert goes_to(balancer, "S") == ONE
    assert comes_from(balancer, "SA", ONE) == WEB
    assert goes_to(balancer, "A") == ONE


def states(balancer: Balancer) -> dict[FlowKey, FlowState]:
    return {key: flow.state for key, flow in balancer.flows().items()}


def rest(balancer: Balancer, seconds: int) -> None:
    """Let all connections be silent for so long."""
    for key, flow in balancer.flows().items():
        balancer.set_flow(key, flow, now_ns() - seconds * 10**9)


def segment(source: At, to: At, flags: str, sequence: int, acknowledged: int = 0x0F00) -> bytes:
    """A segment with numbers of its own."""
    packet = Ether(tcp(source, to, flags))
    packet["TCP"].seq, packet["TCP"].ack = sequence % 2**32, acknowledged
    del packet["TCP"].chksum
    return bytes(packet)


# --- a connection stays ------------------------------------------------------------------------------------------
def test_a_connection_keeps_its_endpoint_when_the_ring_no_longer_has_it(balancer: Balancer) -> None:
    establish(balancer)
    balancer.ring(1, [2])
    assert goes_to(balancer, "PA") == ONE
    assert goes_to(balancer, "S", At(CLIENT.address, 40_001)) == TWO
    balancer.ring(1, [])
    assert goes_to(balancer, "PA") == ONE


def test_a_connection_keeps_its_port_when_the_service_translates_to_another(balancer: Balancer) -> None:
    establish(balancer)
    balancer.serve(ring=[1, 2], target_port=8080)
    assert goes_to(balancer, "PA") == ONE
    assert comes_from(balancer, "A", ONE) == WEB


def test_a_repeated_syn_goes_where_the_first_went(balancer: Balancer) -> None:
    assert [goes_to(balancer, "S") for _ in range(3)] == [ONE] * 3
    assert balancer.traffic_of_services()[1].connections == 1


def test_a_forged_syn_does_not_move_an_open_connection(balancer: Balancer) -> None:
    establish(balancer)
    assert goes_to(balancer, "S") == ONE
    assert goes_to(balancer, "A") == ONE
    assert set(states(balancer).values()) == {FlowState.OPEN}


@pytest.mark.parametrize("flags", ["A", "PA", "S"])
def test_connections_to_a_retired_endpoint_go_on(balancer: Balancer, flags: str) -> None:
    establish(balancer)
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    assert goes_to(balancer, flags) == ONE
    assert comes_from(balancer, "A", ONE) == WEB


# --- a connection ends -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", [EndpointRowState.DISABLED, EndpointRowState.FREE])
def test_a_disabled_endpoint_loses_its_connections_both_ways(balancer: Balancer, state: EndpointRowState) -> None:
    establish(balancer)
    balancer.endpoint(1, state=state)
    request = tcp(CLIENT, WEB, "PA")

    assert balancer.send(request) == (XdpVerdict.PASS, request)  # The kernel answers with a reset.
    assert balancer.flows() == {}
    assert balancer.verdicts()[Verdict.CONNECTION_UNKNOWN] == 1

    balancer.endpoint(1)
    assert goes_to(balancer, "PA") is None, "a connection that was cut does not come back"
    assert goes_to(balancer, "S") == TWO


@pytest.mark.parametrize("state", [EndpointRowState.DISABLED, EndpointRowState.FREE])
def test_a_reply_of_a_disabled_endpoint_ends_its_connection_and_is_dropped(
    balancer: Balancer, state: EndpointRowState
) -> None:
    establish(balancer)
    balancer.endpoint(1, state=state)
    assert comes_from(balancer, "PA", ONE) is None
    assert balancer.verdicts()[Verdict.ENDPOINT_DISABLED] == 1
    assert balancer.flows() == {}


def test_a_client_of_a_disabled_endpoint_gets_another_with_its_next_syn(balancer: Balancer) -> None:
    establish(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    assert goes_to(balancer, "S") == TWO
    assert set(balancer.flows()) == {REQUEST, REPLY_OF_TWO}


def test_source_hash_takes_up_a_cut_connection_at_another_endpoint_which_resets_it(balancer: Balancer) -> None:
    balancer.serve(ring=[1], algorithm=AlgorithmCode.SOURCE_HASH)
    establish(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    balancer.ring(1, [2])
    assert goes_to(balancer, "PA") == TWO


def test_a_number_that_another_endpoint_got_says_nothing_about_old_connections(balancer: Balancer) -> None:
    establish(balancer)
    balancer.endpoint(1, "10.2.0.13")
    assert goes_to(balancer, "PA") is None
    assert balancer.traffic_of_endpoints()[1].request_packets == 2


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
@pytest.mark.parametrize("by", ["client", "endpoint"])
def test_after_a_fin_or_a_reset_packets_still_follow_but_a_syn_starts_afresh(
    balancer: Balancer, flags: str, by: str
) -> None:
    establish(balancer)
    assert goes_to(balancer, flags) == ONE if by == "client" else comes_from(balancer, flags, ONE) == WEB
    assert states(balancer) == {REQUEST: FlowState.CLOSING, REPLY: FlowState.CLOSING}

    assert goes_to(balancer, "A") == ONE
    assert comes_from(balancer, "A", ONE) == WEB
    assert states(balancer) == {REQUEST: FlowState.CLOSING, REPLY: FlowState.CLOSING}

    rest(balancer, 3)
    assert goes_to(balancer, "S") == TWO
    assert balancer.traffic_of_services()[1].connections == 2


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
@pytest.mark.parametrize("by", ["client", "endpoint"])
@pytest.mark.parametrize("off", [-1, 0x1_0000, 0x8000_0000])
def test_a_forged_fin_or_reset_with_another_number_ends_nothing(
    balancer: Balancer, flags: str, by: str, off: int
) -> None:
    establish(balancer)
    assert comes_from(balancer, "A", ONE) == WEB
    balancer.send(segment(CLIENT, WEB, flags, 0x0F00 + off) if by == "client" else
                  segment(ONE, CLIENT, flags, 0x0F00 + off), "front" if by == "client" else "back")  # fmt: skip
    assert set(states(balancer).values()) == {FlowState.OPEN}
    rest(balancer, 3)
    assert goes_to(balancer, "S") == ONE


def test_a_syn_moves_no_connection_that_one_side_has_closed_while_the_other_goes_on(balancer: Balancer) -> None:
    establish(balancer)
    assert goes_to(balancer, "FA") == ONE
    rest(balancer, 1)
    assert comes_from(balancer, "PA", ONE) == WEB
    assert goes_to(balancer, "S") == ONE
    assert comes_from(balancer, "SA", ONE) == WEB
    assert goes_to(balancer, "A") == ONE


def test_an_endpoint_that_refuses_a_connection_frees_its_addresses(balancer: Balancer) -> None:
    assert goes_to(balancer, "S") == ONE
    balancer.send(segment(ONE, CLIENT, "RA", 0, 0x7777), "back")
    assert set(states(balancer).values()) == {FlowState.OPENING}
    balancer.send(segment(ONE, CLIENT, "RA", 0, 0x1001), "back")
    rest(balancer, 3)
    assert goes_to(balancer, "S") == TWO


def test_a_connection_straight_to_an_endpoint_is_left_alone_once_that_by_the_vip_is_over(balancer: Balancer) -> None:
    establish(balancer)
    answer, more = tcp(ONE, CLIENT, "SA"), tcp(ONE, CLIENT, "PA")
    assert balancer.send(answer, "back").verdict == XdpVerdict.REDIRECT, "a repeated one of the handshake"
    assert goes_to(balancer, "FA") == ONE
    assert comes_from(balancer, "FA", ONE) == WEB
    for content in (answer, more):
        assert balancer.send(content, "back") == (XdpVerdict.PASS, content)
    assert balancer.flows() == {}


@pytest.mark.parametrize(("state", "hours"), [(FlowState.CLOSING, 1), (FlowState.OPEN, 3)])
def test_a_flow_that_is_long_over_makes_no_reply_of_anything(
    balancer: Balancer, state: FlowState, hours: int
) -> None:
    balancer.set_flow(REPLY, Flow(WEB, Direction.REPLY, state, endpoint=1), now_ns() - hours * HOUR_NS)
    content = tcp(ONE, CLIENT, "SA")
    assert balancer.send(content, "back") == (XdpVerdict.PASS, content)
    if state == FlowState.CLOSING:
        balancer.set_flow(REPLY, Flow(WEB, Direction.REPLY, state, endpoint=1), now_ns() - hours * HOUR_NS)
        content = tcp(ONE, CLIENT, "RA")
        assert balancer.send(content, "back") == (XdpVerdict.PASS, content)


def test_the_last_words_of_an_endpoint_do_not_touch_the_next_connection_of_the_client(balancer: Balancer) -> None:
    establish(balancer)
    goes_to(balancer, "FA")
    rest(balancer, 3)
    assert goes_to(balancer, "S") == TWO
    balancer.set_flow(REPLY, Flow(WEB, Direction.REPLY, FlowState.OPEN, endpoint=1), now_ns())

    assert comes_from(balancer, "FA", ONE) == WEB
    assert balancer.flows()[REQUEST] == Flow(TWO, Direction.REQUEST, FlowState.OPENING, endpoint=2)

    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    assert comes_from(balancer, "PA", ONE) is None
    assert set(balancer.flows()) == {REQUEST, REPLY_OF_TWO}


def test_opening_becomes_open_with_the_clients_answer_alone(balancer: Balancer) -> None:
    goes_to(balancer, "S")
    comes_from(balancer, "SA", ONE)
    goes_to(balancer, "S")
    assert states(balancer) == {REQUEST: FlowState.OPENING, REPLY: FlowState.OPENING}
    goes_to(balancer, "A")
    assert states(balancer) == {REQUEST: FlowState.OPEN, REPLY: FlowState.OPEN}


def test_a_syn_on_a_connection_that_was_silent_for_hours_starts_afresh(balancer: Balancer) -> None:
    establish(balancer)
    server = Flow(ONE, Direction.REQUEST, FlowState.OPEN, endpoint=1)
    balancer.set_flow(REQUEST, server, now_ns() - 2 * HOUR_NS)
    assert goes_to(balancer, "S") == ONE
    balancer.set_flow(REQUEST, server, now_ns() - 3 * HOUR_NS)
    assert goes_to(balancer, "S") == TWO


def test_anything_but_a_syn_finds_its_connection_after_any_silence(balancer: Balancer) -> None:
    establish(balancer)
    for key, flow in balancer.flows().items():
        balancer.set_flow(key, flow, 0)
    assert comes_from(balancer, "A", ONE) == WEB
    assert goes_to(balancer, "A") == ONE


# --- the two halves ----------------------------------------------------------------------------------------------
def test_age_is_written_once_a_second_and_in_both_halves(balancer: Balancer) -> None:
    establish(balancer)
    before, ahead = now_ns(), now_ns() + HOUR_NS
    flows = balancer.flows()

    for key in flows:
        balancer.set_flow(key, flows[key], ahead)  # No second has passed since then for an hour to come.
    goes_to(balancer, "A")
    comes_from(balancer, "A", ONE)
    assert {balancer.last_seen_ns(key) for key in flows} == {ahead}

    for send in (lambda: goes_to(balancer, "A"), lambda: comes_from(balancer, "A", ONE)):
        for key in flows:
            balancer.set_flow(key, flows[key], before - 2 * 10**9)
        send()
        seen = {balancer.last_seen_ns(key) for key in flows}
        assert len(seen) == 1
        assert before - 10**8 <= seen.pop() <= now_ns()  # The clock that is read has the ticks of a jiffy.


@pytest.mark.parametrize("evicted", [REQUEST, REPLY], ids=["request", "reply"])
def test_whichever_half_is_used_brings_back_the_other(balancer: Balancer, evicted: FlowKey) -> None:
    establish(balancer)
    flows = balancer.flows()
    (left,) = set(flows) - {evicted}
    balancer.evict(evicted)
    balancer.set_flow(left, flows[left], now_ns() - 2 * 10**9)

    assert goes_to(balancer, "A") == ONE if left == REQUEST else comes_from(balancer, "A", ONE) == WEB
    assert balancer.flows() == flows


def test_a_client_whose_half_is_lost_may_connect_again_to_the_same_endpoint(balancer: Balancer) -> None:
    establish(balancer)
    balancer.evict(REQUEST)
    balancer.ring(1, [1])
    assert goes_to(balancer, "S") == ONE
    assert states(balancer) == {REQUEST: FlowState.OPENING, REPLY: FlowState.OPENING}


def test_a_client_that_claims_a_vips_address_gets_no_use_of_flows_that_are_not_its_own(balancer: Balancer) -> None:
    """The endpoint's answer to it comes in as a request to that VIP, on the addresses of the reply's flow."""
    other = At("20.20.20.2", 443)
    balancer.serve(other, ring=[2], index=2)
    assert goes_to(balancer, "S", source=other) == ONE
    flows = balancer.flows()
    answer = tcp(ONE, other, "SA")
    assert balancer.send(answer, "back") == (XdpVerdict.PASS, answer)
    assert balancer.flows() == flows
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.CONNECTION_UNKNOWN: 1}


def test_requests_to_a_service_that_was_removed_are_undefined_and_its_replies_still_translated(
    balancer: Balancer,
) -> None:
    establish(balancer)
    balancer.withdraw(WEB)
    assert balancer.send(tcp(CLIENT, WEB, "A")).verdict == XdpVerdict.DROP
    assert balancer.verdicts()[Verdict.UNDEFINED] == 1
    assert comes_from(balancer, "A", ONE) == WEB


# --- one client address and port, two VIPs, one endpoint --------------------------------------------------------
SECURE = At(VIP, 443)


@pytest.fixture
def twin(balancer: Balancer) -> None:
    """Both services are answered by port 8080 of the same endpoints."""
    balancer.serve(ring=[1, 2], target_port=8080)
    balancer.serve(SECURE, ring=[1, 2], index=2, target_port=8080)


@pytest.mark.usefixtures("twin")
def test_an_endpoint_that_already_talks_to_the_same_address_and_port_is_passed_over(balancer: Balancer) -> None:
    assert goes_to(balancer, "S") == At(ONE.address, 8080)
    assert goes_to(balancer, "S", to=SECURE) == At(TWO.address, 8080)
    assert comes_from(balancer, "SA", At(ONE.address, 8080)) == WEB
    assert comes_from(balancer, "SA", At(TWO.address, 8080)) == SECURE


@pytest.mark.usefixtures("twin")
def test_if_every_endpoint_is_taken_the_packet_is_dropped_and_nobody_is_disturbed(balancer: Balancer) -> None:
    balancer.ring(1, [1])
    balancer.ring(2, [1])
    assert goes_to(balancer, "S") == At(ONE.address, 8080)
    flows = balancer.flows()
    assert goes_to(balancer, "S", to=SECURE) is None
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ADDRESS_CLASH: 1}
    assert balancer.flows() == flows
    assert balancer.traffic_of_services().keys() == {1}


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("way", ["closing", "silent for hours"])
def test_a_connection_that_is_over_makes_way(balancer: Balancer, way: str) -> None:
    server = At(ONE.address, 8080)
    balancer.ring(1, [1])
    balancer.ring(2, [1])
    goes_to(balancer, "S")
    if way == "closing":
        comes_from(balancer, "RA", server)
        balancer.send(tcp(CLIENT, WEB, "A"))
        comes_from(balancer, "A", server)
        goes_to(balancer, "R")
        rest(balancer, 3)
    else:
        reply = Flow(WEB, Direction.REPLY, FlowState.OPEN, endpoint=1)
        balancer.set_flow(FlowKey(server, CLIENT), reply, now_ns() - 3 * HOUR_NS)
    assert goes_to(balancer, "S", to=SECURE) == server
    assert comes_from(balancer, "SA", server) == SECURE
