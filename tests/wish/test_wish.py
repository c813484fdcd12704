# SPDX-License-Identifier: Apache-2.0
"""What a node is to hold once checks and drains are counted in; and that nothing is done twice."""

import json
from dataclasses import replace
from ipaddress import ip_address
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import SnapshotError
from reconciler.health.row import Clocks
from reconciler.health.state import Health, State
from reconciler.health.target import Use
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow, rows_of
from reconciler.kinds.ring import build
from reconciler.model import (
    Algorithm,
    CheckType,
    DeadEndpoint,
    Endpoint,
    EndpointState,
    HealthCheck,
    Interface,
    Mode,
    Node,
    OnUnhealthy,
    Pool,
    Protocol,
    Service,
    WhenNoneHealthy,
)
from reconciler.resource import Reason
from reconciler.snapshot import known_from_json, known_to_json
from reconciler.view import NodeView
from reconciler.wish.drains import Drain, added, ended
from reconciler.wish.known import Known
from reconciler.wish.wish import Wish

CHECK = HealthCheck(CheckType.TCP)
NODE = Node("lb1", (Interface("front"),))
DOWN = State(Health.DOWN, error="refused")


def address(number):
    return ip_address(f"10.2.0.{number}")


def pool(name="web", count=3, **more):
    endpoints = tuple(Endpoint(address(number), 8080) for number in range(1, count + 1))
    return Pool(name, endpoints, **{"health_check": CHECK, **more})


def service(name="web", of="web", port=80):
    return Service(name, (ip_address("20.20.20.1"),), Protocol.TCP, (port,), of)


def view(*pools, services=None):
    services = services or [service()]
    by_name = {each.name: each for each in pools}
    used = {each.pool for each in services}
    return NodeView(
        NODE, tuple(services), {name: by_name[name] for name in used},
        {name: each for name, each in by_name.items() if name not in used},
    )  # fmt: skip


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wish(clock):
    return Wish(Known(changed_s=clock.now_s), clock, clock)


def digests(wish):
    """Of the targets, by address."""
    return {use.address: target.digest for use, target in wish.targets.items()}


def down(wish, *numbers, state=DOWN):
    wish.learn({digests(wish)[address(number)]: state for number in numbers})


def weights(found, name="web"):
    return {e.address.packed[3]: e.weight for e in found.pools[name].endpoints if e.state is EndpointState.ACTIVE}


def test_pools_without_checks_and_drains_are_left_alone(wish):
    plain = view(pool(health_check=HealthCheck()))
    assert wish.of(plain) is plain


def test_a_pool_of_which_nothing_is_known_is_as_the_manifests_say(wish):
    asked = view(pool())
    assert wish.of(asked).pools["web"] is asked.pools["web"]


def test_an_endpoint_that_is_down_gets_nothing_and_keeps_its_row(wish):
    asked = view(pool())
    wish.of(asked)
    down(wish, 2)
    found = wish.of(asked)
    assert weights(found) == {1: 1, 2: 0, 3: 1}
    assert isinstance(found.pools["web"].endpoints[1], DeadEndpoint)
    assert build(found.pools["web"], Algorithm.MAGLEV).dead == (EndpointRow(address(2), 8080),)
    (cause,) = found.causes["web"].values()
    assert (cause.reason, cause.text) == (Reason.HEALTH, "10.2.0.2:8080 is down: tcp check: refused")


def test_what_has_not_changed_is_the_same_object(wish):
    asked = view(pool("web"), pool("mail", health_check=replace(CHECK, port=25)),
                 services=[service(), service("mail", "mail", 25)])  # fmt: skip
    wish.of(asked)
    down(wish, 2)
    first = wish.of(asked)
    wish.learn({digest: state._replace(latency_s=1.0) for digest, state in wish.states.items()})
    second = wish.of(asked)
    assert all(first.pools[name] is second.pools[name] for name in ("web", "mail"))


def test_one_target_for_all_pools_that_ask_the_same(wish):
    services = [service(f"s{i}", "web", 1000 + i) for i in range(50)]
    wish.of(view(pool(count=1), pool("more", 1), services=[*services, service("more", "more")]))
    assert len(set(wish.targets.values())) == 1
    assert [used.name for used, _, _ in wish.uses_of(wish.states)] == ["more", "web"]


def test_nobody_healthy_means_all_unless_the_pool_says_otherwise(wish):
    asked = view(pool())
    wish.of(asked)
    down(wish, 1, 2, 3)
    assert wish.of(asked).pools["web"] is asked.pools["web"]
    drop = view(pool(when_none_healthy=WhenNoneHealthy.DROP))
    assert weights(wish.of(drop)) == {1: 0, 2: 0, 3: 0}


def test_the_fallback_has_its_rows_all_the_time_and_connections_when_it_is_needed(wish):
    sorry = Pool("sorry", (Endpoint(address(99), 8080), Endpoint(address(98), 8080)))
    asked = view(pool(count=1, when_none_healthy=WhenNoneHealthy.FALLBACK, fallback_pool="sorry"), sorry)
    assert weights(wish.of(asked)) == {1: 1, 98: 0, 99: 0}
    down(wish, 1)
    assert weights(wish.of(asked)) == {1: 0, 98: 1, 99: 1}


def test_below_min_healthy_it_is_as_if_nobody_were(wish):
    asked = view(pool(min_healthy=2, when_none_healthy=WhenNoneHealthy.DROP))
    wish.of(asked)
    down(wish, 1)
    assert weights(wish.of(asked)) == {1: 0, 2: 1, 3: 1}
    down(wish, 2)
    assert weights(wish.of(asked)) == {1: 0, 2: 0, 3: 0}


def test_a_newcomer_waits_for_its_first_answer_and_an_edited_check_for_nothing(wish, clock):
    first = view(pool(count=2))
    wish.of(first)
    down(wish, 1, state=State(Health.UP, clock.now_s))
    down(wish, 2)
    clock.now_s += 5
    second = view(pool(count=3, health_check=replace(CHECK, timeout_s=0.5)))
    found = wish.of(second)
    assert weights(found) == {1: 1, 2: 0, 3: 0}
    edits = wish.take_edits()
    assert {use.address for use in edits.targets} == {address(number) for number in (1, 2, 3)}
    assert {target.check.timeout_s for target in edits.states} == {0.5, 1.0}
    assert len(wish.states) == 3


def test_what_an_earlier_process_knew_counts_also_if_the_check_was_edited(wish, clock):
    asked = view(pool())
    wish.of(asked)
    down(wish, 3)
    former = {use: target.digest for use, target in wish.targets.items()}
    again = Wish(Known(dict(wish.states), former), clock, clock)
    edited = view(pool(health_check=replace(CHECK, fall=7)))
    assert weights(again.of(edited)) == {1: 1, 2: 1, 3: 0}


@pytest.mark.parametrize(
    ("state", "away_s", "expected"),
    [
        (DOWN, 500, Health.DOWN), (DOWN, 700, Health.UNKNOWN), (State(Health.UP, 900.0), 50, Health.UP),
        (State(Health.UP, 900.0), 70, Health.UNKNOWN),
    ],
)  # fmt: skip
def test_an_endpoint_that_leaves_and_returns_is_remembered_for_a_while(wish, clock, state, away_s, expected):
    wish.of(view(pool(count=3)))
    down(wish, 3, state=state)
    wish.of(view(pool(count=2)))
    assert len(wish.states) == 2
    clock.now_s += away_s
    wish.take_edits()
    wish.of(view(pool(count=3)))
    assert wish.states[digests(wish)[address(3)]].health is expected
    assert [found.health for found in wish.take_edits().states.values()] == [expected]


def test_a_server_in_two_pools_with_one_check_is_known_until_both_let_it_go(wish):
    services = [service(), service("more", "more", 81)]
    wish.of(view(pool(), pool("more"), services=services))
    down(wish, 2)
    rest = view(pool(count=1), pool("more"), services=services)
    assert weights(wish.of(rest), "more") == {1: 1, 2: 0, 3: 1}


def test_slow_start_goes_on_by_itself(wish, clock):
    asked = view(pool(slow_start_s=40.0))
    wish.of(asked)
    down(wish, 1, 2, state=State(Health.UP, 0.0))
    down(wish, 3, state=State(Health.UP, clock.now_s, has_returned=True))
    assert weights(wish.of(asked)) == {1: 100, 2: 100, 3: 25}
    assert wish.changes_s == clock.now_s + 10
    clock.now_s += 10
    assert weights(wish.of(asked)) == {1: 100, 2: 100, 3: 50}
    clock.now_s += 30
    assert wish.of(asked).pools["web"] is asked.pools["web"]
    assert wish.changes_s == float("inf")


def test_a_drain_is_about_its_pool_and_ends_by_itself(wish, clock):
    plain = HealthCheck()
    services = [service(), service("more", "more", 81)]
    asked = view(pool(health_check=plain), pool("more", health_check=plain), services=services)
    wish.drain([Drain(address(2), pool="web", began_s=clock.now_s, until_s=clock.now_s + 60, by="ann", reason="disk")])
    found = wish.of(asked)
    assert weights(found) == {1: 1, 3: 1}
    assert found.pools["more"] is asked.pools["more"]
    cause = found.causes["web"]["10.2.0.2:8080"]
    assert (cause.reason, cause.text) == (Reason.DRAIN, "10.2.0.2:8080 is drained by ann: disk")
    assert wish.changes_s == clock.now_s + 60
    clock.now_s += 60
    found = wish.of(asked)
    assert found.pools["web"] is asked.pools["web"]
    assert found.causes["web"]["10.2.0.2:8080"].text == "the drain of 10.2.0.2:8080 is over"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["for", "drain", "undrain", "wait"])), max_size=30))
def test_five_overlapping_drains_and_returns_break_nothing(steps):
    """At each moment just those get nothing who are drained, and in the end all is as the manifests say."""
    clock = Clock()
    wish = Wish(Known(changed_s=clock.now_s), clock, clock)
    asked = view(pool(count=6, health_check=HealthCheck()))
    ends, drains = {}, ()
    for number, step in steps:
        if step == "wait":
            clock.now_s += 10.0
        elif step == "undrain":
            drains = ended(drains, "web", address(number), None, clock.now_s)
            ends[number] = clock.now_s
        else:
            ends[number] = clock.now_s + 15.0 if step == "for" else inf
            until_s = None if step == "drain" else ends[number]
            drains = added(drains, [Drain(address(number), None, "web", clock.now_s, until_s)], clock.now_s)
        wish.drain(drains)
        drained = {number for number, end_s in ends.items() if clock.now_s < end_s}
        found = wish.of(asked).pools["web"]
        assert {e.address.packed[3] for e in found.endpoints if e.state is EndpointState.DRAINING} == drained
        assert build(found, Algorithm.MAGLEV).members == tuple(
            f"10.2.0.{number}:8080" for number in range(1, 7) if number not in drained
        )
    for number in range(1, 6):
        drains = ended(drains, None, address(number), None, clock.now_s)
    wish.drain(drains)
    assert wish.of(asked).pools["web"] is asked.pools["web"]


def test_at_its_deadline_a_drain_ends_connections(wish, clock):
    asked = view(pool(health_check=HealthCheck()))
    wish.drain([Drain(address(1), began_s=clock.now_s, deadline_s=clock.now_s + 5)])
    assert wish.of(asked).pools["web"].endpoints[0].state is EndpointState.DRAINING
    clock.now_s += 5
    assert wish.of(asked).pools["web"].endpoints[0].state is EndpointState.DISABLED


def test_who_came_back_before_the_last_change_is_no_cause_of_a_later_one(wish, clock):
    asked = view(pool())
    wish.of(asked)
    down(wish, 1, state=State(Health.UP, clock.now_s + 1, has_returned=True))
    assert wish.of(asked).causes["web"]["10.2.0.1:8080"].text == "10.2.0.1:8080 is up again"
    wish.were_heeded()
    assert wish.of(asked).causes["web"] == {}


def test_who_came_back_is_no_cause_of_the_next_edit_however_soon_that_follows(wish, clock):
    asked = view(pool())
    wish.of(asked)
    down(wish, 1)
    wish.drain([Drain(address(2), pool="web", began_s=clock.now_s)])
    assert len(wish.of(asked).causes["web"]) == 2
    wish.were_heeded()
    down(wish, 1, state=State(Health.UP, clock.now_s, has_returned=True))
    wish.drain(ended(wish.drains, "web", address(2), None, clock.now_s))
    assert {cause.text for cause in wish.of(asked).causes["web"].values()} == {
        "10.2.0.1:8080 is up again", "the drain of 10.2.0.2:8080 is over"
    }  # fmt: skip
    wish.were_heeded()
    assert wish.of(view(pool(count=4))).causes["web"] == {}


def test_who_came_back_and_was_not_known_yet_is_a_cause_still(wish, clock):
    asked = view(pool())
    wish.of(asked)
    down(wish, 1)
    drain = Drain(address(2), pool="web", began_s=clock.now_s)
    wish.drain([drain])
    wish.of(asked)
    clock.now_s += 10
    came_back_s = clock.now_s - 5  # they tell of it only now
    wish.of(asked)
    wish.were_heeded()
    down(wish, 1, state=State(Health.UP, came_back_s, has_returned=True))
    wish.drain([replace(drain, until_s=came_back_s)])
    assert len(wish.of(asked).causes["web"]) == 2


def test_the_uses_of_a_pool_are_listed_by_name(wish):
    wish.of(view(pool(count=1)))
    (line,) = wish.take_edits().lines.values()
    assert line[1] == ("web",)
    assert line[2][0][0][0] == Use("web", address(1), 8080)
    wish.of(view(pool(count=1, health_check=HealthCheck())))
    assert wish.take_edits().lines == {"web": None}


def test_a_snapshot_knows_what_the_node_knows(wish, clock):
    asked = view(pool())
    wish.of(asked)
    down(wish, 2)
    former = {use: target.digest for use, target in wish.targets.items()}
    drain = Drain(address(1), pool="web", began_s=5.0, until_s=clock.now_s + 60, by="ann")
    over = replace(drain, until_s=clock.now_s)
    clocks = Clocks(0.0, clock.now_s)
    data = json.loads(json.dumps({"endpoints": known_to_json(Known(wish.states, former, (drain, over)), clocks)}))
    again = known_from_json(data, clocks)
    assert (again.former, again.drains) == (former, (drain,))
    assert weights(Wish(again, clock, clock).of(asked)) == {2: 0, 3: 1}
    assert known_from_json({}, clocks) == Known()  # of an older version


@pytest.mark.parametrize(
    "endpoints", [7, "x", {"targets": [{}]}, {"targets": [{"digest": "zz", "state": ""}], "uses": [], "drains": []}]
)
def test_a_snapshot_with_damage_is_refused(endpoints):
    with pytest.raises(SnapshotError):
        known_from_json({"endpoints": endpoints}, Clocks(0.0, 0.0))


def rows(found):
    """Which endpoints' connections end, by the rows that the node is to hold."""
    of_endpoints = [EndpointKind.joined(list(claims)) for claims in _claims(found).values()]
    return {row.address.packed[3] for row, _ in of_endpoints if row.disabled}


def _claims(found):
    claims = {}
    for each in found.pools.values():
        for row in rows_of(each):
            claims.setdefault(row.key, []).append((row, None))
    return claims


@pytest.mark.parametrize(
    ("more", "protocol", "ended"),
    [
        ({}, Protocol.TCP, set()),
        ({"on_unhealthy": OnUnhealthy.RESET}, Protocol.TCP, {2}),
        ({}, Protocol.UDP, {2}),  # a client of UDP would never notice
        ({"on_unhealthy": OnUnhealthy.RESET, "when_none_healthy": WhenNoneHealthy.DROP}, Protocol.TCP, {2}),
    ],
)
def test_open_connections_of_a_dead_endpoint_stay_or_end(wish, more, protocol, ended):
    asked = view(pool(**more), services=[replace(service(), protocol=protocol)])
    wish.of(asked)
    down(wish, 2)
    found = wish.of(asked)
    assert rows(found) == ended
    (row,) = [row for row in rows_of(found.pools["web"]) if row.address == address(2)]
    cause = row.caused(replace(row, disabled=False), found.causes) if ended else None
    assert cause is None or cause.text == "10.2.0.2:8080 is down: tcp check: refused"
    down(wish, 2, state=State(Health.UP, wish._clock(), has_returned=True))
    found = wish.of(asked)
    assert rows(found) == set()
    if ended:
        assert replace(row, disabled=False).caused(row, found.causes).text == "10.2.0.2:8080 is up again"


def test_connections_of_all_end_if_all_are_down_unless_all_serve(wish):
    for kind, expected in ((WhenNoneHealthy.ALL, set()), (WhenNoneHealthy.DROP, {1, 2, 3})):
        asked = view(pool(on_unhealthy=OnUnhealthy.RESET, when_none_healthy=kind))
        wish.of(asked)
        down(wish, 1, 2, 3)
        assert rows(wish.of(asked)) == expected


def test_a_server_that_another_pool_keeps_keeps_its_connections(wish):
    both = [service(), service("mail", "mail", 25)]
    asked = view(pool(on_unhealthy=OnUnhealthy.RESET), pool("mail", health_check=HealthCheck()), services=both)
    wish.of(asked)
    down(wish, 2)
    assert rows(wish.of(asked)) == set()


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
@pytest.mark.parametrize(("mode", "dead"), [(Mode.NAT, {2}), (Mode.DSR_L3, set())])
def test_datagrams_and_inits_leave_a_dead_endpoint_of_a_pool_of_nat_that_tcp_stays_with(wish, mode, dead, protocol):
    both = [replace(service(), mode=mode), replace(service("names"), mode=mode, protocol=protocol)]
    asked = view(pool(), services=both)
    assert dead_rows(wish.of(asked)) == set()
    down(wish, 2)
    found = wish.of(asked)
    assert (dead_rows(found), rows(found)) == (dead, set())


def test_datagrams_stay_where_another_pool_keeps_the_server(wish):
    both = [replace(service(), protocol=Protocol.UDP), service(), service("mail", "mail", 25)]
    asked = view(pool(), pool("mail", health_check=HealthCheck()), services=both)
    wish.of(asked)
    down(wish, 2)
    assert dead_rows(wish.of(asked)) == set()


def dead_rows(found):
    """Which endpoints' datagrams go elsewhere."""
    of_endpoints = [EndpointKind.joined(list(claims)) for claims in _claims(found).values()]
    return {row.address.packed[3] for row, _ in of_endpoints if row.dead}


def test_a_draining_endpoint_that_dies_is_dead(wish, clock):
    asked = view(pool(on_unhealthy=OnUnhealthy.RESET))
    wish.drain([Drain(address(2), None, "web", clock.now_s)])
    wish.of(asked)
    down(wish, 2)
    found = wish.of(asked)
    assert isinstance(found.pools["web"].endpoints[1], DeadEndpoint)
    assert rows(found) == {2}


STEPS = st.sampled_from(["weight", "check", "none", "drain", "down", "min"])


@given(st.lists(st.tuples(STEPS, st.integers(0, 4)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_looking_at_what_differs_leads_to_what_looking_at_all_does(steps):
    narrow, whole = (Wish(clock=lambda: 100.0, epoch=lambda: 0.0) for _ in range(2))
    pools = {f"p{i}": pool(f"p{i}", health_check=CHECK if i % 2 else HealthCheck(CheckType.NONE)) for i in range(5)}
    services = [service(name, name) for name in pools]
    drained = set()
    for what, i in [("weight", 0), *steps]:
        name = f"p{i}"
        old = pools[name]
        first, *others = old.endpoints
        changes = {
            "weight": {"endpoints": (replace(first, weight=first.weight % 9 + 1), *others)},
            "check": {"health_check": replace(CHECK, interval_s=i + 1.0)},
            "none": {"health_check": HealthCheck(CheckType.NONE)},
            "min": {"announce_min": None if old.announce_min else 1},
        }.get(what, {})
        pools = {**pools, name: replace(old, **changes)} if changes else pools
        drained ^= {name} if what == "drain" else set()
        seen = view(*pools.values(), services=services)
        whole._seen = None
        found = []
        for one in (narrow, whole):
            one.drain([Drain(address(1), pool=of, began_s=0.0) for of in sorted(drained)])
            if what == "down":
                one.learn(dict.fromkeys(list(one.states)[:i], DOWN))
            found.append(one.of(seen))
        assert dict(found[0].pools) == dict(found[1].pools)
        assert (narrow.targets, narrow.states, narrow.lines) == (whole.targets, whole.states, whole.lines)
        assert narrow.take_edits() == whole.take_edits()
