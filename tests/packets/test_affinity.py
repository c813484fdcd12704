# SPDX-License-Identifier: Apache-2.0
"""Affinity: who opens another connection gets the endpoint that it had, for as long as it may be had."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import BOUND, AlgorithmCode, EndpointRowState, ModeCode
from reconciler.dataplane.slots import Words
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import ENDPOINTS6_AT, ENDPOINTS_AT, TCP, UDP, WEB, Balancer
from tests.packets.frames import At, tcp, tcp6, udp, udp6

pytestmark = pytest.mark.kernel

SOURCE = "10.2.0.201"
WEB6 = At("2001:db8:20::1", 80)
OTHER, OTHER6 = At(WEB.address, 443), At(WEB6.address, 443)
FRAMES = {(4, TCP): tcp, (4, UDP): udp, (6, TCP): tcp6, (6, UDP): udp6}
IDS = {address: id for id, address in (ENDPOINTS_AT | ENDPOINTS6_AT).items()}
TIMEOUT_S = 600
PATIENCE = TIMEOUT_S * 10**9 >> 32
"""Of the program, in its units: 4.3 seconds, and it may be a unit more."""
SPARE = 40
"""Units that a test may take."""


@dataclass
class Site:
    """A service with affinity in a mode, for one version of IP and one protocol."""

    balancer: Balancer
    mode: ModeCode
    version: int
    protocol: int
    ports: Iterator[int] = field(default_factory=lambda: iter(range(20_000, 60_000)))

    @property
    def web(self) -> At:
        return WEB if self.version == 4 else WEB6

    @property
    def ids(self) -> list[int]:
        return [1, 2, 3] if self.version == 4 else [5, 6, 7]

    def serve(
        self, at: At | None = None, *, index: int = 1, algorithm: AlgorithmCode = AlgorithmCode.ROUND_ROBIN,
        affinity_s: int = TIMEOUT_S, ring: int = 1,
    ) -> None:  # fmt: skip
        """A service; the ring has the same members as affinity."""
        at = at or self.web
        self.balancer.sources(SOURCE)
        self.balancer.vip(at.address)
        for id in self.ids:
            self.balancer.endpoint(id)
        self.pool(self.ids, ring)
        self.balancer.service(
            at, index=index, target_port=0, algorithm=algorithm, mode=self.mode, protocol=self.protocol, ring=ring
        )
        self.balancer.front(index, at, protocol=self.protocol, affinity_s=affinity_s)

    def pool(self, ids: list[int], ring: int = 1, number: int = 77) -> None:
        self.balancer.ring(ring, ids)
        self.balancer.members(ring, ids, number)

    def client(self, number: int) -> str:
        return f"198.51.{number // 250}.{number % 250 + 1}" if self.version == 4 else f"2001:db8:77::{number + 1:x}"

    def opens(self, number: int, to: At | None = None) -> int:
        """The endpoint of a new connection of a client, which comes from another port each time."""
        source = At(self.client(number), next(self.ports))
        action, out = self.balancer.send(FRAMES[self.version, self.protocol](source, to or self.web))
        assert action == XdpVerdict.REDIRECT
        return IDS[Ether(out)["IP" if self.version == 4 else "IPv6"].dst]

    def several(self, number: int) -> set[int]:
        return {self.opens(number) for _ in range(4)}

    def words(self) -> Words:
        words = self.balancer.kernel.words(BOUND.name)
        assert words is not None
        return words

    def rest(self, units: int) -> None:
        """Let all clients open nothing for so much longer."""
        words = self.words()
        held = words != 0
        seen = (words & np.uint64(0x7FFF)) - np.uint64(units) & np.uint64(0x7FFF)
        words[held] = (words >> np.uint64(15) << np.uint64(15) | seen)[held]


WAYS = [
    (ModeCode.NAT, 4, TCP), (ModeCode.NAT, 4, UDP), (ModeCode.NAT, 6, TCP), (ModeCode.NAT, 6, UDP),
    (ModeCode.FULLNAT, 4, TCP), (ModeCode.FULLNAT, 4, UDP),
]  # fmt: skip


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0].name.lower()}-{way[1]}-{way[2]}")
def site(request: pytest.FixtureRequest, balancer: Balancer) -> Site:
    return Site(balancer, *request.param)


def test_a_client_keeps_its_endpoint_and_others_get_the_next_ones(site: Site) -> None:
    site.serve()
    first = [site.opens(number) for number in range(6)]
    assert first == site.ids * 2, "new clients take turns"
    for number in (5, 3, 1, 0, 2, 4):
        assert site.several(number) == {first[number]}


def test_without_affinity_everybody_takes_turns(site: Site) -> None:
    site.serve(affinity_s=0)
    assert site.several(0) == set(site.ids)
    assert not site.words().any()


@pytest.mark.parametrize("state", [EndpointRowState.DISABLED, EndpointRowState.DEAD, EndpointRowState.RETIRED])
def test_an_endpoint_that_gets_no_new_connections_keeps_no_client(site: Site, state: EndpointRowState) -> None:
    """Though the ring still names it, for the moment in which it is written."""
    site.serve()
    had = site.opens(0)
    site.balancer.endpoint(had, state=state)
    got = site.several(0)
    assert len(got) == 1
    assert had not in got
    site.balancer.endpoint(had)
    assert site.several(0) == got


def test_an_endpoint_that_left_the_ring_keeps_no_client_though_another_pool_has_it(site: Site) -> None:
    site.serve()
    had = site.opens(0)
    site.pool([id for id in site.ids if id != had])
    got = site.several(0)
    assert len(got) == 1
    assert had not in got
    site.pool(site.ids)
    assert site.several(0) == got


def test_who_opens_nothing_meanwhile_finds_a_drained_endpoint_again(site: Site) -> None:
    site.serve()
    had = site.opens(0)
    site.pool([id for id in site.ids if id != had])
    site.pool(site.ids)
    assert site.several(0) == {had}


def test_the_time_counts_from_the_last_new_connection(site: Site) -> None:
    site.serve()
    had = site.opens(0)
    for _ in range(3):
        site.rest(PATIENCE - SPARE)
        assert site.opens(0) == had
    site.rest(PATIENCE + 2)
    assert site.opens(0) != had, "the next in turn"


def test_the_clients_of_a_ring_that_is_gone_are_nobody_to_the_next_one_with_its_number(site: Site) -> None:
    site.serve()
    had = site.opens(0)
    site.pool(site.ids, number=78)
    assert site.opens(0) != had, "the next in turn"


def test_services_of_one_pool_have_their_clients_in_common(site: Site) -> None:
    site.serve()
    site.serve(OTHER if site.version == 4 else OTHER6, index=2)
    had = [site.opens(number) for number in range(6)]
    other = OTHER if site.version == 4 else OTHER6
    assert [site.opens(number, other) for number in range(6)] == had


def test_other_pools_know_nothing_of_a_client(site: Site) -> None:
    site.serve()
    other = OTHER if site.version == 4 else OTHER6
    site.serve(other, index=2, ring=2)
    site.balancer.members(2, site.ids, 99)
    had = [site.opens(number) for number in range(3)]
    site.opens(7, other)
    assert [site.opens(number, other) for number in range(3)] == [*had[1:], had[0]], "turns, one ahead"


@pytest.mark.parametrize("algorithm", [AlgorithmCode.SOURCE_HASH, AlgorithmCode.LEAST_CONNECTIONS])
def test_a_client_stays_while_endpoints_come_whatever_the_algorithm(site: Site, algorithm: AlgorithmCode) -> None:
    site.serve(algorithm=algorithm)
    few, all_ = site.ids[:1], site.ids
    site.pool(few)
    assert {site.opens(number) for number in range(20)} == set(few)
    site.pool(all_)
    assert {site.opens(number) for number in range(20)} == set(few)
    assert {site.opens(number) for number in range(20, 80)} == set(all_)


def test_in_any_order_of_events_clients_have_what_a_model_says(site: Site) -> None:
    """Connections, pauses, endpoints that come and go: whoever had an endpoint of the pool within the time has it, and
    anybody else gets one of the pool."""
    chance = random.Random(site.protocol * 10 + site.version)
    site.serve()
    pool, had = set(site.ids), dict[int, tuple[int, int]]()
    now = 0
    for _ in range(400):
        match chance.choices(["open", "rest", "long rest", "pool"], [20, 3, 1, 2])[0]:
            case "open":
                number = chance.randrange(30)
                got = site.opens(number)
                endpoint, seen = had.get(number, (0, 0))
                if endpoint in pool and now - seen <= PATIENCE - SPARE:
                    assert got == endpoint
                if endpoint not in pool or now - seen <= PATIENCE - SPARE or now - seen > PATIENCE + 1:
                    assert got in pool
                had[number] = got, now
            case "rest":
                now += 30
                site.rest(30)
            case "long rest":
                now += PATIENCE + 2
                site.rest(PATIENCE + 2)
            case "pool":
                pool ^= {chance.choice(site.ids)}
                pool = pool or set(site.ids)
                site.pool(sorted(pool))


def test_a_full_line_forgets_who_was_away_the_longest(balancer: Balancer) -> None:
    """And nobody else: the line is that of eight others, of whom one has been away for longer."""
    site = Site(balancer, ModeCode.NAT, 4, TCP)
    site.serve()
    site.opens(0)
    words = site.words().reshape(-1, 8)
    ((line, place),) = np.argwhere(words).tolist()
    own = words[line, place]
    for other in range(8):
        age = np.uint64(50 if other == 3 else other)
        seen = (own - age) & np.uint64(0x7FFF)
        words[line, other] = (own ^ np.uint64(other + 1) << np.uint64(32)) >> np.uint64(15) << np.uint64(15) | seen
    before = words[line].copy()
    site.opens(0)
    changed = np.flatnonzero(words[line] != before).tolist()
    assert changed == [3]
    assert words[line, 3] >> np.uint64(32) == own >> np.uint64(32)


def test_one_connection_that_its_endpoint_can_not_have_costs_a_client_nothing(balancer: Balancer) -> None:
    """From one port a client reaches one VIP, then another one whose pool has the same servers: the second connection
    needs another endpoint, since the replies of both would look alike."""
    site = Site(balancer, ModeCode.NAT, 4, TCP)
    site.serve()
    other = At("20.20.20.2", 80)
    site.serve(other, index=2)
    had = site.opens(0)
    source = At(site.client(0), 50_000)
    to = [IDS[Ether(balancer.send(tcp(source, vip)).frame)["IP"].dst] for vip in (site.web, other)]
    assert to[0] == had
    assert to[1] != had
    assert site.several(0) == {had}
    assert site.opens(0, other) == had
