# SPDX-License-Identifier: Apache-2.0
"""NAT's table of connections: generated lives of connections against a model, and what happens when it fills up."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import ConnectionState, Verdict
from reconciler.kernel.bpf import XdpVerdict
from reconciler.limits import Sizes
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, WEB, Balancer, loaded_balancer
from tests.packets.frames import ETHERNET, At, tcp
from tests.packets.table import PLACES, TCP, UDP, Ends, Entry

pytestmark = pytest.mark.kernel

FEATURES = ("NAT", "UDP", "ROUND_ROBIN")
ENDS = Ends(CLIENT)
OPENING, OPEN, CLIENT_CLOSED, ENDPOINT_CLOSED, OVER = ConnectionState
LIMITS = {
    (TCP, OPENING): 28, (TCP, OPEN): 867, (TCP, CLIENT_CLOSED): 28, (TCP, ENDPOINT_CLOSED): 28, (TCP, OVER): 3,
    (UDP, OPENING): 4, (UDP, OPEN): 14,
}  # fmt: skip
"""For how many units a connection may be silent."""
SYN = tcp(CLIENT, WEB)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """A program whose table has 63 buckets."""
    with loaded_balancer(tmp_path_factory.mktemp("lbq-run"), f"lbq-{os.getpid()}", FEATURES, Sizes(flows=100)) as made:
        yield made


@pytest.fixture
def balancer(node: Balancer) -> Iterator[Balancer]:
    """With a service whose endpoints take turns."""
    node.endpoint(1)
    node.endpoint(2)
    node.serve(ring=[1, 2])
    node.turn(1, 0)
    yield node
    node.table.clear()


# --- the life of a connection, against a model -------------------------------------------------------------------
@dataclass
class Model:
    """What the table should know of one client, and whose turn it is."""

    turns: int = 0
    endpoint: int = 0
    state: ConnectionState | None = None
    silence: int = 0

    def rest(self, units: int) -> None:
        self.silence += units
        if self.state is not None and self.silence > LIMITS[TCP, self.state]:
            self.state = None

    def packet(self, by: str, flags: str) -> int | None:
        """The endpoint that a packet goes to or comes from; None if it belongs to no connection."""
        if by == "client" and flags == "S" and self.state in (None, OVER):
            self.turns += 1
            self.endpoint, self.state, self.silence = (1, 2)[(self.turns - 1) % 2], OPENING, 0
            return self.endpoint
        if self.state is None:
            return None
        if by == "endpoint" and flags == "SA" and self.state is OVER:
            self.state = None
            return None
        former = self.state
        self.state = self._after(by, flags)
        if (former, self.state) != (OVER, OVER) or flags in ("FA", "R"):
            self.silence = 0
        return self.endpoint

    def _after(self, by: str, flags: str) -> ConnectionState:
        assert self.state is not None
        own, other = (CLIENT_CLOSED, ENDPOINT_CLOSED) if by == "client" else (ENDPOINT_CLOSED, CLIENT_CLOSED)
        if flags == "R" or (flags == "FA" and self.state in (other, OVER)):
            return OVER
        if flags == "FA":
            return own
        if self.state is OVER:
            return OPEN if self.silence >= 2 else OVER
        if by == "client" and flags == "S":
            return OPENING if self.state in (CLIENT_CLOSED, ENDPOINT_CLOSED) else self.state
        return OPEN if by == "client" and self.state is OPENING else self.state


EVENTS = st.one_of(
    st.tuples(st.just("client"), st.sampled_from(["S", "A", "PA", "FA", "R"])),
    st.tuples(st.just("endpoint"), st.sampled_from(["SA", "A", "PA", "FA", "R"])),
    st.tuples(st.just("rest"), st.sampled_from([2, 40, 900])),
)
"""Rests are such that it doesn't matter if a unit ends in the middle of the test."""


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(events=st.lists(EVENTS, min_size=3, max_size=12))
def test_any_life_of_a_connection_goes_as_in_the_model(
    balancer: Balancer, events: list[tuple[str, str | int]]
) -> None:
    balancer.table.clear()
    balancer.turn(1, 0)
    model = Model()
    for by, what in events:
        if isinstance(what, int):
            balancer.table.rest(what)
            model.rest(what)
            continue
        server = At(ENDPOINTS_AT[model.endpoint or 1], 80)
        content = tcp(CLIENT, WEB, what) if by == "client" else tcp(server, CLIENT, what)
        expected = model.packet(by, what)
        action, out = balancer.send(content, "front" if by == "client" else "back")
        if expected is None:
            assert (action, out) == (XdpVerdict.PASS, content)
            assert model.state is not None or balancer.connections().keys() <= {ENDS}
            continue
        assert action == XdpVerdict.REDIRECT
        ip = Ether(out)["IP"]
        assert (ip.dst if by == "client" else ip.src) == (ENDPOINTS_AT[expected] if by == "client" else WEB.address)
        assert balancer.connections() == {ENDS: Entry(expected, model.state or OPENING)}


# --- which place a new connection gets ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Tenant:
    """Who has a place already."""

    protocol: int
    state: ConnectionState
    silence: int

    @property
    def is_due(self) -> bool:
        return self.silence > LIMITS[self.protocol, self.state]

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: the lowest."""
        return {OVER: 1, OPENING: 2, CLIENT_CLOSED: 3, ENDPOINT_CLOSED: 3, OPEN: 4}[self.state], -self.silence


@st.composite
def tenants(draw: st.DrawFn) -> Tenant | None:
    kind = draw(st.sampled_from([None, *LIMITS]))
    if kind is None:
        return None
    limit = LIMITS[kind]
    # Far enough from the limit, and from each other: a unit may end while a test writes them.
    silence = draw(st.sampled_from([0, limit // 2, limit - 1, limit + 3, limit + 90]))
    return Tenant(*kind, silence)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(places=st.lists(tenants(), min_size=2 * PLACES, max_size=2 * PLACES), is_full=st.booleans())
def test_a_new_connection_takes_a_free_place_or_that_of_the_least_worth_and_never_that_of_an_open_one(
    balancer: Balancer, places: list[Tenant | None], is_full: bool
) -> None:
    table = balancer.table
    table.clear()
    if is_full:  # else one is nearly always free
        places = [tenant if tenant and not tenant.is_due else Tenant(TCP, OPEN, 5) for tenant in places]
    client = next(
        client for port in itertools.count(40_000)
        if len(set(table.buckets_of(Ends(client := At(CLIENT.address, port))))) == 2
    )  # fmt: skip
    first, second = table.buckets_of(Ends(client))
    for number, tenant in enumerate(places):
        if tenant:
            others = Ends(At("192.0.2.1", 1 + number), 1, tenant.protocol)
            bucket = second if number >= PLACES else first
            table.put_at(bucket, number % PLACES, others, Entry(1, tenant.state), tenant.silence)
    free = [tenant is None or (tenant.is_due and tenant.state is not OPEN) for tenant in places]
    taken = [free[:PLACES].count(False), free[PLACES:].count(False)]
    prefers_second = taken[0] >= 2 and taken[1] < taken[0]
    held = [tenant for tenant in places if tenant]
    if any(free):
        allowed = {number for number in range(8) if free[number] and (number >= PLACES) == prefers_second}
    elif any(tenant.state is not OPEN for tenant in held):
        least = min(tenant.rank for tenant in held)
        allowed = {number for number, tenant in enumerate(held) if tenant.rank == least}
    else:
        allowed = {number for number, tenant in enumerate(held) if tenant.is_due}

    refused = balancer.verdicts().get(Verdict.TABLE_FULL, 0)
    action, _ = balancer.send(tcp(client, WEB))
    whos = [int(who) for bucket in (first, second) for who in table.words()[bucket, :PLACES]]
    mine = [number for number, who in enumerate(whos) if who >> 14 == Ends(client).key >> 14]
    if allowed:
        assert action == XdpVerdict.REDIRECT
        assert len(mine) == 1 and mine[0] in allowed
    else:
        assert (action, mine) == (XdpVerdict.DROP, [])
        assert balancer.verdicts()[Verdict.TABLE_FULL] == refused + 1


def from_port(content: bytes, address: str, port: int) -> bytes:
    """The frame with another source. The program looks at no checksum."""
    ip, ports = ETHERNET + 12, ETHERNET + 20
    head = content[:ip] + socket.inet_aton(address) + content[ip + 4 : ports]
    return head + struct.pack(">H", port) + content[ports + 2 :]


def test_a_flood_of_ten_times_the_tables_size_breaks_no_open_connection(balancer: Balancer) -> None:
    """Thirty connections find their places for sure: one would be refused only if eight others had both of its two
    buckets, of 63. The odds are below 1e-7."""
    clients = [At(f"10.1.0.{number}", 1000 + number) for number in range(100, 130)]
    for client in clients:
        for flags in ("S", "A"):
            assert balancer.send(tcp(client, WEB, flags)).verdict == XdpVerdict.REDIRECT
    before = balancer.connections()
    assert {entry.state for entry in before.values()} == {OPEN}
    size = balancer.table.buckets * PLACES
    for number in range(10 * size):
        balancer.send(from_port(SYN, f"198.51.{number >> 8 & 0xFF}.{number & 0xFF}", 1024 + number % 60_000))
    after = balancer.connections()
    assert len(after) > size // 2, "the flood has filled the table"
    assert {ends: after[ends] for ends in before if ends in after} == before
    for client in clients:
        action, out = balancer.send(tcp(client, WEB, "PA"))
        assert action == XdpVerdict.REDIRECT
        assert Ether(out)["IP"].dst == ENDPOINTS_AT[before[Ends(client)].endpoint]


def test_a_full_table_refuses_new_connections_until_an_open_one_was_silent_for_too_long(balancer: Balancer) -> None:
    for bucket in range(balancer.table.buckets):
        for place in range(PLACES):
            balancer.table.put_at(bucket, place, Ends(At("192.0.2.1", 1 + place)), Entry(1, OPEN), 800)
    before = balancer.table.words().copy()
    refused = balancer.verdicts().get(Verdict.TABLE_FULL, 0)
    assert balancer.send(SYN) == (XdpVerdict.DROP, SYN)
    assert balancer.verdicts()[Verdict.TABLE_FULL] == refused + 1
    assert (balancer.table.words() == before).all()
    balancer.front(1, WEB, idle=100)
    assert balancer.send(SYN).verdict == XdpVerdict.REDIRECT
