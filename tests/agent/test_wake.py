# SPDX-License-Identifier: Apache-2.0
from queue import Empty

import pytest

from reconciler.agent.wake import QUIET_S, SETTLE_S, SETTLED_QUIET_S, Doorbell, Wake
from reconciler.resource import Key


class Rings:
    """A queue whose rings come at known times of a clock that only waiting moves."""

    def __init__(self, *rings):
        self.rings = list(rings)
        self.now = 0.0

    def put(self, wake):
        self.rings.insert(0, (self.now, wake))

    def clock(self):
        return self.now

    def get(self, timeout):
        if self.rings and self.rings[0][0] <= self.now + timeout:
            at, wake = self.rings.pop(0)
            self.now = max(self.now, at)
            return wake
        self.now += timeout
        raise Empty


def wait(rings, timeout_s=30.0):
    return Doorbell(rings.clock, rings).wait(timeout_s)


def test_without_a_ring_the_time_wakes():
    rings = Rings()
    assert wait(rings) is Wake.TIME
    assert rings.now == 30.0


def test_files_wake_when_nothing_has_moved_for_a_while():
    rings = Rings((1.0, Wake.FILES), (1.1, Wake.FILES), (1.25, Wake.FILES), (9.0, Wake.FILES))
    assert wait(rings) is Wake.FILES
    assert rings.now == pytest.approx(1.25 + QUIET_S)


def test_files_that_never_rest_are_looked_at_all_the_same():
    rings = Rings(*((1.0 + i / 10, Wake.FILES) for i in range(100)))
    assert wait(rings) is Wake.FILES
    assert rings.now == pytest.approx(1.0 + SETTLE_S)


@pytest.mark.parametrize("wake", [Wake.STOP, Wake.RELOAD])
def test_a_signal_does_not_wait_for_files_to_settle(wake):
    rings = Rings((1.0, Wake.FILES), (1.05, wake))
    assert wait(rings) is wake
    assert rings.now == 1.05


def test_what_rang_before_the_wait_is_heard():
    bell = Doorbell()
    bell.ring(Wake.FILES)
    bell.ring(Wake.STOP)
    assert bell.wait(60.0) is Wake.STOP


def test_keys_that_are_named_wake_at_once_all_together():
    bell = Doorbell()
    bell.name([Key("ring", "a"), Key("ring", "b")])
    assert bell.has_rung()
    assert bell.wait(60.0) is Wake.KEYS
    assert bell.named() == {Key("ring", "a"), Key("ring", "b")}
    assert not bell.named()
    assert not bell.has_rung()


def test_keys_that_are_named_while_files_move_wake_at_once():
    rings = Rings((1.0, Wake.FILES), (1.05, Key("ring", "a")), (1.1, Wake.FILES))
    bell = Doorbell(rings.clock, rings)
    assert bell.wait(30.0) is Wake.KEYS
    assert rings.now == 1.05
    assert bell.named() == {Key("ring", "a")}
    assert bell.wait(30.0) is Wake.FILES
    assert rings.now == pytest.approx(1.1 + QUIET_S)


def test_files_that_are_complete_already_wake_at_once():
    rings = Rings((1.0, Wake.FILES), (1.05, Wake.SETTLED))
    assert wait(rings) is Wake.FILES
    assert rings.now == pytest.approx(1.05 + SETTLED_QUIET_S)


def test_files_that_move_after_others_were_complete_have_to_settle():
    rings = Rings((1.0, Wake.SETTLED), (1.01, Wake.FILES))
    assert wait(rings) is Wake.FILES
    assert rings.now == pytest.approx(1.01 + QUIET_S)


def test_it_is_known_since_when_files_that_were_read_have_changed():
    rings = Rings()
    bell = Doorbell(rings.clock, rings)
    for at, wake in ((1.0, Wake.FILES), (1.1, Wake.SETTLED)):
        rings.now = at
        bell.ring(wake)
    assert bell.wait(30.0) is Wake.FILES
    assert bell.files_s == 1.0
    rings.now = 7.0
    bell.ring(Wake.FILES)
    bell.name([Key("ring", "a")])
    assert bell.wait(30.0) is Wake.KEYS
    assert bell.files_s == 1.0 and bell.named(), "the newer ones were not read yet"
    assert bell.wait(30.0) is Wake.FILES
    assert bell.files_s == 7.0
