# SPDX-License-Identifier: Apache-2.0
"""The life of a connection: what keeps it at its endpoint, what ends it, what may take its place."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import (
    ENDPOINT_FILTER,
    UNANSWERED,
    AlgorithmCode,
    ConnectionState,
    EndpointRowState,
    Verdict,
)
from reconciler.dataplane.rows import Number
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, VIP, WEB, Balancer
from tests.packets.frames import At, tcp
from tests.packets.table import Ends, Entry

pytestmark = pytest.mark.kernel

ONE, TWO = At(ENDPOINTS_AT[1], 80), At(ENDPOINTS_AT[2], 80)
ENDS = Ends(CLIENT)
TRANSITORY, OVER, IDLE = 28, 3, 867
"""How long an entry that is not open, is over, or is open may be silent, in units of 8.6 seconds."""


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


def state(balancer: Balancer) -> ConnectionState:
    """That of the only connection."""
    (entry,) = balancer.connections().values()
    return entry.state


def segment(source: At, to: At, flags: str, sequence: int, acknowledged: int = 0x0F00) -> bytes:
    """A segment with numbers of its own."""
    packet = Ether(tcp(source, to, flags))
    packet["TCP"].seq, packet["TCP"].ack = sequence % 2**32, acknowledged
    del packet["TCP"].chksum
    return bytes(packet)


# --- whose packets are looked up ---------------------------------------------------------------------------------
def test_only_packets_from_addresses_that_may_be_endpoints_are_looked_up(balancer: Balancer) -> None:
    """The filter says so, before any connection is looked for."""
    establish(balancer)
    assert comes_from(balancer, "A", ONE) == WEB
    lines = [key for key, _ in balancer.kernel.dump(ENDPOINT_FILTER.name)]
    assert not any(balancer.kernel.delete(ENDPOINT_FILTER.name, lines))
    frame = tcp(ONE, CLIENT, "A")
    assert balancer.send(frame, "back") == (XdpVerdict.PASS, frame)
    assert goes_to(balancer, "A") == ONE
    balancer.endpoint(1)
    assert comes_from(balancer, "A", ONE) == WEB


# --- a connection stays ------------------------------------------------------------------------------------------
def test_a_connection_keeps_its_endpoint_when_the_ring_no_longer_has_it(balancer: Balancer) -> None:
    establish(balancer)
    balancer.ring(1, [2])
    assert goes_to(balancer, "PA") == ONE
    assert goes_to(balancer, "S", At(CLIENT.address, 40_001)) == TWO
    balancer.ring(1, [])
    assert goes_to(balancer, "PA") == ONE


def test_a_repeated_syn_goes_where_the_first_went(balancer: Balancer) -> None:
    assert [goes_to(balancer, "S") for _ in range(3)] == [ONE] * 3
    assert balancer.traffic_of_services()[1].connections == 1


def test_a_forged_syn_does_not_move_an_open_connection(balancer: Balancer) -> None:
    establish(balancer)
    assert goes_to(balancer, "S") == ONE
    assert goes_to(balancer, "A") == ONE
    assert state(balancer) == ConnectionState.OPEN


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
    assert balancer.connections() == {}
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
    assert balancer.connections() == {}


def test_a_client_of_a_disabled_endpoint_gets_another_with_its_next_syn(balancer: Balancer) -> None:
    establish(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    assert goes_to(balancer, "S") == TWO
    assert balancer.connections() == {ENDS: Entry(2, ConnectionState.OPENING)}


def test_source_hash_takes_up_a_cut_connection_at_another_endpoint_which_resets_it(balancer: Balancer) -> None:
    balancer.serve(ring=[1], algorithm=AlgorithmCode.SOURCE_HASH)
    establish(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    balancer.ring(1, [2])
    assert goes_to(balancer, "PA") == TWO


def test_a_syn_that_is_repeated_goes_to_a_usable_endpoint_if_the_first_takes_nothing_new(balancer: Balancer) -> None:
    goes_to(balancer, "S")
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    assert goes_to(balancer, "S") == TWO
    assert balancer.connections() == {ENDS: Entry(2, ConnectionState.OPENING)}


@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("by", ["client", "endpoint"])
def test_after_a_reset_packets_still_follow_but_a_syn_starts_afresh(balancer: Balancer, flags: str, by: str) -> None:
    establish(balancer)
    assert goes_to(balancer, flags) == ONE if by == "client" else comes_from(balancer, flags, ONE) == WEB
    assert state(balancer) == ConnectionState.OVER

    assert goes_to(balancer, "A") == ONE
    assert comes_from(balancer, "A", ONE) == WEB
    assert state(balancer) == ConnectionState.OVER

    assert goes_to(balancer, "S") == TWO
    assert balancer.connections() == {ENDS: Entry(2, ConnectionState.OPENING)}
    assert balancer.traffic_of_services()[1].connections == 2


@pytest.mark.parametrize("first", ["client", "endpoint"])
def test_a_connection_is_over_once_both_sides_have_closed_it(balancer: Balancer, first: str) -> None:
    establish(balancer)

    def close(by: str) -> None:
        assert goes_to(balancer, "FA") == ONE if by == "client" else comes_from(balancer, "FA", ONE) == WEB

    other = "endpoint" if first == "client" else "client"
    for _ in range(2):  # A repeated FIN says nothing new.
        close(first)
        assert state(balancer) == ConnectionState[f"{first.upper()}_CLOSED"]
        assert goes_to(balancer, "A") == ONE
        assert comes_from(balancer, "A", ONE) == WEB
    close(other)
    close(first)
    assert state(balancer) == ConnectionState.OVER
    assert goes_to(balancer, "A") == ONE
    assert goes_to(balancer, "S") == TWO


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
@pytest.mark.parametrize("by", ["client", "endpoint"])
@pytest.mark.parametrize("off", [-(1 << 18), 26 << 18, 1 << 31])
def test_a_forged_fin_or_reset_with_a_number_outside_the_window_ends_nothing(
    balancer: Balancer, flags: str, by: str, off: int
) -> None:
    establish(balancer)
    assert comes_from(balancer, "A", ONE) == WEB
    balancer.send(segment(CLIENT, WEB, flags, 0x0F00 + off) if by == "client" else
                  segment(ONE, CLIENT, flags, 0x0F00 + off), "front" if by == "client" else "back")  # fmt: skip
    assert state(balancer) == ConnectionState.OPEN
    assert goes_to(balancer, "S") == ONE


@pytest.mark.parametrize("by", ["client", "endpoint"])
def test_the_window_moves_with_what_is_acknowledged(balancer: Balancer, by: str) -> None:
    """The numbers come round meanwhile."""
    establish(balancer)
    source, to, interface = (CLIENT, WEB, "front") if by == "client" else (ONE, CLIENT, "back")
    sent = 0xFFFF_0000
    other = segment(to if by == "endpoint" else ONE, CLIENT if by == "client" else WEB, "A", 0x1000, sent)
    balancer.send(other, "back" if by == "client" else "front")
    balancer.send(segment(source, to, "R", sent - (2 << 18)), interface)
    assert state(balancer) == ConnectionState.OPEN
    balancer.send(segment(source, to, "R", sent + (20 << 18)), interface)
    assert state(balancer) == ConnectionState.OVER


def test_a_connection_whose_reset_was_forged_lives_on(balancer: Balancer) -> None:
    """With the first packet that comes later than one that was under way could."""
    establish(balancer)
    comes_from(balancer, "R", ONE)
    goes_to(balancer, "PA")
    assert state(balancer) == ConnectionState.OVER
    balancer.table.rest(2)
    assert goes_to(balancer, "PA") == ONE
    assert state(balancer) == ConnectionState.OPEN
    assert balancer.table.silence(ENDS) <= 1


def test_data_after_the_end_does_not_put_it_off_but_another_fin_does(balancer: Balancer) -> None:
    establish(balancer)
    goes_to(balancer, "FA")
    comes_from(balancer, "FA", ONE)
    balancer.table.rest(1)
    comes_from(balancer, "A", ONE)
    assert balancer.table.silence(ENDS) >= 1
    balancer.table.rest(1)
    comes_from(balancer, "FA", ONE)
    assert balancer.table.silence(ENDS) <= 1
    assert goes_to(balancer, "A") == ONE
    assert state(balancer) == ConnectionState.OVER


def test_a_syn_moves_no_connection_that_one_side_has_closed_while_the_other_goes_on(balancer: Balancer) -> None:
    establish(balancer)
    assert goes_to(balancer, "FA") == ONE
    assert comes_from(balancer, "PA", ONE) == WEB
    assert goes_to(balancer, "S") == ONE
    assert comes_from(balancer, "SA", ONE) == WEB
    assert goes_to(balancer, "A") == ONE
    assert state(balancer) == ConnectionState.OPEN


def test_an_endpoint_that_refuses_a_connection_frees_its_addresses(balancer: Balancer) -> None:
    assert goes_to(balancer, "S") == ONE
    balancer.send(segment(ONE, CLIENT, "RA", 0, 0x7777_0000), "back")
    assert state(balancer) == ConnectionState.OPENING
    balancer.send(segment(ONE, CLIENT, "RA", 0, 0x1001), "back")
    assert state(balancer) == ConnectionState.OVER
    assert goes_to(balancer, "S") == TWO


def test_a_connection_straight_to_an_endpoint_is_left_alone_once_that_by_the_vip_is_over(balancer: Balancer) -> None:
    establish(balancer)
    answer, more = tcp(ONE, CLIENT, "SA"), tcp(ONE, CLIENT, "PA")
    assert balancer.send(answer, "back").verdict == XdpVerdict.REDIRECT, "a repeated one of the handshake"
    assert goes_to(balancer, "FA") == ONE
    assert comes_from(balancer, "FA", ONE) == WEB
    for content in (answer, more):
        assert balancer.send(content, "back") == (XdpVerdict.PASS, content)
    assert balancer.connections() == {}


LIMITS = {
    ConnectionState.OPENING: TRANSITORY, ConnectionState.OPEN: IDLE, ConnectionState.CLIENT_CLOSED: TRANSITORY,
    ConnectionState.ENDPOINT_CLOSED: TRANSITORY, ConnectionState.OVER: OVER,
}  # fmt: skip


@pytest.mark.parametrize("of", LIMITS)
@pytest.mark.parametrize("by", ["client", "endpoint"])
def test_a_connection_that_was_silent_for_too_long_does_not_exist_any_more(
    balancer: Balancer, of: ConnectionState, by: str
) -> None:
    """A unit may end in the middle of the test, so the limit itself is not tried."""
    for silence, lives in ((LIMITS[of] - 1, True), (LIMITS[of] + 1, False), (0x7FF - 1, False)):
        balancer.table.put(ENDS, Entry(1, of), silence)
        if by == "client":
            assert goes_to(balancer, "PA") == (ONE if lives else None)
        else:
            assert comes_from(balancer, "PA", ONE) == (WEB if lives else None)


def test_what_another_cpu_saw_just_now_is_no_age(balancer: Balancer) -> None:
    """Each CPU reads the clock for itself, so that an entry may have been seen a unit later than now."""
    balancer.table.put(ENDS, Entry(1, ConnectionState.OPEN), -1)
    assert goes_to(balancer, "PA") == ONE


@pytest.mark.parametrize("silence", [9, 11])
def test_an_open_connection_may_be_silent_as_long_as_its_service_says(balancer: Balancer, silence: int) -> None:
    balancer.front(1, WEB, idle=10)
    balancer.table.put(ENDS, Entry(1, ConnectionState.OPEN), silence)
    assert comes_from(balancer, "PA", ONE) == (WEB if silence < 10 else None)


def test_a_syn_takes_the_place_of_a_connection_that_was_silent_for_too_long(balancer: Balancer) -> None:
    balancer.table.put(ENDS, Entry(2, ConnectionState.OPEN), IDLE + 1)
    assert goes_to(balancer, "S") == ONE
    assert balancer.connections() == {ENDS: Entry(1, ConnectionState.OPENING)}


def test_opening_becomes_open_with_the_clients_answer_alone(balancer: Balancer) -> None:
    goes_to(balancer, "S")
    comes_from(balancer, "SA", ONE)
    goes_to(balancer, "S")
    assert state(balancer) == ConnectionState.OPENING
    goes_to(balancer, "A")
    assert state(balancer) == ConnectionState.OPEN


@pytest.mark.parametrize("by", ["client", "endpoint"])
def test_each_packet_says_that_its_connection_lives(balancer: Balancer, by: str) -> None:
    establish(balancer)
    balancer.table.rest(5)
    assert goes_to(balancer, "A") == ONE if by == "client" else comes_from(balancer, "A", ONE) == WEB
    assert balancer.table.silence(ENDS) <= 1


def test_a_client_that_claims_a_vips_address_gets_no_use_of_connections_that_are_not_its_own(
    balancer: Balancer,
) -> None:
    """The endpoint's answer to it comes in as a request to that VIP."""
    other = At("20.20.20.2", 443)
    balancer.serve(other, ring=[2], index=2)
    assert goes_to(balancer, "S", source=other) == ONE
    before = balancer.connections()
    answer = tcp(ONE, other, "SA")
    assert balancer.send(answer, "back") == (XdpVerdict.PASS, answer)
    assert balancer.connections() == before
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.CONNECTION_UNKNOWN: 1}


def test_requests_to_a_service_that_was_removed_are_undefined_and_its_replies_still_translated(
    balancer: Balancer,
) -> None:
    establish(balancer)
    balancer.withdraw(WEB)
    assert balancer.send(tcp(CLIENT, WEB, "A")).verdict == XdpVerdict.DROP
    assert balancer.verdicts()[Verdict.UNDEFINED] == 1
    assert comes_from(balancer, "A", ONE) == WEB


def test_a_service_with_another_index_knows_its_connections_and_keeps_their_port(balancer: Balancer) -> None:
    establish(balancer)
    balancer.serve(ring=[2], index=2, target_port=8080)
    assert goes_to(balancer, "PA") == ONE
    assert comes_from(balancer, "A", ONE) == WEB
    assert goes_to(balancer, "S", At(CLIENT.address, 40_001)) == At(TWO.address, 8080)
    assert goes_to(balancer, "RA") == ONE
    assert goes_to(balancer, "S") == At(TWO.address, 8080)
    assert Ends(CLIENT, 2) in balancer.connections()
    assert ENDS not in balancer.connections()


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
    before = balancer.connections()
    assert goes_to(balancer, "S", to=SECURE) is None
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ADDRESS_CLASH: 1}
    assert balancer.connections() == before
    assert balancer.traffic_of_services().keys() == {1}


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("way", ["reset", "silent for hours"])
def test_a_connection_that_is_over_makes_way(balancer: Balancer, way: str) -> None:
    server = At(ONE.address, 8080)
    balancer.ring(1, [1])
    balancer.ring(2, [1])
    goes_to(balancer, "S")
    if way == "reset":
        balancer.send(segment(server, CLIENT, "RA", 0, 0x1001), "back")
    else:
        balancer.table.put(ENDS, Entry(1, ConnectionState.OPEN), IDLE + 1)
    assert goes_to(balancer, "S", to=SECURE) == server
    assert comes_from(balancer, "SA", server) == SECURE


@pytest.mark.usefixtures("twin")
def test_replies_of_a_clients_connections_from_one_port_are_told_apart_by_their_endpoints(balancer: Balancer) -> None:
    for index in range(3, 7):
        balancer.serve(At(VIP, 1000 + index), ring=[index % 2 + 1], index=index)
        assert goes_to(balancer, "S", to=At(VIP, 1000 + index))
    for index in range(3, 7):
        server = At(ENDPOINTS_AT[index % 2 + 1], 1000 + index)
        assert comes_from(balancer, "SA", server) == At(VIP, 1000 + index)
    assert len(balancer.connections()) == 4


# --- endpoints that don't answer ----------------------------------------------------------------------------------
def unanswered(balancer: Balancer, endpoint: int) -> int:
    """How many SYNs for an endpoint were sent again."""
    (value,) = balancer.kernel.lookup(UNANSWERED.name, [UNANSWERED.key.pack(Number(endpoint))])
    return 0 if value is None else UNANSWERED.value.unpack(value)[0]


def test_a_syn_that_is_sent_again_counts_as_unanswered(balancer: Balancer) -> None:
    assert goes_to(balancer, "S") == ONE
    assert unanswered(balancer, 1) == 0
    assert [goes_to(balancer, "S") for _ in range(3)] == [ONE] * 3
    assert (unanswered(balancer, 1), unanswered(balancer, 2)) == (3, 0)


def test_a_connection_that_was_answered_counts_no_syn(balancer: Balancer) -> None:
    establish(balancer)
    assert [goes_to(balancer, flags) for flags in ("S", "A", "FA", "S")] == [ONE] * 4
    assert unanswered(balancer, 1) == 0


def test_a_dead_endpoint_keeps_open_connections_and_gets_no_other_ones(balancer: Balancer) -> None:
    establish(balancer)
    another = At(CLIENT.address, CLIENT.port + 1)
    balancer.ring(1, [1])
    assert goes_to(balancer, "S", another) == ONE
    balancer.ring(1, [2])
    balancer.endpoint(1, state=EndpointRowState.DEAD)
    assert goes_to(balancer, "S", another) == TWO, "nobody has answered it"
    assert (goes_to(balancer, "A"), comes_from(balancer, "A", ONE)) == (ONE, WEB)
