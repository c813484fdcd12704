# SPDX-License-Identifier: Apache-2.0
"""Weights from rings: the smallest ones that lead to exactly the same slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from reconciler import model
from reconciler.kinds.endpoint import EndpointRow
from reconciler.kinds.ring import Ring, build
from reconciler.limits import default_size
from reconciler.model import Algorithm

MAX_WEIGHT = 1000
MAX_TRIES = 40  # of one ring: several sets of weights fit its shares, and each try builds a ring, which may be large

Weights = dict[str, int]


def weights_of(rings: Sequence[Ring], rows: Mapping[str, EndpointRow]) -> tuple[Weights, bool]:
    """The weights of a pool's members, and whether they lead to exactly the same rings.

    Members without a row are left out.
    """
    members = sorted({member for ring in rings for member in ring.members} & rows.keys())
    # Round-robin rings hold exact proportions, hash rings only rounded ones: so the former come first.
    ordered = sorted(rings, key=lambda ring: ring.algorithm is not Algorithm.ROUND_ROBIN)
    guesses = [guess for ring in ordered if ring.members for guess in _guesses(ring)] or [{}]
    for guess in guesses:
        weights = {member: guess.get(member, 1) for member in members}
        if all(_rebuild(ring, weights, rows) == ring for ring in rings):
            return weights, True
    return {member: guesses[0].get(member, 1) for member in members}, False


def _guesses(ring: Ring) -> Iterator[Weights]:
    counts = np.bincount(ring.array, minlength=len(ring.members))
    exact = counts // np.gcd.reduce(counts)
    guesses = list(islice(_rounded(counts), MAX_TRIES))
    if exact.max() <= MAX_WEIGHT:
        guesses.insert(0 if ring.algorithm is Algorithm.ROUND_ROBIN else len(guesses), exact)
    for weights in guesses or [np.maximum(counts * MAX_WEIGHT // counts.max(), 1)]:
        yield dict(zip(ring.members, weights.tolist(), strict=True))


def _rounded(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Small weights that lead to these counts of slots, smallest first.

    A count is up to one slot away from the exact share, so several weights may lead to it.
    """
    size, top = int(counts.sum()), int(counts.max())
    for highest in range(1, MAX_WEIGHT + 1):
        for offset in (0, -0.5, 0.5):
            weights = np.maximum(np.rint((counts + offset) * (highest / (top + offset))).astype(np.int64), 1)
            if np.abs(weights * (size / weights.sum()) - counts).max() < 1:
                yield weights


def _rebuild(ring: Ring, weights: Weights, rows: Mapping[str, EndpointRow]) -> Ring:
    endpoints = tuple(
        model.Endpoint(rows[member].address, rows[member].port or None, weight) for member, weight in weights.items()
    )
    pool, _, algorithm = ring.name.rpartition("/")
    return build(model.Pool(pool, endpoints, ring_size=ring_size([ring])), Algorithm(algorithm))


def ring_size(rings: Sequence[Ring]) -> int | None:
    """The `ringSize` of a pool with these rings, None if they have the default size."""
    hashed = [r for r in rings if r.members and r.algorithm is not Algorithm.ROUND_ROBIN]
    return next((r.array.size for r in hashed if default_size(len(r.members)) % r.array.size), None)
