# SPDX-License-Identifier: Apache-2.0
import random
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.health.lateness import Lateness
from reconciler.health.schedule import Schedule
from reconciler.health.target import Target
from reconciler.model import CheckType, HealthCheck

CHECK = HealthCheck(CheckType.TCP)
ROOM = 10_000


def target(i, interval_s=2.0):
    return Target(ip_address("10.2.0.0") + i, 80, replace(CHECK, interval_s=interval_s))


def schedule(seed=b"lb1"):
    return Schedule(seed, random.Random(7))


def simulate(plan, until_s, now_s=0.0, *, took_s=0.0, pace=None, urgent=lambda item: False, room=ROOM, step_s=0.01):
    """Begin what is due every `step_s`, end it `took_s` later. When each check began, by target."""
    flying = []
    begun = {}
    while now_s < until_s:
        for end_s, item in [pair for pair in flying if pair[0] <= now_s]:
            flying.remove((end_s, item))
            plan.done(item, now_s, pace(item) if pace else item.interval_s, urgent(item))
        for item in plan.due(now_s, room - plan.in_flight):
            begun.setdefault(item, []).append(now_s)
            flying.append((now_s + (took_s(item) if callable(took_s) else took_s), item))
            if not flying[-1][0] > now_s:
                flying.pop()
                plan.done(item, now_s, pace(item) if pace else item.interval_s, urgent(item))
        now_s += step_s
    return begun


def gaps(times):
    return [later - earlier for earlier, later in pairwise(times)]


def test_fixed_rate():
    """However long the answers take: a hundred seconds are fifty checks, each a little off its point on the grid."""
    begun = simulate(schedule_of(20), 100.0, took_s=0.7)
    for item, times in begun.items():
        assert 49 <= len(times) <= 52, item
        settled = gaps(times)[2:]
        assert all(1.75 < gap < 2.25 for gap in settled)
        assert len({round(gap, 2) for gap in settled}) > 5


def schedule_of(count, seed=b"lb1", known=True, now_s=0.0, **more):
    plan = schedule(seed)
    plan.add([target(i, **more) for i in range(count)], now_s, is_known=known)
    return plan


def test_checks_are_spread_evenly():
    begun = simulate(schedule_of(1000), 4.0, 0.0, step_s=0.001)
    tenths = Counter(int(times[1] * 10) for times in begun.values() if len(times) > 1 and 2.2 < times[1] < 3.8)
    assert min(tenths.values()) > 20
    assert max(tenths.values()) < 100


def test_new_ones_are_checked_within_their_fast_interval_but_not_all_at_once():
    plan = schedule_of(200, known=False, now_s=50.0)
    begun = simulate(plan, 50.6, 50.0, pace=lambda item: item.fast_s, took_s=0.3)
    assert len(begun) == 200
    assert len({times[0] for times in begun.values()}) > 30


def test_two_balancers_do_not_coincide_and_a_restart_changes_nothing():
    def phases(seed, now_s):
        begun = simulate(schedule_of(200, seed, now_s=now_s), now_s + 8, now_s)
        return {item: times[-1] % 2.0 for item, times in begun.items()}

    one, again, other = phases(b"lb1", 0.0), phases(b"lb1", 40.0), phases(b"lb2", 0.0)

    def apart(a, b):
        return min(abs(a - b), 2 - abs(a - b))

    assert all(apart(one[item], again[item]) < 0.25 for item in one)
    assert sum(apart(one[item], other[item]) < 0.25 for item in one) < 80


def test_a_check_does_not_begin_before_the_last_one_ended():
    plan = schedule_of(5, interval_s=0.5)
    begun = simulate(plan, 30.0, took_s=1.3, pace=lambda item: 0.5)
    for times in begun.values():
        assert min(gaps(times)) >= 1.29


@pytest.mark.parametrize("pace_s", [0.5, 2.0, 10.0])
def test_pace(pace_s):
    times = simulate(schedule_of(1), 100.0, pace=lambda item: pace_s)[target(0)]
    assert all(pace_s * 0.9 < gap < pace_s * 1.13 for gap in gaps(times)[2:])


def test_when_there_is_too_much_to_do_the_healthy_ones_are_late():
    """A third of what is wanted can be done. The urgent ones lose nothing by it."""
    plan = schedule_of(90)
    is_urgent = {target(i) for i in range(10)}
    begun = simulate(plan, 200.0, took_s=1.0, room=15, urgent=is_urgent.__contains__)
    counts = Counter({item: len(times) for item, times in begun.items()})
    assert min(counts[item] for item in is_urgent) > 90
    calm = [counts[target(i)] for i in range(10, 90)]
    assert min(calm) > 5       # nobody is forgotten
    assert max(calm) < 45
    assert plan.lateness.max_s > 1


def test_the_healthy_ones_are_not_forgotten_while_all_others_take_all_the_room():
    plan = schedule_of(60)
    begun = simulate(plan, 100.0, took_s=1.0, room=8, urgent=lambda item: int(item.address) % 6 > 0)
    calm = [len(begun.get(target(i), ())) for i in range(60) if int(target(i).address) % 6 == 0]
    assert len(calm) == 10
    assert min(calm) > 8


def test_room_for_one_at_a_time_is_shared():
    plan = schedule_of(40)
    begun = simulate(plan, 200.0, took_s=0.05, room=1, urgent=lambda item: int(item.address) % 2 == 0)
    urgent = sum(len(times) for item, times in begun.items() if int(item.address) % 2 == 0)
    calm = sum(len(times) for item, times in begun.items() if int(item.address) % 2)
    assert urgent > calm > 0


def test_lateness_is_measured():
    plan = schedule_of(100)
    plan.due(10.0, ROOM)
    assert plan.lateness.total == 100
    assert 8 <= plan.lateness.max_s <= 10.1


def test_hurry():
    plan = schedule_of(10, interval_s=60.0)
    item = target(3, 60.0)
    plan.due(1.0, ROOM)
    plan.hurry(item, 1.0)
    assert plan.due(1.0, ROOM) == [item]
    plan.hurry(item, 1.1)           # it is being checked
    plan.hurry(target(99), 1.1)     # unknown
    assert plan.due(1.1, ROOM) == []
    plan.done(item, 1.3, 60.0, False)
    assert plan.due(1.4, ROOM) == []


def test_who_is_hurried_again_and_again_while_there_is_no_room_keeps_its_place():
    plan = schedule_of(10, interval_s=60.0)
    first, second = target(3, 60.0), target(4, 60.0)
    plan.due(1.0, ROOM)
    for now_s, item in ((1.0, first), (1.1, second), (2.0, first)):
        plan.hurry(item, now_s)
    assert plan.due(2.0, 1) == [first]
    assert plan.due(2.0, 1) == [second]


def test_removed_and_added_again_during_its_check():
    """It is not checked twice at once, and the answer that comes is still of use."""
    plan = schedule_of(1)
    (item,) = plan.due(10.0, ROOM)
    plan.remove([item])
    plan.add([item], 10.1)
    assert plan.due(20.0, ROOM) == []
    assert plan.done(item, 20.0, 2.0, False) is True
    assert plan.due(30.0, ROOM) == [item]


def test_removed_during_its_check():
    plan = schedule_of(1)
    (item,) = plan.due(10.0, ROOM)
    plan.remove([item])
    assert plan.in_flight == 1
    assert plan.done(item, 11.0, 2.0, False) is False
    assert (plan.in_flight, plan.next_s()) == (0, None)


def test_what_stays_is_not_disturbed_by_edits():
    quiet, edited = schedule_of(20), schedule_of(20)
    edited.add([target(i) for i in range(20, 40)], 0.0)
    edited.remove([target(i) for i in range(20, 40)])
    edited.add([target(i) for i in range(20)], 0.0)
    assert [quiet.due_s(target(i)) for i in range(20)] == [edited.due_s(target(i)) for i in range(20)]


def test_nothing_is_left_of_many_edits():
    plan = schedule()
    for i in range(2000):
        plan.add([target(i)], float(i))
        plan.remove([target(i - 5)])
    assert len(plan._heap) < 200


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("arhstd"), st.integers(0, 7), st.floats(0, 3)), max_size=80), st.integers(1, 4)
)
def test_whatever_happens(steps, room):
    """Nobody is checked twice at once or unasked, no more fly than may, and all wanted ones get a turn."""
    plan, now_s, wanted, flying = schedule(), 100.0, set(), set()
    for step, i, pause_s in steps:
        now_s += pause_s
        item = target(i)
        if step == "a":
            plan.add([item], now_s, is_known=i % 2 == 0)
            wanted.add(item)
        elif step == "r":
            plan.remove([item])
            wanted.discard(item)
        elif step == "h":
            plan.hurry(item, now_s)
        elif step == "s":
            begun = plan.due(now_s, room - len(flying))
            assert len(set(begun)) == len(begun)
            assert not set(begun) & flying
            assert set(begun) <= wanted
            flying |= set(begun)
            assert len(flying) <= room
        elif flying:
            done = sorted(flying, key=lambda other: other.address)[i % len(flying)]
            flying.discard(done)
            pace_s = done.fast_s if step == "t" else done.interval_s
            assert plan.done(done, now_s, pace_s, step == "t") == (done in wanted)
        assert plan.in_flight == len(flying)
    for item in flying:
        plan.done(item, now_s, item.interval_s, False)
    seen = set()
    for _ in range(300):
        now_s += 0.1
        for item in plan.due(now_s, room):
            seen.add(item)
            plan.done(item, now_s, item.interval_s, False)
    assert seen == wanted
    next_s = plan.next_s()
    assert (next_s is None) == (not wanted)


@given(st.lists(st.floats(0, 10_000), min_size=1, max_size=300))
def test_quantiles(times):
    late = Lateness()
    for time_s in times:
        late.record(time_s)
    assert late.max_s == max((t for t in times if t > 1e-5), default=0.0)
    for part in (0.5, 0.99, 1.0):
        exact = sorted(times)[max(0, -int(-(part * len(times)) // 1) - 1)]
        assert exact - 1e-5 <= late.quantile_s(part) <= exact * 1.1 + 1e-5
