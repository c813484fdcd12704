# SPDX-License-Identifier: Apache-2.0
"""Which endpoint a new connection goes to: rings of slots, built from weights alone.

A ring is an array of member numbers. It depends on the members and their weights only, never on what the
ring was before, so every balancer builds the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.uint32]

MAX_TURNS = 65_536
"""Slots of the longest round of turns; longer ones are scaled down, at the cost of exact weights."""

MIN_HASH_SLOTS = 4_096


def turns(weights: Sequence[int]) -> Slots:
    """One round of weighted turns: member i comes `weights[i]` times (reduced), as evenly spread as can be.

    The k-th turn of a member with weight w is due at (k + ½) / w; turns are taken in the order they are due.
    """
    total = sum(weights)
    if not total:
        return np.zeros(0, np.uint32)
    divisor = gcd(*weights)
    if total // divisor > MAX_TURNS:
        counts = np.maximum(_quotas(weights, MAX_TURNS), np.minimum(weights, 1))
    else:
        counts = np.array(weights) // divisor
    members = np.repeat(np.arange(len(weights)), counts)
    ordinal = np.arange(len(members)) - np.repeat(np.cumsum(counts) - counts, counts)
    due = (ordinal + 0.5) / counts[members]
    return members[np.lexsort((members, due))].astype(np.uint32)


def hash_ring(names: Sequence[str], weights: Sequence[int]) -> Slots:
    """Slots for a hash to fall into, each member within one slot of its weight's share.

    Slots and members are matched by score, highest first, until a member's share is full. Scores depend on
    the pair alone, so a member that comes or goes moves little more than its own share. This is the stable
    matching of Gale and Shapley (1962) with quotas, found by raising each full member's lowest score.
    """
    if not sum(weights):
        return np.zeros(0, np.uint32)
    size = max(MIN_HASH_SLOTS, 1 << (16 * len(names) - 1).bit_length())
    quotas = _quotas(weights, size)
    seeds = np.array([_seed(name) for name in names], np.uint64)
    slots = np.arange(size, dtype=np.uint64)
    owner = np.full(size, -1, np.int64)
    score = np.zeros(size, np.uint64)
    floor = np.where(quotas > 0, np.uint64(0), np.uint64(2**64 - 1))
    while (free := np.flatnonzero(owner < 0)).size:
        for chunk in np.array_split(free, -(-free.size * len(names) // 4_000_000)):
            scores = _mix(slots[chunk][:, None] * np.uint64(0x9E3779B97F4A7C15) ^ seeds[None, :])
            scores[scores <= floor] = 0
            owner[chunk] = scores.argmax(axis=1)
            score[chunk] = scores.max(axis=1)
        for member in np.flatnonzero(np.bincount(owner, minlength=len(names)) > quotas):
            mine = np.flatnonzero(owner == member)
            rejected = mine[np.argsort(score[mine])[: mine.size - quotas[member]]]
            floor[member] = score[rejected].max()
            owner[rejected] = -1
    return owner.astype(np.uint32)


def shares(slots: Slots, members: int) -> NDArray[np.float64]:
    """The share of slots that each member holds, 0 to 1."""
    return np.bincount(slots, minlength=members) / max(1, slots.size)


def _quotas(weights: Sequence[int], size: int) -> NDArray[np.int64]:
    """Whole shares of `size` slots that add up to it: the largest remainders get what rounding leaves."""
    total = sum(weights)
    exact = [(weight * size) // total for weight in weights]
    left = size - sum(exact)
    for i in sorted(range(len(weights)), key=lambda i: (-(weights[i] * size % total), i))[:left]:
        exact[i] += 1
    return np.array(exact, np.int64)


def _seed(name: str) -> int:
    """A number that depends on a member's name alone, the same on every machine."""
    import hashlib

    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
