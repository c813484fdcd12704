# SPDX-License-Identifier: Apache-2.0
"""NAT of SCTP: whole frames both ways, its checksum, the life of an association by its tags, and errors about it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, ConnectionState, EndpointRowState, TooBigCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as site
from tests.packets.association import (
    ABORT,
    BY_CLIENT,
    BY_ENDPOINT,
    COOKIE_ACK,
    COOKIE_ECHO,
    DATA,
    HEARTBEAT,
    INIT,
    INIT_ACK,
    KINDS,
    REFLECTED,
    SACK,
    SHUTDOWN,
    SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE,
    Association,
    Said,
    lower,
)
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, VIP, Balancer, Traffic, macs_towards, to_client, to_endpoint
from tests.packets.frames import At, answered, forwarded, frame, padded, sctp, tcp
from tests.packets.table import PLACES, Ends, Entry

pytestmark = pytest.mark.kernel

CALLS = At(VIP, 36_412)
PORT = 5_060
SERVERS = {id: At(ENDPOINTS_AT[id], PORT) for id in (1, 2)}
ONE, TWO = SERVERS.values()
ENDS = Ends(CLIENT, protocol=site.SCTP)
OPENING, IDLE, OVER = 28, 70, 3
"""For how many units an association may be silent."""
MINE, YOURS, NEW, OTHER, FORGED = 0x11111111, 0x22222222, 0x33333333, 0x44444444, 0x55555555
"""Tags: the client's, the endpoint's, those of the same after a restart, and somebody's guess."""
SUM = 14 + 20 + 8
"""Where the checksum lies in a frame."""


@pytest.fixture(autouse=True)
def _calls(balancer: Balancer) -> None:
    """A service whose first new association goes to endpoint 1, the second to endpoint 2, and so on."""
    balancer.endpoint(1)
    balancer.endpoint(2)
    balancer.serve(CALLS, ring=[1, 2], target_port=PORT, protocol=site.SCTP)


def request(said: Said) -> bytes:
    return sctp(CLIENT, CALLS, said.chunks, said.tag)


def reply(said: Said, server: At = ONE) -> bytes:
    return sctp(server, CLIENT, said.chunks, said.tag)


def client(balancer: Balancer, kind: int, tag: int, asks_for: int = 0, flags: int = 0) -> str | None:
    """The endpoint's address that a client's packet is sent to, None if it is sent nowhere."""
    action, out = balancer.send(request(Said(BY_CLIENT, kind, tag, asks_for, flags)))
    return Ether(out)["IP"].dst if action == XdpVerdict.REDIRECT else None


def server(balancer: Balancer, kind: int, tag: int, asks_for: int = 0, flags: int = 0, by: At = ONE) -> bool:
    """Whether an endpoint's packet reaches the client in the name of the VIP."""
    content = reply(Said(BY_ENDPOINT, kind, tag, asks_for, flags), by)
    return balancer.send(content, "back") == (XdpVerdict.REDIRECT, to_client(content, CALLS))


def establish(balancer: Balancer) -> None:
    """The handshake of an association with endpoint 1; the turn is endpoint 2's after it."""
    assert client(balancer, INIT, 0, MINE) == ONE.address
    assert server(balancer, INIT_ACK, MINE, YOURS)
    assert client(balancer, COOKIE_ECHO, YOURS) == ONE.address
    assert server(balancer, COOKIE_ACK, MINE)
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS))


def known(balancer: Balancer) -> tuple[ConnectionState, int, int]:
    """What the table says of the only association: its state, and the tags of client and endpoint."""
    (entry,) = balancer.connections().values()
    return entry.state, entry.client_number, entry.endpoint_number


def state(balancer: Balancer) -> ConnectionState:
    return known(balancer)[0]


# --- frames ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("port", [CALLS.port, PORT], ids=["the same port", "another port"])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 1_400], ids=str)
def test_packets_are_translated_both_ways(balancer: Balancer, length: int, port: int) -> None:
    balancer.serve(CALLS, ring=[1], target_port=port, protocol=site.SCTP)
    there = At(ONE.address, port)
    client(balancer, INIT, 0, MINE)
    body = struct.pack("!BBHIHHI", 0, 3, 16 + length, 1, 0, 0, 0) + (bytes(range(256)) * 6)[:length]
    chunk = Raw(body + bytes(-length % 4))
    content, answer = padded(sctp(CLIENT, CALLS, chunk, YOURS)), padded(sctp(there, CLIENT, chunk, MINE))
    assert balancer.send(content) == (XdpVerdict.REDIRECT, to_endpoint(content, there))
    assert balancer.send(answer, "back") == (XdpVerdict.REDIRECT, to_client(answer, CALLS))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(
    port=st.integers(1, 65_535) | st.sampled_from([0x00FF, 0x0100, 0xFF00, 0xFFFF, CALLS.port]),
    length=st.integers(1, 1_440) | st.sampled_from([3, 4, 227, 228, 229, 243, 244]),
    value=st.integers(0, 255), tag=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_checksum_comes_out_as_if_it_was_computed_anew(
    balancer: Balancer, port: int, length: int, value: int, tag: int
) -> None:
    there = At(ONE.address, port)
    balancer.serve(CALLS, ring=[1], target_port=port, protocol=site.SCTP)
    balancer.send(sctp(CLIENT, CALLS))
    content = sctp(CLIENT, CALLS, Raw(bytes([value]) * length), tag)
    answer = sctp(there, CLIENT, Raw(bytes([value]) * length), tag)
    try:
        assert balancer.send(content).frame == to_endpoint(content, there)
        assert balancer.send(answer, "back").frame == to_client(answer, CALLS)
    finally:
        balancer.table.clear()


@pytest.mark.parametrize("bits", [1, 0x80000000])
def test_a_wrong_checksum_stays_wrong_by_as_much_and_none_stays_none(balancer: Balancer, bits: int) -> None:
    content = request(Said(BY_CLIENT, INIT, 0, MINE))
    right = to_endpoint(content, ONE)

    def with_sum(held: bytes, sum_: int) -> bytes:
        return held[:SUM] + struct.pack("<I", sum_) + held[SUM + 4 :]

    (before,), (after,) = struct.unpack_from("<I", content, SUM), struct.unpack_from("<I", right, SUM)
    assert balancer.send(with_sum(content, before ^ bits)).frame == with_sum(right, after ^ bits)
    assert balancer.send(with_sum(content, 0)).frame == with_sum(right, 0)


def test_traffic_is_counted_as_that_of_connections(balancer: Balancer) -> None:
    establish(balancer)
    assert balancer.traffic_of_services() == {1: Traffic(1, 2, 52 + 44, 2, 52 + 44)}
    assert balancer.verdicts() == {Verdict.REQUEST: 2, Verdict.REPLY: 2}


@pytest.mark.parametrize("ttl", [0, 1])
def test_what_can_go_no_further_is_answered(balancer: Balancer, ttl: int) -> None:
    content = sctp(CLIENT, CALLS, ttl=ttl)
    assert balancer.send(content) == (XdpVerdict.TX, answered(content, ICMP(type=11, code=0), 28))


def test_what_is_too_big_for_its_way_is_answered(balancer: Balancer) -> None:
    establish(balancer)
    big = sctp(CLIENT, CALLS, Raw(bytes(1_500)), YOURS)
    assert balancer.send(big) == (XdpVerdict.TX, answered(big, ICMP(type=3, code=4, nexthopmtu=1500), 504))
    balancer.settings("10.2.0.1", too_big=TooBigCode.DROP)
    assert balancer.send(big).verdict == XdpVerdict.DROP


@pytest.mark.parametrize("length", range(14 + 20, 14 + 20 + 12))
def test_a_packet_that_is_cut_off_is_dropped(balancer: Balancer, length: int) -> None:
    content = sctp(CLIENT, CALLS, len=length - 14)[:length]
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.MALFORMED: 1}
    assert balancer.connections() == {}


@pytest.mark.parametrize("length", range(14 + 20 + 12, 14 + 20 + 12 + 20))
def test_a_packet_whose_chunk_is_cut_off_ends_nothing(balancer: Balancer, length: int) -> None:
    establish(balancer)
    for kind in KINDS:
        content = request(Said(BY_CLIENT, kind, FORGED, FORGED))
        content = sctp(CLIENT, CALLS, Raw(content[14 + 32 : length]), FORGED)
        assert balancer.send(padded(content, 70)).verdict == XdpVerdict.REDIRECT
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS))


# --- the life of an association ----------------------------------------------------------------------------------
def test_an_association_is_open_once_the_client_has_echoed_its_cookie(balancer: Balancer) -> None:
    client(balancer, INIT, 0, MINE)
    assert known(balancer) == (ConnectionState.OPENING, lower(MINE), 0)
    server(balancer, INIT_ACK, MINE, YOURS)
    assert known(balancer) == (ConnectionState.OPENING, lower(MINE), lower(YOURS))
    client(balancer, COOKIE_ECHO, FORGED)
    assert state(balancer) == ConnectionState.OPENING, "whoever saw the INIT-ACK knows the tag"
    client(balancer, COOKIE_ECHO, YOURS)
    assert state(balancer) == ConnectionState.OPEN


def test_an_association_keeps_its_endpoint(balancer: Balancer) -> None:
    establish(balancer)
    balancer.ring(1, [2])
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    for kind in KINDS:
        assert client(balancer, kind, YOURS, NEW) == ONE.address
    assert client(balancer, INIT, 0, MINE) == TWO.address, "the ABORT was one of them"


def test_a_refused_association_is_over_and_the_next_goes_on_in_the_ring(balancer: Balancer) -> None:
    client(balancer, INIT, 0, MINE)
    assert server(balancer, ABORT, MINE)
    assert state(balancer) == ConnectionState.OVER
    assert client(balancer, INIT, 0, NEW) == TWO.address
    assert known(balancer) == (ConnectionState.OPENING, lower(NEW), 0)


@pytest.mark.parametrize("first", [BY_CLIENT, BY_ENDPOINT])
def test_an_association_is_over_once_its_end_is_complete(balancer: Balancer, first: str) -> None:
    establish(balancer)
    tags = {BY_CLIENT: YOURS, BY_ENDPOINT: MINE}
    other = BY_ENDPOINT if first == BY_CLIENT else BY_CLIENT

    def says(by: str, kind: int) -> None:
        assert (client if by == BY_CLIENT else server)(balancer, kind, tags[by])

    says(first, SHUTDOWN)
    closed = ConnectionState.CLIENT_CLOSED if first == BY_CLIENT else ConnectionState.ENDPOINT_CLOSED
    assert state(balancer) == closed
    says(other, DATA)
    says(other, SHUTDOWN_ACK)
    assert state(balancer) == closed
    says(first, SHUTDOWN_COMPLETE)
    assert state(balancer) == ConnectionState.OVER
    says(other, SHUTDOWN_ACK)
    assert state(balancer) == ConnectionState.OVER
    assert client(balancer, INIT, 0, NEW) == TWO.address


FORGERIES = [(kind, tag, flags) for kind in KINDS for tag, flags in ((FORGED, 0), (0, 0), (FORGED, REFLECTED))]
FORGERIES += [(ABORT, YOURS, REFLECTED), (SHUTDOWN_COMPLETE, YOURS, REFLECTED)]


@pytest.mark.parametrize(("kind", "tag", "flags"), FORGERIES)
def test_a_forged_packet_goes_to_its_endpoint_and_changes_nothing(
    balancer: Balancer, kind: int, tag: int, flags: int
) -> None:
    establish(balancer)
    balancer.table.rest(IDLE // 2)
    assert client(balancer, kind, tag, FORGED, flags) == ONE.address
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS))
    assert balancer.table.silence(ENDS) >= IDLE // 2
    assert client(balancer, HEARTBEAT, YOURS) == ONE.address
    assert balancer.table.silence(ENDS) < 2


def test_an_abort_with_the_tag_of_its_sender_ends_what_the_sender_has_lost(balancer: Balancer) -> None:
    """RFC 9260, section 8.4: an endpoint that was started anew answers what it knows nothing of."""
    establish(balancer)
    assert server(balancer, ABORT, MINE, flags=REFLECTED)
    assert state(balancer) == ConnectionState.OPEN, "with the tag of its receiver it is forged"
    assert server(balancer, ABORT, YOURS, flags=REFLECTED)
    assert state(balancer) == ConnectionState.OVER
    assert client(balancer, INIT, 0, NEW) == TWO.address


def test_an_end_that_others_packets_outlive_was_forged(balancer: Balancer) -> None:
    establish(balancer)
    client(balancer, ABORT, YOURS)
    client(balancer, DATA, YOURS)
    assert state(balancer) == ConnectionState.OVER
    balancer.table.rest(2)
    server(balancer, SACK, MINE)
    assert state(balancer) == ConnectionState.OPEN


@pytest.mark.parametrize(
    ("is_open", "silence", "to"),
    [(False, OPENING - 1, ONE), (False, OPENING + 1, TWO), (True, IDLE - 1, ONE), (True, IDLE + 1, TWO)],
)
def test_an_association_ends_by_silence(balancer: Balancer, is_open: bool, silence: int, to: At) -> None:
    if is_open:
        establish(balancer)
    else:
        client(balancer, INIT, 0, MINE)
    balancer.table.rest(silence)
    assert client(balancer, INIT, 0, NEW) == to.address


def test_a_service_may_say_how_long_an_association_may_be_silent(balancer: Balancer) -> None:
    establish(balancer)
    balancer.front(1, CALLS, PORT, site.SCTP, idle=100)
    balancer.table.rest(99)
    assert client(balancer, INIT, 0, NEW) == ONE.address
    balancer.table.rest(2)
    assert client(balancer, INIT, 0, NEW) == TWO.address


# --- restarts ----------------------------------------------------------------------------------------------------
def test_a_client_that_was_started_anew_begins_at_the_same_endpoint(balancer: Balancer) -> None:
    """Which still has the association: RFC 9260, section 5.2.2."""
    establish(balancer)
    assert client(balancer, INIT, 0, NEW) == ONE.address
    assert server(balancer, INIT_ACK, NEW, OTHER)
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS)), "the INIT may be forged"
    assert client(balancer, COOKIE_ECHO, OTHER) == ONE.address
    assert server(balancer, COOKIE_ACK, NEW)
    assert client(balancer, DATA, OTHER) == ONE.address
    assert known(balancer) == (ConnectionState.OPEN, lower(NEW), lower(OTHER))
    client(balancer, ABORT, YOURS)
    assert state(balancer) == ConnectionState.OPEN
    client(balancer, ABORT, OTHER)
    assert state(balancer) == ConnectionState.OVER


def test_an_endpoint_that_was_started_anew_may_begin(balancer: Balancer) -> None:
    establish(balancer)
    assert server(balancer, INIT, 0, OTHER)
    assert client(balancer, INIT_ACK, OTHER, NEW) == ONE.address
    assert server(balancer, COOKIE_ECHO, NEW)
    assert client(balancer, COOKIE_ACK, OTHER) == ONE.address
    assert known(balancer) == (ConnectionState.OPEN, lower(NEW), lower(OTHER))


def test_an_endpoint_may_begin_where_an_association_is_over(balancer: Balancer) -> None:
    establish(balancer)
    assert server(balancer, ABORT, MINE)
    assert server(balancer, INIT, 0, OTHER)
    assert known(balancer) == (ConnectionState.OPENING, 0, lower(OTHER))
    assert client(balancer, INIT_ACK, FORGED, FORGED) == ONE.address
    assert known(balancer) == (ConnectionState.OPENING, 0, lower(OTHER))
    assert client(balancer, INIT_ACK, OTHER, NEW) == ONE.address
    assert server(balancer, COOKIE_ECHO, NEW)
    assert known(balancer) == (ConnectionState.OPEN, lower(NEW), lower(OTHER))


def test_after_its_end_a_client_may_talk_to_the_endpoint_directly(balancer: Balancer) -> None:
    establish(balancer)
    client(balancer, ABORT, YOURS)
    answer = reply(Said(BY_ENDPOINT, INIT_ACK, NEW, OTHER))
    assert balancer.send(answer, "back") == (XdpVerdict.PASS, answer)
    assert balancer.connections() == {}


def test_a_forged_init_meanwhile_does_not_keep_the_client_from_beginning(balancer: Balancer) -> None:
    client(balancer, INIT, 0, MINE)
    server(balancer, INIT_ACK, MINE, YOURS)
    client(balancer, INIT, 0, FORGED)
    server(balancer, INIT_ACK, FORGED, OTHER)
    client(balancer, COOKIE_ECHO, YOURS)
    assert server(balancer, COOKIE_ACK, MINE)
    client(balancer, DATA, YOURS)
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS))


@pytest.mark.parametrize("is_open", [False, True])
def test_an_init_leaves_a_dead_endpoint(balancer: Balancer, is_open: bool) -> None:
    """Nobody tells the client of an open association that its endpoint is dead."""
    if is_open:
        establish(balancer)
    else:
        client(balancer, INIT, 0, MINE)
    balancer.endpoint(1, state=EndpointRowState.DEAD)
    assert client(balancer, DATA, YOURS) == ONE.address
    assert client(balancer, INIT, 0, NEW) == TWO.address


def test_a_disabled_endpoint_loses_its_associations_both_ways(balancer: Balancer) -> None:
    establish(balancer)
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    content = request(Said(BY_CLIENT, DATA, YOURS))
    assert balancer.send(content) == (XdpVerdict.PASS, content)
    assert balancer.verdicts()[Verdict.CONNECTION_UNKNOWN] == 1
    assert client(balancer, INIT, 0, NEW) == TWO.address


# --- packets of associations that nobody knows ---------------------------------------------------------------------
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != INIT])
def test_an_unknown_association_is_no_endpoints_unless_there_is_a_hash(balancer: Balancer, kind: int) -> None:
    content = request(Said(BY_CLIENT, kind, YOURS))
    assert balancer.send(content) == (XdpVerdict.PASS, content)
    assert balancer.verdicts() == {Verdict.CONNECTION_UNKNOWN: 1}
    balancer.serve(CALLS, ring=[1], target_port=PORT, protocol=site.SCTP, algorithm=AlgorithmCode.MAGLEV)
    assert client(balancer, kind, YOURS) == ONE.address
    over = kind in (ABORT, SHUTDOWN_COMPLETE)
    assert state(balancer) == (ConnectionState.OVER if over else ConnectionState.OPENING)


def test_with_a_hash_an_association_survives_the_loss_of_the_table(balancer: Balancer) -> None:
    balancer.serve(CALLS, ring=[1], target_port=PORT, protocol=site.SCTP, algorithm=AlgorithmCode.MAGLEV)
    establish(balancer)
    balancer.table.clear()
    for _ in range(2):
        assert client(balancer, DATA, YOURS) == ONE.address
        assert state(balancer) == ConnectionState.OPENING, "anybody may say that there is one"
    assert server(balancer, SACK, MINE)
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS))


def test_packets_to_the_client_of_no_association_are_left_alone(balancer: Balancer) -> None:
    establish(balancer)
    for server_ in (TWO, At(ONE.address, PORT + 1)):
        content = reply(Said(BY_ENDPOINT, DATA, MINE), server_)
        assert balancer.send(content, "back") == (XdpVerdict.PASS, content)


def test_tcp_and_sctp_of_the_same_addresses_and_ports_are_apart(balancer: Balancer) -> None:
    balancer.serve(CALLS, ring=[2], target_port=PORT, index=2)
    establish(balancer)
    segment, answer = tcp(CLIENT, CALLS), tcp(TWO, CLIENT, "SA")
    assert balancer.send(segment).frame == to_endpoint(segment, TWO)
    assert balancer.send(answer, "back").frame == to_client(answer, CALLS)
    stray = reply(Said(BY_ENDPOINT, DATA, MINE), TWO)
    assert balancer.send(stray, "back") == (XdpVerdict.PASS, stray)
    assert balancer.connections().keys() == {ENDS, Ends(CLIENT, 2)}


@pytest.mark.parametrize(("silence", "is_full"), [(IDLE - 1, True), (IDLE + 1, False)])
@pytest.mark.parametrize("by", [sctp, tcp])
def test_open_associations_keep_their_places_from_new_connections_of_any_protocol(
    balancer: Balancer, by: Callable[[At, At], bytes], silence: int, is_full: bool
) -> None:
    balancer.serve(CALLS, ring=[2], target_port=PORT, index=2)
    ends = ENDS if by is sctp else Ends(CLIENT, 2)
    for bucket in set(balancer.table.buckets_of(ends)):
        for place in range(PLACES):
            other = Ends(At("10.9.0.1", 1 + PLACES * bucket + place), protocol=site.SCTP)
            balancer.table.put_at(bucket, place, other, Entry(1, ConnectionState.OPEN), silence)
    assert balancer.send(by(CLIENT, CALLS)).verdict == (XdpVerdict.DROP if is_full else XdpVerdict.REDIRECT)
    assert balancer.verdicts() == {Verdict.TABLE_FULL if is_full else Verdict.REQUEST: 1}


# --- any order of packets ------------------------------------------------------------------------------------------
_TAGS = st.sampled_from([MINE, YOURS, NEW, OTHER, FORGED, 0x22220000, 0x11110000])


@st.composite
def _said(draw: st.DrawFn) -> Said:
    by = draw(st.sampled_from([BY_CLIENT, BY_ENDPOINT]))
    kind = draw(st.sampled_from(KINDS) | st.sampled_from([INIT, INIT_ACK, COOKIE_ECHO, COOKIE_ACK]))
    flags = draw(st.sampled_from([0, 0, REFLECTED]))
    return Said(by, kind, draw(_TAGS), draw(_TAGS) if kind in (INIT, INIT_ACK) else 0, flags)


_HANDSHAKE = (
    Said(BY_CLIENT, INIT, 0, MINE), Said(BY_ENDPOINT, INIT_ACK, MINE, YOURS), Said(BY_CLIENT, COOKIE_ECHO, YOURS),
    Said(BY_ENDPOINT, COOKIE_ACK, MINE),
)  # fmt: skip


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(begun=st.integers(0, 4), spoken=st.lists(_said(), max_size=12))
def test_whatever_is_said_frames_and_table_are_as_the_model_has_them(
    balancer: Balancer, begun: int, spoken: list[Said]
) -> None:
    balancer.turn(1, 0)
    turns, association = 0, None
    try:
        for said in (*_HANDSHAKE[:begun], *spoken):
            is_over = association is not None and association.state == ConnectionState.OVER
            here = SERVERS[2 - turns % 2]
            if said.by == BY_CLIENT:
                content = request(said)
                if said.kind == INIT and (association is None or is_over):
                    turns, association = turns + 1, Association.first(said)
                    here = SERVERS[2 - turns % 2]
                elif association is not None:
                    association.hear(said)
                expected = to_endpoint(content, here) if association else content
                assert balancer.send(content).frame == expected
            else:
                content = reply(said, here)
                if is_over and said.kind == INIT_ACK:
                    association = None
                elif association is not None:
                    association.hear(said)
                assert balancer.send(content, "back").frame == (to_client(content, CALLS) if association else content)
            if association is None:
                assert balancer.connections() == {}
                continue
            tags = lower(association.tags[BY_CLIENT]), lower(association.tags[BY_ENDPOINT])
            assert known(balancer) == (association.state, *tags), said
    finally:
        balancer.table.clear()


# --- errors --------------------------------------------------------------------------------------------------------
ERRORS = {"port unreachable": ICMP(type=3, code=3), "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1300)}
SOME = 0x12345678
"""A checksum that is not right."""


def quoted(source: At, destination: At, checksum: int | None = None, **ip: object) -> Packet:
    """What one of the three sees of a packet of the association; without `checksum` the right one."""
    return IP(src=source.address, dst=destination.address, ttl=60, id=77, proto=132, **ip) / SCTP(
        sport=source.port, dport=destination.port, tag=YOURS, chksum=checksum
    ) / Raw(bytes(range(256)) * 5)  # fmt: skip


def both_see(balancer: Balancer, about: Callable[[At, At], bytes], kind: Packet = ERRORS["port unreachable"]) -> None:
    """AssertionError where errors don't quote to each side what it sent. `about`: what one side sees of a packet."""
    establish(balancer)
    before = balancer.verdicts()

    def error(source: str, to: str, quote: bytes) -> bytes:
        return padded(frame(source, to, kind / Raw(quote)))

    content = error(ONE.address, CLIENT.address, about(CLIENT, ONE))
    meant = error(VIP, CLIENT.address, about(CLIENT, CALLS))
    assert balancer.send(content, "back") == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(CLIENT.address)))
    content = error("198.51.100.1", VIP, about(CALLS, CLIENT))
    meant = error("198.51.100.1", ONE.address, about(ONE, CLIENT))
    assert balancer.send(content) == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(ONE.address)))
    assert balancer.verdicts() == before | {Verdict.ERROR_RELAYED: 1, Verdict.ICMP_ERROR: 1}
    assert known(balancer) == (ConnectionState.OPEN, lower(MINE), lower(YOURS))


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("length", [32, 33, 548])
def test_an_error_quotes_to_each_side_the_very_packet_that_it_sent(
    balancer: Balancer, length: int, kind: Packet
) -> None:
    """The checksum is over all of the packet, of which only the beginning is quoted."""
    both_see(balancer, lambda *ends: bytes(quoted(*ends))[:length], kind)


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("length", [28, 29, 31])
def test_an_error_whose_quote_ends_before_the_checksum_reaches_who_sent_the_packet(
    balancer: Balancer, length: int, kind: Packet
) -> None:
    """What there is of the checksum stays as it was."""
    both_see(balancer, lambda *ends: bytes(quoted(*ends, SOME))[:length], kind)


@pytest.mark.parametrize(
    ("checksum", "ip"), [(SOME, {"flags": "MF"}), (SOME, {"len": 0}), (0, {})],
    ids=["a fragment", "no length", "none was made"],
)  # fmt: skip
def test_a_quoted_checksum_that_nobody_can_tell_stays(
    balancer: Balancer, checksum: int, ip: dict[str, object]
) -> None:
    both_see(balancer, lambda *ends: bytes(quoted(*ends, checksum, **ip))[:548])
