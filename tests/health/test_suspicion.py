# SPDX-License-Identifier: Apache-2.0
import pytest

from reconciler.health.suspicion import MIN_WINDOW_S, SAMPLE, Suspicion, after, looks_suspect


def latest(*groups):
    """Newest first: (how many, when, whether they were silent)."""
    return [(time_s, is_silent) for count, time_s, is_silent in groups for _ in range(count)]


@pytest.mark.parametrize(("hosts", "expected"), [
    (latest((10, 99.0, True)), True),
    (latest((9, 99.0, True)), False),                              # too few to tell
    (latest((8, 99.0, True), (2, 98.9, False)), True),
    (latest((79, 99.0, True), (21, 98.9, False)), False),
    (latest((80, 99.0, True), (20, 98.9, False)), True),
    (latest((10, 99.0, True), (1000, 97.9, False)), True),          # what was before says nothing
    (latest((10, 99.0, False), (1000, 97.9, True)), False),
    ([], False),
    (latest((SAMPLE, 99.0, True), (10 * SAMPLE, 98.5, False)), True),
])  # fmt: skip
def test_most_hosts_are_silent(hosts, expected):
    assert looks_suspect(hosts, 98.0, 99.0) is expected


def test_one_failure_looks_back_a_moment():
    """With `fall: 1` there is no streak whose time could be looked at."""
    hosts = latest((9, 99.0, True), (1, 99.0 - MIN_WINDOW_S, True))
    assert looks_suspect(hosts, 99.0, 99.0)
    assert not looks_suspect(latest((9, 99.0, True), (9, 98.4, True)), 99.0, 99.0)


def test_two_intervals_once():
    first = after(None, True, 100.0, 2.0)
    assert first == Suspicion(100.0, 104.0, 100.0)
    assert [first.holds(time_s) for time_s in (100.0, 103.9, 104.0)] == [True, True, False]
    current = first
    for time_s in (101.0, 103.0, 104.5, 106.0, 109.0):  # it goes on and on
        current = after(current, True, time_s, 2.0)
        assert (current.began_s, current.until_s, current.seen_s) == (100.0, 104.0, time_s)


def test_the_next_one_is_another():
    spent = Suspicion(100.0, 104.0, 106.0)
    assert after(spent, True, 109.9, 2.0).until_s == 104.0
    assert after(spent, True, 110.0, 2.0) == Suspicion(110.0, 114.0, 110.0)
    assert after(spent, False, 110.0, 2.0) is None
    assert after(spent, False, 109.0, 2.0) == spent


def test_no_suspicion():
    assert after(None, False, 100.0, 2.0) is None
