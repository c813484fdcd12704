# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.ring import MAX_TURNS, hash_ring, shares, turns

weights = st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any)


@given(weights)
def test_a_round_of_turns_gives_each_member_exactly_its_weight(weights):
    counts = np.bincount(turns(weights), minlength=len(weights))
    assert [count * sum(weights) for count in counts] == [w * counts.sum() for w in weights]


def test_turns_are_interleaved_rather_than_in_a_row():
    assert turns([2, 1, 1]).tolist() == [0, 1, 2, 0]
    assert turns([3, 3]).tolist() == [0, 1]
    assert turns([5, 1, 1]).tolist() == [0, 0, 0, 1, 2, 0, 0]


def test_weights_that_are_too_large_for_a_round_are_scaled_and_nobody_is_left_out():
    round_ = turns([1, MAX_TURNS, MAX_TURNS + 1])
    assert round_.size <= MAX_TURNS + 1
    assert set(round_.tolist()) == {0, 1, 2}


def test_no_weight_at_all_is_an_empty_ring():
    assert turns([0, 0]).size == 0
    assert hash_ring(["a", "b"], [0, 0]).size == 0
    assert turns([]).size == 0


@given(weights)
@settings(max_examples=30, deadline=None)
def test_hash_ring_shares_are_within_one_slot_of_the_weights(weights):
    names = [f"10.0.0.{i}:80" for i in range(len(weights))]
    ring = hash_ring(names, weights)
    ideal = np.array(weights) / sum(weights)
    assert np.all(np.abs(shares(ring, len(weights)) - ideal) <= 1 / ring.size)


@given(st.integers(2, 40), st.data())
@settings(max_examples=20, deadline=None)
def test_removing_a_member_moves_little_beyond_its_own_slots(count, data):
    names = [f"10.0.0.{i}:80" for i in range(count)]
    gone = data.draw(st.integers(0, count - 1))
    left = names[:gone] + names[gone + 1 :]
    before, after = np.array(names)[hash_ring(names, [1] * count)], np.array(left)[hash_ring(left, [1] * len(left))]
    moved, unavoidable = np.sum(before != after), np.sum(before == names[gone])
    assert moved <= 2.7 * unavoidable


def test_a_hash_ring_depends_on_its_members_alone():
    names = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
    ring = np.array(names)[hash_ring(names, [3, 1, 1])]
    other_order = names[::-1]
    assert np.array_equal(ring, np.array(other_order)[hash_ring(other_order, [1, 1, 3])])
