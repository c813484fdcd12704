# SPDX-License-Identifier: Apache-2.0
"""Which endpoint a new connection goes to: rings of slots, built from weights alone.

A ring is an array of member numbers. It depends on the members and their weights only, never on the
former ring, so every balancer builds the same one.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from math import gcd, prod
from threading import local

import numpy as np
from numpy.typing import NDArray

from reconciler.limits import default_size

Slots = NDArray[np.uint32]
Scores = NDArray[np.uint32]

MAX_TURNS = 65_536
"""Slots of the longest round of turns; longer rounds are scaled down, and weights are then approximate."""

CHUNK = 1 << 16
"""Scores computed at a time: few enough to stay in the cache of a processor."""

_NEVER = np.uint32(0xFFFFFFFF)
"""Worse than every score: a member that has refused a slot."""

_SCORE, _SLOT = np.uint64(32), np.uint64(0xFFFFFFFF)
"""A claim of a slot on a member is one number, so that claims sort as one: the score, above the number of the slot."""


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
    quota = [weight * size // total for weight in weights]
    limit = [whole + (weight * size % total > 0) for whole, weight in zip(quota, weights, strict=True)]
    spare = size - sum(quota)
    score_of = _scores(names, weights, size)
    owner = np.empty(size, np.intp)
    claims = np.arange(size, dtype=np.uint64)
    step = max(1, CHUNK // len(names))
    for first in range(0, size, step):
        all_of = slice(first, first + step)
        owner[all_of], score = _best(score_of(all_of))
        claims[all_of] |= score << _SCORE
    held = _held(owner, claims, len(names))
    refused = np.full((len(names), 1), _NEVER)
    extra: dict[int, int] = {}
    turned_to: Collection[int] = range(len(names))
    while True:
        free: list[int] = []
        # Only a member that slots turned to in this round can refuse some.
        for member in turned_to:
            own, most = held[member], limit[member]
            if len(own) > most:
                refused[member] = own[most] >> 32
                free += own[most:]
                del own[most:]
            if len(own) > quota[member]:
                extra[member] = own[-1]
        if len(extra) > spare:
            for rank, member in sorted((claim >> 32, member) for member, claim in extra.items())[spare:]:
                refused[member] = rank
                free.append(held[member].pop())
                del extra[member]
        if not free:
            return owner
        turned_to = set()
        for first in range(0, len(free), step):
            slots = np.array([claim & 0xFFFFFFFF for claim in free[first : first + step]])
            scores = score_of(slots)
            scores[scores >= refused] = _NEVER
            best, score = _best(scores)
            owner[slots] = best
            for slot, member, rank in zip(slots.tolist(), best.tolist(), score.tolist(), strict=True):
                insort(held[member], rank << 32 | slot)
                turned_to.add(member)


def _held(owner: NDArray[np.intp], claims: NDArray[np.uint64], members: int) -> list[list[int]]:
    """The claims on each member, if it holds all that turned to it; sorted, the best first."""
    claims = np.sort(claims)
    # Numbers of few bits are sorted digit by digit, which is quick.
    by_claim = owner.astype(np.min_scalar_type(members))[(claims & _SLOT).astype(np.intp)]
    ordered = claims[by_claim.argsort(kind="stable")].tolist()
    ends = np.bincount(owner, minlength=members).cumsum().tolist()
    return [ordered[start:end] for start, end in pairwise((0, *ends))]


def _best(scores: Scores) -> tuple[NDArray[np.integer], Scores]:
    """The member of the lowest score of each slot, the first one of equals, and that score."""
    lowest: Scores = scores.min(axis=0)
    if not _is_wide(*scores.shape):
        return scores.argmin(axis=0), lowest
    # The same, but quicker: the number of each member, or 255 where its score isn't the lowest.
    numbers = (scores == lowest).view(np.uint8)
    numbers -= np.uint8(1)
    numbers |= np.arange(len(scores), dtype=np.uint8)[:, None]
    return numbers.min(axis=0), lowest


def _is_wide(members: int, slots: int) -> bool:
    """Whether the scores of one member are better next to each other in memory than those of one slot."""
    return slots > 32 * members


def _scores(names: Sequence[str], weights: Sequence[int], size: int) -> Callable[[NDArray[np.intp] | slice], Scores]:
    """A function from slots to their scores with every member, a row a member: positive, exponential with a rate of
    the member's weight.

    Only operations that IEEE 754 rounds exactly are used, so no machine differs; hence no logarithm, but its
    Padé approximant -ln(1 - u) ≈ u(6 - u) / (6 - 4u). The quotas correct its error. All is in units of 2⁻³². A score
    is the bits of a float32: as none is negative, they are in the same order as the numbers.
    """
    seeds = seeds_of(names)[:, None]
    factor = (seeds >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    offset = seeds.astype(np.uint32)
    slot_hash = slot_hashes(size)
    scale = (1 / np.array(weights, np.float64)).astype(np.float32)[:, None]

    def scores(slots: NDArray[np.intp] | slice) -> Scores:
        hashes = slot_hash[slots]
        return scores_of(hashes, factor, offset, scale, _memory.pair(len(names), hashes.size))

    if size * len(names) > CHUNK:
        return scores
    known = scores(slice(None))
    return lambda slots: known[:, slots] if isinstance(slots, slice) else known.take(slots, axis=1)


def scores_of(
    hashes: NDArray[np.uint32], factor: NDArray[np.uint32], offset: NDArray[np.uint32], scale: NDArray[np.float32],
    memory: tuple[Scores, Scores] | None = None,
) -> Scores:  # fmt: skip
    """The scores of slots with these hashes and members of these numbers, in the shape of them all; in the first part
    of `memory`, if that is given."""
    shape = np.broadcast_shapes(hashes.shape, factor.shape)
    x, rest = memory or _memory.shaped(shape)
    np.multiply(hashes, factor, out=x)
    x += offset
    _mix(x, rest)
    result, u = x.view(np.float32), rest.view(np.float32)
    u[...] = x
    np.subtract(np.float32(6 * 2**32), u, out=result)
    result *= u
    u *= np.float32(-4)
    u += np.float32(6 * 2**32)
    result /= u
    if not (scale == 1).all():
        result *= scale
    return x


class _Memory(local):
    """Where a thread computes scores. Fresh memory for each would cost more time than the sums, as the kernel clears
    it."""

    def __init__(self) -> None:
        self._held = np.empty((2, 0), np.uint32)

    def pair(self, members: int, slots: int) -> tuple[Scores, Scores]:
        """Two arrays of a row a member, good until somebody asks for the next ones."""
        if _is_wide(members, slots):
            return self.shaped((members, slots))
        one, other = self.shaped((slots, members))
        return one.T, other.T

    def shaped(self, shape: tuple[int, ...]) -> tuple[Scores, Scores]:
        """Two arrays of this shape, good until somebody asks for the next ones."""
        size = prod(shape)
        if self._held.shape[1] < size:
            self._held = np.empty((2, max(CHUNK, size)), np.uint32)
        one, other = self._held[:, :size]
        return one.reshape(shape), other.reshape(shape)


_memory = _Memory()


@lru_cache(maxsize=8)
def slot_hashes(size: int) -> NDArray[np.uint32]:
    """A number for each slot."""
    slots = np.arange(size, dtype=np.uint32)
    _mix(slots, np.empty_like(slots))
    return slots


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


def seeds_of(names: Iterable[str]) -> NDArray[np.uint64]:
    """For each member a number that depends on its name alone, the same on every machine."""
    joined = b"".join([blake2b(name.encode(), digest_size=8).digest() for name in names])
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def _mix(x: NDArray[np.uint32], rest: NDArray[np.uint32]) -> None:
    """Mix in place, so that every bit depends on every other (Wellons 2018, "lowbias32"). `rest` is overwritten."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        np.right_shift(x, np.uint32(shift), out=rest)
        x ^= rest
        if factor != 1:
            x *= np.uint32(factor)
