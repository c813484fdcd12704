# SPDX-License-Identifier: Apache-2.0
"""Only what works is announced: each condition that fails is named, and one that comes and goes is damped."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.concerns import concerns_of
from reconciler.health.state import Health, State
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.announcement import Announcement
from reconciler.live import read_live
from reconciler.model import LEAVING_METRIC, Announce, WhenNoneHealthy
from reconciler.plan import fingerprint, plan
from reconciler.resource import Key, Reason
from reconciler.telling import Form, telling_of
from reconciler.wish import announcing
from reconciler.wish.announcing import FIRST_HOLD_S, MEMORY_S, Leaving, Stored
from reconciler.wish.known import Known
from reconciler.wish.wish import Wish
from tests.strategies import fake_source
from tests.wish.test_wish import Clock, down, pool, service, view

KEY = Key(Announcement.kind, "20.20.20.1 table 251")


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wish(clock):
    return Wish(Known(changed_s=clock.now_s), clock, clock)


def told(*pools, announce=Announce(), **more):  # noqa: B008 - frozen
    asked = view(*pools, **more)
    return replace(asked, node=replace(asked.node, announce=announce))


def form(wish, asked):
    (found, *_) = wish.of(asked).services
    return telling_of(found).form


def why(wish, asked):
    return telling_of(wish.of(asked).services[0]).why


def up(wish, *numbers):
    down(wish, *numbers, state=State(Health.UP))


def test_with_too_few_healthy_endpoints_a_vip_is_withdrawn_and_the_reason_named(wish):
    asked = told(pool(announce_min=2))
    assert wish.of(asked).services is asked.services
    down(wish, 1)
    assert form(wish, asked) is Form.ANNOUNCED
    down(wish, 2)
    assert form(wish, asked) is Form.WITHDRAWN
    assert why(wish, asked) == ("pool web: 1 of 3 endpoints are healthy, announceMin is 2",)


def test_a_pool_that_serves_with_nobody_healthy_stays_announced_unless_it_drops(wish):
    every = told(pool())
    wish.of(every)
    down(wish, 1, 2, 3)
    assert form(wish, every) is Form.ANNOUNCED
    assert form(wish, told(pool(when_none_healthy=WhenNoneHealthy.DROP))) is Form.WITHDRAWN


def test_nothing_is_looked_at_where_nothing_is_announced(wish):
    asked = told(pool(announce_min=3), announce=None)
    wish.of(asked)
    down(wish, 1)
    assert wish.of(asked).services is asked.services


def test_what_speaks_against_a_node_goes_for_all_its_vips(wish, clock):
    asked = told(pool())
    silent = replace(asked, silent_gateways=("10.1.0.254",))
    assert why(wish, silent) == ("the gateway 10.1.0.254 does not answer",)
    clock.now_s += MEMORY_S + 100
    assert form(wish, asked) is Form.WITHDRAWN  # a moment ago it still failed
    clock.now_s += FIRST_HOLD_S
    assert form(wish, asked) is Form.ANNOUNCED
    wish.announcing.suspect_until_s = clock.now_s + 4
    assert "may have lost its way" in why(wish, asked)[0]
    assert wish.changes_s == clock.now_s + 4


def test_a_drained_balancer_leaves_gracefully_then_goes_and_comes_back(wish, clock):
    asked = told(pool(), announce=Announce(grace_s=10.0))
    wish.announcing.leaving = Leaving("by ann: new kernel", clock.now_s, clock.now_s + 100)
    assert form(wish, asked) is Form.LEAVING
    assert why(wish, asked) == ("this balancer is drained by ann: new kernel",)
    assert wish.changes_s == clock.now_s + 10
    clock.now_s += 10
    assert form(wish, asked) is Form.WITHDRAWN
    clock.now_s += 90
    assert wish.of(asked).services is asked.services


def test_the_declared_metric_takes_the_place_of_a_withdrawal_but_not_of_a_drain(wish, clock):
    asked = told(pool(announce_min=3), announce=Announce(degraded_metric=900))
    wish.of(asked)
    down(wish, 1)
    (row,) = [r for r in compile_node(wish.of(asked)).resources.values() if isinstance(r, Announcement)]
    assert row.metric == 900
    wish.announcing.leaving = Leaving("", clock.now_s - 60)
    assert form(wish, asked) is Form.WITHDRAWN


def test_a_condition_that_comes_and_goes_has_to_hold_longer_each_time(wish, clock):
    asked = told(pool(announce_min=3))
    wish.of(asked)
    for flap in range(4):
        down(wish, 1)
        assert form(wish, asked) is Form.WITHDRAWN
        clock.now_s += 1
        up(wish, 1, 2, 3)
        assert form(wish, asked) is Form.WITHDRAWN
        hold_s = FIRST_HOLD_S * 2**flap
        assert wish.changes_s == clock.now_s + hold_s
        clock.now_s += hold_s - 0.1
        assert form(wish, asked) is Form.WITHDRAWN
        clock.now_s += 0.1
        assert form(wish, asked) is Form.ANNOUNCED
    clock.now_s += MEMORY_S
    down(wish, 1)
    form(wish, asked)
    up(wish, 1, 2, 3)
    form(wish, asked)
    assert wish.changes_s == clock.now_s + FIRST_HOLD_S


def test_another_process_and_the_next_agent_know_what_has_failed(wish, clock, tmp_path):
    asked = told(pool(announce_min=3))
    wish.of(asked)
    down(wish, 1)
    wish.of(asked)
    path = tmp_path / announcing.FILE
    path.parent.chmod(0o700)
    announcing.write(path, wish.announcing.stored)
    stored = announcing.read(path)
    assert stored == wish.announcing.stored
    assert stored.withheld.keys() == {"20.20.20.1"}
    again = Wish(Known(conditions=stored.conditions), clock, clock)
    assert form(again, asked) is Form.WITHDRAWN  # nobody is known to be down, but it was withdrawn a moment ago
    path.write_text("{")
    assert announcing.read(path) == Stored()


def test_a_vip_with_a_service_that_works_stays_announced(wish):
    asked = told(pool(announce_min=3), pool("mail", 3), services=[service(), service("mail", "mail", 25)])
    wish.of(asked)
    (first,) = {digest for use, digest in ((u, t.digest) for u, t in wish.targets.items())
                if use.pool == "web" and use.address == ip_address("10.2.0.1")}  # fmt: skip
    wish.learn({first: State(Health.DOWN)})
    rows = [r for r in compile_node(wish.of(asked)).resources.values() if isinstance(r, Announcement)]
    assert [(row.metric, row.why) for row in rows] == [(100, ())]
    assert form(wish, asked) is Form.WITHDRAWN


def test_a_plan_makes_the_route_leave_go_and_come_back_and_says_why(wish, clock):
    asked = told(pool(count=1), announce=Announce(grace_s=10.0))
    kernel = FakeKernel()

    def step(applied=None):
        desired = compile_node(wish.of(asked))
        planned = plan(desired, read_live(kernel, desired.resources), applied)
        apply(planned, kernel).raise_if_failed()
        assert not plan(desired, read_live(kernel, desired.resources)).changes
        texts = [concern.text for concern in concerns_of(kernel, desired) if concern.key == KEY]
        return planned, texts, {key: fingerprint(r) for key, r in desired.resources.items()}

    _, texts, applied = step()
    assert texts == [] and {r.metric for r in kernel.announcements} == {100}
    wish.announcing.leaving = Leaving("by ann", clock.now_s)
    planned, (text,), applied = step(applied)
    (change,) = planned.changes
    assert (change.key, change.reason, change.cause) == (KEY, Reason.DRAIN, "this balancer is drained by ann")
    assert "announced with metric 4000000: this balancer is drained by ann" in text
    assert {r.metric for r in kernel.announcements} == {LEAVING_METRIC}
    clock.now_s += 10
    planned, (text,), applied = step(applied)
    assert planned.effects() == {KEY: "routers send packets to this VIP to other balancers"}
    assert "20.20.20.1 is not announced" in text
    assert kernel.announcements == set()
    wish.announcing.leaving = None
    planned, texts, _ = step(applied)
    assert texts == [] and {r.metric for r in kernel.announcements} == {100}


def test_a_vip_is_withdrawn_before_what_it_needs_changes(wish, clock):
    asked = told(pool(count=2, announce_min=2))
    kernel = FakeKernel()

    def bring():
        kernel.writes.clear()
        desired = compile_node(wish.of(asked))
        apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
        return [method for method, _ in kernel.writes]

    assert bring()[-1] == "add_route"
    down(wish, 1)
    first, *others = bring()
    assert first == "remove_route" and others
    up(wish, 1, 2)
    wish.of(asked)
    clock.now_s += FIRST_HOLD_S
    assert bring()[-1] == "add_route"
