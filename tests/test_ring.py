# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from hashlib import sha256
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dataplane.ring import MAX_TURNS, _best, hash_ring, turns
from reconciler.limits import default_size

weight = st.integers(0, 50) | st.integers(0, 10**6)
pools = st.dictionaries(st.text(min_size=1, max_size=12), weight, min_size=1, max_size=60).filter(
    lambda pool: any(pool.values())
)
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


def build(weights, size=0):
    """The name in each slot of the ring of these members."""
    return np.array(list(weights), object)[hash_ring(list(weights), list(weights.values()), size)]


def moved_and_least(before, after):
    """The slots that changed hands, and those that had to: what the losers hold less of."""
    held, holds = Counter(before.tolist()), Counter(after.tolist())
    return np.sum(before != after), (held - holds).total()


@given(pools, st.sampled_from([0, 1, 2, 7, 100, 1_000]))
@settings(max_examples=100, deadline=None)
def test_every_share_of_a_hash_ring_is_the_ideal_one_rounded_down_or_up(weights, size):
    ring = build(weights, size)
    held = Counter(ring.tolist())
    assert ring.size == (size or default_size(sum(map(bool, weights.values()))))
    for name, weight in weights.items():
        ideal = Fraction(weight * ring.size, sum(weights.values()))
        assert floor(ideal) <= held[name] <= ceil(ideal)


@given(pools, st.randoms())
@settings(max_examples=30, deadline=None)
def test_a_hash_ring_does_not_depend_on_the_order_of_its_members(weights, random):
    order = list(weights)
    random.shuffle(order)
    assert np.array_equal(build(weights), build({name: weights[name] for name in order}))


@given(pools)
@settings(max_examples=20, deadline=None)
def test_a_member_of_no_weight_is_as_good_as_absent(weights):
    assert np.array_equal(build(weights), build({name: weight for name, weight in weights.items() if weight}))


@given(pools, st.integers(2, 1_000))
@settings(max_examples=20, deadline=None)
def test_only_the_ratios_of_the_weights_matter(weights, factor):
    assert np.array_equal(build(weights), build({name: weight * factor for name, weight in weights.items()}))


@pytest.mark.parametrize("size", [1, 2, 7, 4_096])
def test_a_single_member_holds_every_slot(size):
    assert hash_ring(["a"], [10**6], size).tolist() == [0] * size


def test_a_hash_ring_is_the_same_on_every_machine():
    weights = [1 + i * i % 7 for i in range(100)]
    ring = hash_ring([f"10.0.0.{i}:80" for i in range(100)], weights, 4_096)
    assert sha256(ring.astype("<u4").tobytes()).hexdigest() == (
        "9488217c44e861a2a1326cc9bc5baa5449d43b444f324e33aae39d484409f447"
    )


def _pools(count):
    """Pools of so many members, 12 for each size of a ring, with equal, few, and wild weights."""
    for size in (1, 7, 100, 1_024, 4_096, 5_000):
        for turn in range(12):
            plain = [f"10.{turn}.{i >> 8}.{i & 255}:{80 + turn}" for i in range(count)]
            names = plain if turn % 3 else [f"[2001:db8::{turn:x}:{i:x}]:443" for i in range(count)]
            yield names, [(1, 1 + i % 4, i * i % 3, 1 + i**7 % 99_991)[turn % 4] for i in range(count)], size


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "ae7d5524718e68959e0ae07bfa1ef5f6"),
        (2, "8f48bc41511d0e4502bcb22a3507d6ec"),
        (3, "c45eb06d57d5724765a329aa745539a7"),
        (10, "e231bbfdaac43342db0ede4babfcc23d"),
        (47, "371ada658471b7381bad69767f965c82"),
        (100, "a5ae4c93a2df4daacde0217d95b12f33"),
        (300, "76f8c3783bdd1ea95bb3d2a1467aef48"),
    ],
)
def test_rings_stay_the_same_from_version_to_version(count, expected):
    """Balancers of several versions serve the same VIPs during an upgrade."""
    digest = sha256()
    for names, weights, size in _pools(count):
        digest.update(hash_ring(names, weights, size).astype("<u4").tobytes())
    assert digest.hexdigest()[:32] == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_of_equal_scores_the_first_member_and_the_first_slot_are_best(pairs):
    """Both ways to find the best, whichever is quicker for a shape."""
    for repeat in (1, 200):
        rows = [[a for a, _ in pairs], [b for _, b in pairs], [1] * len(pairs)]
        scores = np.array(rows, np.uint32).repeat(repeat, axis=1)
        best, lowest = _best(scores)
        assert best.tolist() == scores.argmin(axis=0).tolist()
        assert lowest.tolist() == scores.min(axis=0).tolist()


def test_rings_are_the_same_in_several_threads():
    pools = [([f"10.0.{turn}.{i}" for i in range(10)], [1] * 10, 4_096) for turn in range(40)]
    alone = [hash_ring(*pool).tobytes() for pool in pools]
    with ThreadPoolExecutor(4) as threads:
        assert [ring.tobytes() for ring in threads.map(lambda pool: hash_ring(*pool), pools)] == alone


@given(st.integers(2, 60), st.data())
@settings(max_examples=50, deadline=None)
def test_a_member_that_comes_or_goes_moves_at_most_two_and_a_half_times_its_share(count, data):
    many = dict.fromkeys((f"10.0.0.{i}:80" for i in range(count)), 1)
    few = many | {data.draw(st.sampled_from(list(many))): 0}
    for before, after in ((many, few), (few, many)):
        moved, least = moved_and_least(build(before), build(after))
        assert moved <= 2.5 * least


@given(pools, st.data())
@settings(max_examples=50, deadline=None)
def test_a_change_of_one_weight_moves_little_beyond_the_change_of_shares(weights, data):
    name = data.draw(st.sampled_from(list(weights)))
    changed = weights | {name: data.draw(st.sampled_from([0, 1, 50, 10**6]))}
    if not sum(changed.values()):
        return
    moved, least = moved_and_least(build(weights, 4_096), build(changed, 4_096))
    assert moved <= 2.5 * least + 2 * len(weights)


@pytest.mark.parametrize(("count", "most"), [(100, 1.35), (1_000, 4.5)])
def test_the_loss_of_a_member_of_a_large_ring_moves_few_slots(count, most):
    """Averages: plain Maglev moves 1.6 and 6.8 times as many as were lost."""
    weights = dict.fromkeys((f"10.0.{i >> 8}.{i & 255}:80" for i in range(count)), 1)
    ring = build(weights, 65_537)
    results = [moved_and_least(ring, build(weights | {name: 0}, 65_537)) for name in list(weights)[:: count // 4]]
    assert sum(moved for moved, _ in results) <= most * sum(least for _, least in results)


def test_a_ring_has_64_slots_a_member_within_limits():
    assert [default_size(n) for n in (1, 64, 65, 100, 1_024, 10_000)] == [4_096, 4_096, 8_192, 8_192, 65_536, 65_536]
