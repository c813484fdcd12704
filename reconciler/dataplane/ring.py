# SPDX-License-Identifier: Apache-2.0
"""Which endpoint a new connection goes to: rings of slots, built from weights alone.

A ring is an array of member numbers. It depends on the members and their weights only, never on the
former ring, so every balancer builds the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import gcd

import numpy as np
from numpy.typing import NDArray

from reconciler.limits import default_size

Slots = NDArray[np.uint32]
Scores = NDArray[np.float32]

MAX_TURNS = 65_536
"""Slots of the longest round of turns; longer rounds are scaled down, and weights are then approximate."""

CHUNK = 1 << 16
"""Scores computed at a time: few enough to stay in the cache of a processor."""


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


def hash_ring(names: Sequence[str], weights: Sequence[int], size: int = 0) -> Slots:
    """Slots for a hash to fall into: `size` of them, or `default_size` if that is 0.

    Every member has its ideal share, rounded down or up to a whole number of slots. The holder of a slot depends
    on the names, the ratios of the weights and the size, not on any order, and is the same on every machine.

    Slots and members are the two sides of a stable matching (Gale and Shapley 1962) with quotas. Both prefer
    the pair of the lower score, and a score depends on the pair and the member's weight alone. As long as
    nobody is full this is weighted rendezvous hashing (Thaler and Ravishankar 1998; Schindelhauer and
    Schomaker 2005). A member that comes or goes moves its own slots and, because shares are exact, some that
    give way to them: of 65,537 slots, the loss of 1 in 100 equal members moves 1.3 times what it held, of
    1 in 1,000 some 4 times (Maglev 1.6 and 6.8 times).
    """
    active = sorted((i for i, weight in enumerate(weights) if weight), key=lambda i: names[i])
    if not active:
        return np.zeros(0, np.uint32)
    divisor = gcd(*weights)
    ratios = [weights[i] // divisor for i in active]
    owner = _match([names[i] for i in active], ratios, size or default_size(len(active)))
    return np.array(active, np.uint32)[owner]


def _match(names: Sequence[str], weights: Sequence[int], size: int) -> NDArray[np.intp]:
    """The member that each slot is matched to, by deferred acceptance in rounds. All weights are above 0.

    A free slot turns to the best of the members that would not refuse it. A member refuses slots beyond
    its quota. It may hold one slot more if its share is not whole, but only `spare` members may: those whose
    extra slots have the best scores. A member that has refused a score never takes that or a worse one.
    """
    total = sum(weights)
    quota = np.array([weight * size // total for weight in weights])
    fraction = np.array([weight * size % total > 0 for weight in weights])
    spare = size - int(quota.sum())
    score_of = _scores(names, weights, size)
    owner = np.zeros(size, np.intp)
    score = np.zeros(size, np.float32)
    refused = np.full(len(names), np.inf, np.float32)
    extra = np.full(len(names), -1)
    free = np.arange(size)
    while free.size:
        for chunk in np.array_split(free, -(-free.size * len(names) // CHUNK)):
            scores = score_of(chunk)
            scores[scores >= refused] = np.inf
            owner[chunk] = scores.argmin(axis=1)
            score[chunk] = scores[np.arange(chunk.size), owner[chunk]]
        # Only a member that slots turned to in this round can refuse some; the slots of others need no sorting.
        held = np.bincount(owner, minlength=len(names))
        held[(held <= quota) | (np.bincount(owner[free], minlength=len(names)) == 0)] = 0
        slots = np.flatnonzero(held[owner])
        slots = slots[np.lexsort((score[slots], owner[slots]))]
        holder = owner[slots]
        beyond = np.arange(slots.size) - (np.cumsum(held) - held + quota)[holder]
        # A member whose share is not whole may keep the best slot beyond its quota: number 0.
        extra[holder[beyond == 0]] = slots[beyond == 0]
        extra[~fraction] = -1
        candidates = np.flatnonzero(extra >= 0)
        losers = candidates[np.argsort(score[extra[candidates]], kind="stable")[spare:]]
        free = np.concatenate((slots[beyond >= fraction[holder]], extra[losers]))
        extra[losers] = -1
        np.minimum.at(refused, owner[free], score[free])
    return owner


def _scores(names: Sequence[str], weights: Sequence[int], size: int) -> Callable[[NDArray[np.intp]], Scores]:
    """A function from slots to their scores with every member: positive, exponential with a rate of its weight.

    Only operations that IEEE 754 rounds exactly are used, so no machine differs; hence no logarithm, but its
    Padé approximant -ln(1 - u) ≈ u(6 - u) / (6 - 4u). The quotas correct its error.
    """
    seeds = np.array([_seed(name) for name in names], np.uint64)
    factor = (seeds >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    offset = seeds.astype(np.uint32)
    slot_hash = _mix(np.arange(size, dtype=np.uint32))
    scale = (1 / np.array(weights, np.float64)).astype(np.float32)

    def scores(slots: NDArray[np.intp]) -> Scores:
        u = _mix(slot_hash[slots, None] * factor + offset).astype(np.float32)
        u *= np.float32(2**-32)
        divisor = u * np.float32(-4)
        divisor += np.float32(6)
        result = np.float32(6) - u
        result *= u
        result /= divisor
        result *= scale
        return result

    return scores


def shares(slots: Slots, members: int) -> NDArray[np.float64]:
    """The share of slots that each member holds, 0 to 1."""
    return np.bincount(slots, minlength=members) / max(1, slots.size)


def _quotas(weights: Sequence[int], size: int) -> NDArray[np.int64]:
    """Whole shares that add up to `size` slots: slots left over by rounding go to the largest remainders."""
    total = sum(weights)
    exact = [(weight * size) // total for weight in weights]
    left = size - sum(exact)
    for i in sorted(range(len(weights)), key=lambda i: (-(weights[i] * size % total), i))[:left]:
        exact[i] += 1
    return np.array(exact, np.int64)


def _seed(name: str) -> int:
    """A number that depends on a member's name alone, the same on every machine."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Mix in place, so that every bit depends on every other (Wellons 2018, "lowbias32")."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x
