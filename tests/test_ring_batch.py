# SPDX-License-Identifier: Apache-2.0
"""Rings that are built together are those that are built one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dataplane import ring, ring_batch
from reconciler.dataplane.ring import hash_ring
from reconciler.dataplane.ring_batch import hash_rings

weights = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 10**6)), min_size=1, max_size=12)
recipes = st.lists(
    st.tuples(weights, st.sampled_from((1, 2, 7, 64, 100, 1_024)), st.integers(0, 999)), min_size=1, max_size=12
)


def _recipe(weights, size, start):
    return [f"10.0.{start}.{i}:80" for i in range(len(weights))], weights, size


def _assert_alike(found):
    for recipe, built in zip(found, hash_rings(found), strict=True):
        assert np.array_equal(built, hash_ring(*recipe)), recipe


@given(recipes)
@settings(max_examples=150, deadline=None)
def test_rings_built_together_are_those_built_one_by_one(found):
    _assert_alike([_recipe(*recipe) for recipe in found] * 2)


@pytest.mark.parametrize("deviations", [0.1, 0.5, 1])
def test_where_more_is_refused_than_was_kept_the_ring_is_built_alone(deviations, monkeypatch):
    monkeypatch.setattr(ring_batch, "_DEVIATIONS", deviations)
    # Weights of one member in a thousand make the others turn to it late, and many times.
    _assert_alike([_recipe([1 + (n * i) % 7 * 50 for i in range(9)], 512, n) for n in range(40)])


@pytest.mark.parametrize("bits", [4, 9, 14])
def test_equal_scores_are_told_apart_alike(bits, monkeypatch):
    exact = ring.scores_of

    def coarse(*arguments):
        scores = exact(*arguments)
        scores &= np.uint32(((1 << bits) - 1) << (31 - bits))
        return scores

    monkeypatch.setattr(ring, "scores_of", coarse)
    monkeypatch.setattr(ring_batch, "scores_of", coarse)
    _assert_alike([_recipe([1 + (n + i) % 4 for i in range(2 + n % 5)], 64 << n % 3, n) for n in range(90)])


def test_members_in_any_order_without_weight_and_in_large_numbers_are_built_too():
    names = ["10.0.0.9:80", "10.0.0.1:80", "10.0.0.5:80"]
    large = [f"10.1.{i >> 8}.{i & 255}" for i in range(300)]
    some = [(names, [3, 1, 2], 0), (names, [0, 1, 2], 0), (names, [0, 0, 0], 0), ([], [], 0), (large, [1] * 300, 7)]
    _assert_alike([*some, *some])
