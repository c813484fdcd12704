# SPDX-License-Identifier: Apache-2.0
"""What becomes of the slots of a ring when they change hands."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.dataplane import slots
from reconciler.dataplane.slots import (
    DATAGRAM_IDLE,
    LEARNING,
    STREAM_IDLE,
    changed,
    fitted,
    held,
    lost,
    moved,
    packed,
    reduced,
    settled,
    still,
    unpacked,
    without_datagrams_to,
)

endpoints = st.lists(st.integers(1, 4), min_size=1, max_size=24)


def ring(*numbers):
    return np.array(numbers, np.uint32)


def row(state, slot):
    names = ("stream", "datagram", "began", "moved", "used")
    return tuple(int(state.rows[slot][name]) for name in names)


def test_only_slots_that_change_hands_go_into_transition():
    after = changed(still(ring(1, 2, 3)), ring(1, 4, 3), 1_000)
    assert after.endpoints.tolist() == [1, 4, 3]
    assert after.moving.tolist() == [False, True, False]
    assert row(after, 1) == (2, 2, 1_000, 1_000, 1_000)


def test_a_slot_that_moves_again_while_flows_are_learnt_keeps_both_former_endpoints():
    once = changed(still(ring(1)), ring(2), 1_000)
    twice = changed(once, ring(3), 1_000 + LEARNING)
    assert row(twice, 0) == (1, 1, 1_000, 1_000 + LEARNING, 1_000 + LEARNING)


def test_datagrams_do_not_belong_to_the_dead():
    once = changed(still(ring(1, 2)), ring(3, 3), 1_000)
    rows = unpacked(without_datagrams_to(ring(1), packed(once.rows)))
    assert [(int(r["stream"]), int(r["datagram"]), int(r["moved"])) for r in rows] == [(1, 0, 1_000), (2, 2, 1_000)]


@pytest.mark.parametrize("now", [-300, 3, 1_024, 2**32 + 3])
def test_on_a_machine_that_just_booted_times_may_lie_before_its_clock_began(now):
    once = changed(still(ring(1)), ring(2), now - STREAM_IDLE)
    twice = changed(once, ring(3), now)
    assert row(twice, 0)[:2] == (1, 2)
    assert not settled(once, STREAM_IDLE - 1, now).moving[0]
    assert settled(once, STREAM_IDLE, now).moving[0]
    assert settled(twice, 0, now).moving[0]


def test_once_flows_are_learnt_unknown_datagrams_belong_to_the_last_endpoint_and_connections_to_the_first():
    once = changed(still(ring(1)), ring(2), 1_000)
    twice = changed(once, ring(3), 1_001 + LEARNING)
    assert row(twice, 0)[:3] == (1, 2, 1_000)


def test_back_to_the_former_endpoint_is_still_a_transition():
    back = changed(changed(still(ring(1)), ring(2), 1_000), ring(1), 1_001)
    assert back.moving.all()
    assert row(back, 0)[0] == 1


@pytest.mark.parametrize("idle", [DATAGRAM_IDLE, STREAM_IDLE])
def test_a_transition_ends_when_nobody_else_was_used_for_long_enough(idle):
    under_way = changed(still(ring(1, 1)), ring(2, 1), 1_000)
    under_way.rows["used"][0] = 900
    assert slots.settled(under_way, idle, 900 + idle).moving.tolist() == [True, False]
    assert slots.settled(under_way, idle, 901 + idle).moving.tolist() == [False, False]


@given(endpoints, st.integers(1, 5))
def test_a_ring_and_its_larger_copies_have_one_shortest_form(numbers, times):
    short = reduced(ring(*numbers))
    assert np.array_equal(reduced(ring(*numbers).repeat(times)), short)
    assert np.array_equal(short.repeat(len(numbers) // short.size), ring(*numbers))


@given(endpoints, endpoints)
def test_a_change_of_size_loses_nothing_where_one_size_is_a_multiple_of_the_other(before, after):
    if len(before) % len(after) == 0 or len(after) % len(before) == 0:
        assert lost(ring(*before), ring(*after)) == 0


def test_a_change_to_a_size_without_a_common_measure_says_what_it_loses():
    """The hashes from 1/3 to 1/2 had endpoint 1, and fall into a slot whose former endpoint is taken to be 2."""
    assert lost(ring(1, 2), ring(1, 2, 2)) == pytest.approx(1 / 6)


def test_the_share_that_moves_is_measured_over_hashes_whatever_the_sizes():
    assert moved(ring(1, 2), ring(1, 1, 2, 2)) == 0
    assert moved(ring(1, 2), ring(1, 3, 2, 2)) == 0.25
    assert moved(ring(1, 2, 3), ring(1, 3)) == pytest.approx(1 / 3)


@given(endpoints, endpoints, st.booleans())
def test_a_ring_reads_back_as_it_was_written(before, after, grown):
    start = still(ring(*before).repeat(2 if grown else 1))
    state = changed(*fitted(start, ring(*after)), 1_000)
    again = held(state.slots, packed(state.rows))
    assert np.array_equal(again.slots, state.slots)
    assert np.array_equal(again.rows, state.rows)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_ring_that_grows_keeps_every_former_endpoint(size, times, data):
    numbers = st.integers(1, 4)
    before = still(ring(*data.draw(st.lists(numbers, min_size=size, max_size=size))))
    wanted = ring(*data.draw(st.lists(numbers, min_size=size * times, max_size=size * times)))
    fit, asked = fitted(before, wanted)
    after = changed(fit, asked, 1_000)
    assert after.endpoints.tolist() == wanted.tolist()
    former = np.where(after.moving, after.rows["stream"], after.endpoints)
    assert np.array_equal(former, before.endpoints.repeat(times))


@given(endpoints, endpoints, st.integers(0, 2_000), st.integers(-1_500, 1_500))
def test_a_clock_that_wraps_or_began_just_now_makes_no_difference(first, second, now, ago):
    """Rows hold times modulo 1,024, and what began before the machine did has a time below zero."""
    second = (second * len(first))[: len(first)]
    begun = changed(still(ring(*first)), ring(*second), now - ago)
    later = changed(begun, ring(*first), now)
    for turns in (1, -3):
        shift = 1024 * turns
        again = changed(still(ring(*first)), ring(*second), now - ago + shift)
        assert again.rows.tolist() == begun.rows.tolist()
        assert changed(again, ring(*first), now + shift).rows.tolist() == later.rows.tolist()
        assert settled(again, 100, now + shift).moving.tolist() == settled(begun, 100, now).moving.tolist()


# --- shared rows ---------------------------------------------------------------------------------------------
def rows_of(*rows):
    return slots.packed(np.array(list(rows), slots.ROW))


def test_slots_that_changed_hands_alike_share_a_row_with_their_last_use():
    nothing = (0, 0, 0, 0, 0)
    made, numbers = slots.shared(
        rows_of((1, 1, 8, 8, 1_020), nothing, (1, 1, 8, 8, 3), (2, 1, 8, 8, 7), (1, 1, 8, 8, 900)), now=1_024 + 5
    )
    assert numbers.tolist() == [1, 0, 1, 2, 1]
    assert made.size == slots.SHARED_ROWS
    rows = slots.unpacked(made)
    assert rows[:3].tolist() == [nothing, (1, 1, 8, 8, 3), (2, 1, 8, 8, 7)]
    assert not made[3:].any()


@pytest.mark.parametrize(("kinds", "is_shared"), [(255, True), (256, False)])
def test_rows_are_shared_as_long_as_a_byte_tells_them_apart(kinds, is_shared):
    rows = rows_of(*((1 + n % kinds, 1, 5, 5, n % 9) for n in range(1_000)), (0, 0, 0, 0, 0))
    found = slots.shared(rows, now=9)
    assert (found is not None) == is_shared
    if found:
        made, numbers = found
        expected = slots.unpacked(rows)
        for column in ("stream", "datagram", "began", "moved"):
            assert np.array_equal(slots.unpacked(made[numbers])[column], expected[column])
