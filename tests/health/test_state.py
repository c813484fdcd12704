# SPDX-License-Identifier: Apache-2.0
"""What answers mean, told as stories: `u` an answer as it should be, `d` a wrong one, `s` silence, `n` not checked."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.health.outcome import Outcome, Verdict, failed, not_checked, unreached
from reconciler.health.state import (
    LONG_DOWN_S,
    MAX_PENANCE_S,
    Health,
    State,
    after,
    inherited,
    new,
    pace_s,
    penance_s,
    would_fall,
)
from reconciler.health.target import Target
from reconciler.model import CheckType, HealthCheck

TARGET = Target(ip_address("10.2.0.11"), 80, HealthCheck(CheckType.TCP))
"""interval 2 s, rise 2, fall 3"""
OUTCOMES = {
    "u": Outcome(Verdict.OK, latency_s=0.001), "d": failed("refused"), "s": unreached("no answer within 1 s"),
    "n": not_checked("this node is out of file descriptors"),
}  # fmt: skip


def live(story, state=None, target=TARGET, now_s=1000.0, is_suspect=False):
    """The state after a story, and its end, with checks at their pace."""
    state = state or new(now_s)
    for letter in story:
        now_s += pace_s(state, target, now_s)
        state = after(state, target, OUTCOMES[letter], now_s, is_suspect)
    return state, now_s


def healths(story, **more):
    """The health after each answer, as letters: ? + -"""
    state, now_s = new(1000.0), 1000.0
    found = ""
    for letter in story:
        state, now_s = live(letter, state, now_s=now_s, **more)
        found += "?+-"[state.health]
    return found


@pytest.mark.parametrize(("story", "expected"), [
    ("u", "+"), ("d", "-"), ("s", "-"), ("n", "?"), ("nu", "?+"),
    ("uddu", "++++"), ("uddd", "+++-"), ("udds", "+++-"), ("udduddd", "++++++-"), ("uddnd", "++++-"),
    ("duduu", "----+"), ("ddduu", "----+"), ("dnunu", "----+"),
    ("unnnnn", "++++++"), ("dnnnnn", "------"),
])  # fmt: skip
def test_stories(story, expected):
    assert healths(story) == expected


def test_the_first_success_lets_in_whatever_rise_is():
    slow = replace(TARGET, check=replace(TARGET.check, rise=100))
    assert live("u", target=slow)[0].health is Health.UP


def test_words_for_people():
    state, now_s = live("u")
    assert (state.error, state.latency_s, state.checked_s, state.since_s) == ("", 0.001, now_s, now_s)
    failing, _ = live("d", state, now_s=now_s)
    assert (failing.error, failing.streak, failing.is_undecided) == ("refused", 1, True)
    again, _ = live("u", failing)
    assert (again.error, again.streak, again.is_undecided) == ("refused", 0, False)
    unable, _ = live("n", state, now_s=now_s)
    assert (unable.error, unable.health, unable.checked_s) == (
        "this node is out of file descriptors", Health.UP, now_s
    )  # fmt: skip


def test_paces():
    assert pace_s(new(0), TARGET, 0) == 0.5
    up, now_s = live("u")
    assert pace_s(up, TARGET, now_s) == 2.0
    assert pace_s(live("ud")[0], TARGET, now_s) == 0.5
    down, now_s = live("d")
    assert pace_s(down, TARGET, now_s) == 2.0
    assert pace_s(down, TARGET, now_s + LONG_DOWN_S) == 10.0
    assert pace_s(live("u", down)[0], TARGET, now_s + LONG_DOWN_S) == 0.5


@given(st.floats(0.02, 3600))
def test_no_pace_is_out_of_bounds(interval_s):
    target = replace(TARGET, check=replace(TARGET.check, interval_s=interval_s))
    assert 0 < target.fast_s <= interval_s <= target.slow_s
    assert target.fast_s == interval_s or target.fast_s >= 0.2
    assert target.slow_s <= max(10.0, interval_s)


def dead_after_s(verdict, died_s, timeout_s=1.0, interval_s=2.0):
    """Seconds from a death to the transition; checks that get no answer end after their timeout."""
    target = replace(TARGET, check=replace(TARGET.check, timeout_s=timeout_s, interval_s=interval_s))
    state, begins_s = live("u", target=target)[0], 0.0
    while True:
        is_dead = begins_s >= died_s
        ends_s = begins_s + (timeout_s if is_dead and verdict is Verdict.UNREACHED else 0.0)
        state = after(state, target, Outcome(verdict) if is_dead else OUTCOMES["u"], ends_s)
        if state.health is Health.DOWN:
            return ends_s - died_s
        begins_s = max(ends_s, begins_s + pace_s(state, target, ends_s))


@given(st.floats(0.001, 20.0))
def test_how_long_clients_see_a_dead_server(died_s):
    """By default at most seven seconds if it is silent, four if it refuses; a jitter of five per cent comes on top."""
    assert dead_after_s(Verdict.UNREACHED, died_s) <= 5.0 + 1e-6
    assert dead_after_s(Verdict.FAILED, died_s) <= 3.0 + 1e-6


def flap(times, now_s=1000.0):
    """A server that comes back and dies, so often: its state when it is down, and the time."""
    state = new(now_s)
    state, now_s = live("u", state, now_s=now_s)
    for time in range(times):
        state, now_s = live("ddd", state, now_s=now_s)
        assert state.health is Health.DOWN
        while time < times - 1 and state.health is Health.DOWN:
            state, now_s = live("u", state, now_s=now_s)
    return state, now_s


def time_to_return(state, now_s):
    begin_s = now_s
    while state.health is Health.DOWN:
        state, now_s = live("u", state, now_s=now_s)
    return now_s - begin_s


def test_flapping_doubles_the_time_to_come_back():
    times = [penance_s(state, TARGET.rise_s, now_s) for state, now_s in map(flap, range(1, 7))]
    assert times == [0.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    assert time_to_return(*flap(1)) < 4
    assert 8 <= time_to_return(*flap(2)) < 12


def test_five_minutes_at_most_however_often_it_flaps():
    for rise, interval_s in ((2, 2.0), (1, 0.02), (100, 3600.0)):
        target = replace(TARGET, check=replace(TARGET.check, rise=rise, interval_s=interval_s))
        state = State(Health.DOWN, 1000.0, falls=tuple(float(i) for i in range(990, 998)))
        assert penance_s(state, target.rise_s, 1000.0) == MAX_PENANCE_S


def test_after_ten_quiet_minutes_nothing_is_left_of_it():
    state, now_s = flap(4)
    assert penance_s(state, TARGET.rise_s, now_s) > 0
    assert penance_s(state, TARGET.rise_s, now_s + 600) == 0.0


def test_a_failure_during_the_penance_begins_it_anew():
    state, now_s = flap(3)
    for _ in range(20):
        state, now_s = live("uuuud", state, now_s=now_s)
        assert state.health is Health.DOWN


def test_while_the_node_suspects_itself_nobody_goes_down():
    up, now_s = live("u")
    held, later_s = live("sssss", up, now_s=now_s, is_suspect=True)
    assert (held.health, held.is_held, held.since_s) == (Health.UP, True, up.since_s)
    fallen, _ = live("s", held, now_s=later_s)
    assert (fallen.health, fallen.is_held) == (Health.DOWN, False)
    assert live("u", held)[0].is_held is False
    never, _ = live("sss", is_suspect=True)
    assert (never.health, never.is_held) == (Health.UNKNOWN, True)


@given(st.text("uds", max_size=12), st.sampled_from("udsn"))
def test_who_would_fall_falls(story, letter):
    state, now_s = live(story)
    fell = live(letter, state, now_s=now_s)[0].health is Health.DOWN and state.health is not Health.DOWN
    assert would_fall(state, TARGET, OUTCOMES[letter]) == fell


@given(st.text("udsn", max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_up_and_down_are_always_proved(story, rise, fall):
    """Nobody goes down before `fall` failures in a row, or comes back before `rise` successes; but the first answer is
    believed."""
    target = replace(TARGET, check=replace(TARGET.check, rise=rise, fall=fall))
    state, now_s = new(0.0), 0.0
    answers = ""
    for letter in story:
        before = state
        state, now_s = live(letter, state, target, now_s)
        if letter != "n":
            answers += "u" if letter == "u" else "d"
        if state.health is before.health:
            assert state.since_s == before.since_s
        elif before.health is not Health.UNKNOWN:
            needed = "u" * rise if state.health is Health.UP else "d" * fall
            assert answers.endswith(needed)
            assert state.has_returned == (state.health is Health.UP)
        else:
            assert len(answers) == 1
            assert not state.has_returned


@given(st.text("uds", max_size=12))
def test_inheriting_changes_nothing_that_others_see(story):
    state, _ = live(story)
    heir = inherited(state)
    assert (heir.health, heir.since_s, heir.falls, heir.shown_share) == (
        state.health, state.since_s, state.falls, state.shown_share
    )  # fmt: skip
    assert heir.streak == (state.streak if state.health is Health.UP else 0)


def agent(*shares):
    state, now_s, shown = new(0.0), 0.0, []
    for share in shares:
        now_s += 2
        state = after(state, TARGET, Outcome(Verdict.OK, share=share), now_s)
        shown.append(state.shown_share)
    return shown


def test_the_share_follows_its_agent_smoothly():
    assert agent(80) == [80]
    assert agent(100, 50, 50, 50) == [100, 85, 74, 67]
    falling = agent(100, *[50] * 30)
    assert falling == sorted(falling, reverse=True)
    assert abs(falling[-1] - 50) <= 5


def test_small_changes_of_the_share_change_no_ring():
    assert set(agent(80, 82, 79, 81, 78, 80, 83)) == {80}


def test_nothing_is_nothing_at_once_and_all_is_all_in_the_end():
    assert agent(100, 0) == [100, 0]
    returning = agent(100, 0, *[100] * 30)
    assert returning[2] == 30
    assert returning[-1] == 100
    assert agent(100, *[3.0] * 40)[-1] == 3 or agent(100, *[3.0] * 40)[-1] <= 8


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_shown_shares_are_near_and_within_bounds(shares):
    state, now_s = new(0.0), 0.0
    for share in shares:
        now_s += 2
        state = after(state, TARGET, Outcome(Verdict.OK, share=share), now_s)
        assert 0 <= state.shown_share <= 100
        assert abs(state.shown_share - state.share) <= 5
        assert min(shares) - 1e-6 <= state.share <= max(shares) + 1e-6
