# SPDX-License-Identifier: Apache-2.0
"""The memory of flows in other sizes: every flow is where a program of that size looks for it."""

import numpy as np
import pytest

from reconciler.dataplane.flow_memory import homes, place_for, resized

PLACES = 8


def table(count, flows, rng):
    """A table that holds flows by the lower bits of their hashes, and the hashes of those that found a place."""
    buckets = np.zeros((count, PLACES), np.uint64)
    kept = []
    for hash_ in rng.integers(1 << 32, 1 << 63, flows, dtype=np.uint64).tolist():
        free = np.flatnonzero(buckets[hash_ % count] == 0)
        if free.size:
            buckets[hash_ % count, free[0]] = hash_ >> 32 << 32 | 7
            kept.append(hash_)
    return buckets, kept


def finds(buckets, hash_):
    return ((buckets[hash_ % len(buckets)] >> np.uint64(32)) == hash_ >> 32).any()


@pytest.mark.parametrize("count", [64, 128, 1024])
def test_in_a_larger_table_every_flow_is_found(count):
    buckets, kept = table(64, 300, np.random.default_rng(1))
    larger = resized(buckets, count)
    assert larger.shape == (count, PLACES)
    assert all(finds(larger, hash_) for hash_ in kept)


def test_in_a_smaller_table_every_flow_is_found_that_there_is_room_for():
    buckets, kept = table(1024, 200, np.random.default_rng(2))
    smaller = resized(buckets, 256)
    assert all(finds(smaller, hash_) for hash_ in kept)


def test_where_there_is_no_room_open_flows_stay_and_among_these_the_last_seen():
    buckets = np.zeros((2, PLACES), np.uint64)
    buckets[0] = [n << 32 | 5 << 2 | 3 for n in range(1, 9)]
    buckets[1] = [9 << 32 | 9 << 2 | 3, 10 << 32 | 9 << 2 | 1, 11 << 32 | 1 << 2 | 3, 0, 0, 0, 0, 0]
    (left,) = resized(buckets, 1)
    kept = {int(flow) >> 32 for flow in left}
    assert len(kept) == PLACES
    assert 9 in kept, "open, and seen last"
    assert kept.isdisjoint({10, 11}), "one has sent nothing but SYNs, the other was silent for longest"


@pytest.mark.parametrize(("size", "count"), [(64, 64), (64, 256), (256, 64)])
def test_the_homes_of_a_bucket_are_those_that_its_flows_are_copied_to(size, count):
    buckets = np.zeros((size, PLACES), np.uint64)
    buckets[5, 0] = 77 << 32 | 3
    (found,) = np.nonzero(resized(buckets, count).any(axis=1))
    assert list(homes(5, size, count)) == found.tolist()


def test_a_flow_takes_the_place_of_what_it_was_or_a_free_one_or_none():
    bucket = np.array([1 << 32 | 3, 2 << 32 | 3, 0, 0, 0, 0, 0, 0], np.uint64)
    assert place_for(bucket, 2 << 32 | 3, 2 << 32 | 8 | 3) == 1
    assert place_for(bucket, 0, 3 << 32 | 3) == 2
    assert place_for(bucket, 0, 2 << 32 | 8 | 3) is None, "the new program knows it already"
    assert place_for(np.full(8, 9 << 32, np.uint64), 0, 3 << 32 | 3) is None
    assert place_for(bucket, 2 << 32 | 3, 0) == 1, "it is taken out"
    assert place_for(bucket, 4 << 32 | 3, 0) is None, "the new program has removed it already, or knows it better"
