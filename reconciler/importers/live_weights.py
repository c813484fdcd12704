# SPDX-License-Identifier: Apache-2.0
"""Weights from rings: the smallest ones that lead to exactly the same slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from reconciler import model
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.ring import IN_TURNS, Ring, build, slots_of
from reconciler.limits import default_size
from reconciler.model import Algorithm

MAX_WEIGHT = 1000
MAX_TRIES = 40  # of one ring: several sets of weights fit its shares, and each try builds a ring, which may be large

Weights = dict[str, int]


def weights_of(rings: Sequence[Ring], rows: Mapping[str, EndpointRow]) -> tuple[Weights, bool]:
    """The weights of a pool's members, and whether they lead to exactly the same rings.

    Members without a row are left out.
    """
    first: Weights | None = None
    for weights in _tries(rings, rows):
        if all(_rebuild(ring, weights, rows) == ring for ring in rings):
            return weights, True
        first = first or weights
    return first or {}, False


def build_first_tries(pools: Iterable[Sequence[Ring]], rows: Mapping[str, EndpointRow]) -> None:
    """Build what `weights_of` is going to look at first for each of these pools, a few hundred at most: all together
    take a fraction of the time."""
    tries = ((rings, next(_tries(rings, rows))) for rings in pools)
    slots_of([_rebuild(ring, weights, rows) for rings, weights in tries for ring in rings])


def _tries(rings: Sequence[Ring], rows: Mapping[str, EndpointRow]) -> Iterator[Weights]:
    """Weights that may lead to these rings, the likeliest first. At least one of them."""
    members = sorted({member for ring in rings for member in ring.members} & rows.keys())
    # Rings of turns hold exact proportions, hash rings only rounded ones: so the former come first.
    ordered = sorted(rings, key=lambda ring: ring.algorithm not in IN_TURNS)
    guesses = chain.from_iterable(_guesses(ring) for ring in ordered if ring.members)
    first = next(guesses, {})
    yield from ({member: guess.get(member, 1) for member in members} for guess in chain([first], guesses))


def _guesses(ring: Ring) -> Iterator[Weights]:
    for weights in _counted(ring):
        yield dict(zip(ring.members, weights.tolist(), strict=True))


def _counted(ring: Ring) -> Iterator[NDArray[np.int64]]:
    """Weights of the members. Each takes time to find, and mostly the first ones are right."""
    counts = np.bincount(ring.array, minlength=len(ring.members))
    exact = counts // np.gcd.reduce(counts)
    is_exact = exact.max() <= MAX_WEIGHT
    if is_exact and ring.algorithm in IN_TURNS:
        yield exact
    rounded = islice(_rounded(counts), MAX_TRIES)
    first = next(rounded, None)
    if first is not None:
        yield first
        yield from rounded
    if is_exact and ring.algorithm not in IN_TURNS:
        yield exact
    elif first is None and not is_exact:
        yield np.maximum(counts * MAX_WEIGHT // counts.max(), 1)


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
    hashed = [r for r in rings if r.members and r.algorithm not in IN_TURNS]
    return next((r.array.size for r in hashed if default_size(len(r.members)) % r.array.size), None)
