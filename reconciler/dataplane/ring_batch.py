# SPDX-License-Identifier: Apache-2.0
"""Hash rings of many pools at once: the same as `ring.hash_ring` builds one by one, in a quarter of the time.

Pools with as many members and slots are matched together, round by round; what a round costs besides its sums is paid
once for all of them. Of each member only the worst claims are kept in order, as only these may be refused. Where more
of them are refused than were kept, the ring is built alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.ring import CHUNK, Slots, hash_ring, scores_of, seeds_of, slot_hashes
from reconciler.limits import default_size

Recipe = tuple[Sequence[str], Sequence[int], int]
"""Names, weights and the size that was asked for, or 0: as `hash_ring` takes them."""

_TOGETHER = 128
"""So many pools are matched together: more take memory that no cache holds."""
_SCORES = 3 * CHUNK
"""Scores of them computed at a time: with what they are computed in, they stay in the cache of a processor."""
_MOST_MEMBERS = 255
_MOST_SCORES = 4 * CHUNK
"""Larger pools gain nothing."""
_DEVIATIONS = 3.5
"""How many standard deviations more claims than it may hold a member is prepared to refuse."""
_KEPT = 48
"""The most claims of a member that are kept besides those."""
_SLOT_BITS = np.uint64(17)
_SLOT = np.uint64((1 << 17) - 1)
_MEMBER_SHIFT = np.uint64(48)
"""A claim is one number: the score above 17 bits of the slot; above both, where claims are sorted, the member."""
_CLAIM = np.uint64((1 << 48) - 1)
_NEVER = np.uint32(0xFFFFFFFF)
_NOBODYS = np.uint64(0)
"""Better than every claim: in the place of claims that are not kept, or not there."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Claims = NDArray[np.uint64]
Counts = NDArray[np.int64]


def hash_rings(recipes: Sequence[Recipe]) -> list[Slots]:
    """The ring of each recipe."""
    built: dict[int, Slots] = {}
    alike: dict[tuple[int, int], list[int]] = {}
    for place, (_, weights, size) in enumerate(recipes):
        members = len(weights)
        slots = size or default_size(members)
        if all(weights) and 0 < members <= _MOST_MEMBERS and members * slots <= _MOST_SCORES and slots <= _SLOT:
            alike.setdefault((members, slots), []).append(place)
    batches = [
        (places[first : first + _TOGETHER], slots) for (_, slots), places in alike.items() if len(places) > 1
        for first in range(0, len(places), _TOGETHER)
    ]  # fmt: skip
    made = _spread(lambda batch: _together([recipes[place][:2] for place in batch[0]], batch[1]), batches)
    for (places, _), rings in zip(batches, made, strict=True):
        built |= {place: ring for place, ring in zip(places, rings, strict=True) if ring is not None}
    return [built[i] if i in built else hash_ring(*recipe) for i, recipe in enumerate(recipes)]


def _spread(make: Callable[[_In], _Out], parts: Sequence[_In]) -> list[_Out]:
    """What is made of each part, on all CPUs that this process may use: nearly all of the time NumPy is at work, which
    needs no lock of the interpreter then."""
    workers = min(len(parts), len(os.sched_getaffinity(0)))
    if workers < 2:
        return list(map(make, parts))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(make, parts))


def _together(pools: Sequence[tuple[Sequence[str], Sequence[int]]], size: int) -> list[Slots | None]:
    """The rings of pools with as many members, all of a weight; None for those that must be built alone."""
    orders = [sorted(range(len(names)), key=names.__getitem__) for names, _ in pools]
    order = np.array(orders, np.uint32)
    weights = np.take_along_axis(np.array([weights for _, weights in pools], np.int64), order.astype(np.intp), 1)
    weights //= np.gcd.reduce(weights, axis=1)[:, None]
    names = [pool[0][i] for pool, indexes in zip(pools, orders, strict=True) for i in indexes]
    matching = _Matching(seeds_of(names).reshape(order.shape), weights, size)
    matching.claim_all()
    while matching.refuse():
        matching.turn()
    owner = matching.owner.reshape(len(pools), size)
    return [
        None if is_lost else members.take(held)
        for members, held, is_lost in zip(order, owner, matching.is_lost.tolist(), strict=True)
    ]


class _Matching:
    """The state of `ring._match` for many pools. Members are counted through all of them, slots too."""

    def __init__(self, seeds: NDArray[np.uint64], weights: Counts, size: int) -> None:
        self.size = size
        self.pools, self.members = weights.shape
        shares, rest = np.divmod(weights * size, weights.sum(axis=1)[:, None])
        self.spare = size - shares.sum(axis=1)
        self.quota, self.limit = shares.ravel(), (shares + (rest > 0)).ravel()
        self.factor = (seeds >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self.offset = seeds.astype(np.uint32)
        self.scale = (1 / weights.astype(np.float64)).astype(np.float32)
        self.hashes = slot_hashes(size)
        self.owner = np.empty(self.pools * size, np.uint8)
        self.refused = np.full(weights.shape, _NEVER)
        self.count = np.zeros(weights.size, np.int64)
        self.is_lost = np.zeros(self.pools, np.bool_)
        self.kept = np.zeros((weights.size, 0), np.uint64)
        """The worst claims on each member, the worst one last."""
        self.free = np.zeros(0, np.int64)
        """The slots that were refused."""

    def claim_all(self) -> None:
        """Each slot turns to the member that is best for it."""
        bounds, claims = self._kept_from()[:, None], []
        step = max(1, _SCORES // (self.members * self.size))
        for first in range(0, self.pools, step):
            some = slice(first, first + step)
            factor, offset, scale = self.factor[some, :, None], self.offset[some, :, None], self.scale[some, :, None]
            owner, scores = _best(scores_of(self.hashes, factor, offset, scale))
            self.owner[first * self.size : (first + step) * self.size] = owner.ravel()
            holders = owner + np.arange(0, len(owner) * self.members, self.members)[:, None]
            self.count[first * self.members : (first + step) * self.members] = np.bincount(
                holders.ravel(), minlength=len(owner) * self.members
            )
            places = np.flatnonzero(scores > bounds[some])
            pools = places // self.size
            kept = (owner.ravel()[places] + (first + pools) * self.members).astype(np.uint64) << _MEMBER_SHIFT
            kept |= scores.ravel()[places].astype(np.uint64) << _SLOT_BITS
            kept |= (places - pools * self.size).astype(np.uint64)
            kept.sort()
            claims.append(kept)
        self._hold(np.concatenate(claims))

    def _hold(self, claims: Claims) -> None:
        """Keep the worst claims on each member; these are among those given, which are sorted."""
        kept = np.bincount((claims >> _MEMBER_SHIFT).astype(np.intp), minlength=self.count.size)
        # The claims on a member are next to each other now, the worst one last.
        width = max(1, min(int(kept.max()), _KEPT + int((self.count - self.limit).max())))
        places = kept.cumsum()[:, None] + np.arange(-width, 0)
        is_own = places >= (kept.cumsum() - kept)[:, None]
        self.kept = np.zeros((kept.size, width), np.uint64)
        self.kept[is_own] = claims[places[is_own]] & _CLAIM

    def _kept_from(self) -> NDArray[np.uint32]:
        """For each pool the score that only claims are kept above: enough of them even for the member with the least
        slots, whose count is off by some of its square root."""
        fewest = self.quota.reshape(self.pools, self.members).min(axis=1)
        part = _DEVIATIONS / np.sqrt(np.maximum(fewest, 1))
        rates = (1 / self.scale).sum(axis=1)
        # The lowest of exponential scores is exponential, too, whoever has it, and the rates add up.
        bounds: NDArray[np.uint32] = (
            (-np.log(np.minimum(part, 1)) / rates * 2.0**32).astype(np.float32).view(np.uint32)
        )
        return bounds

    def refuse(self) -> bool:
        """Each member refuses what it can't hold. Returns whether any slot is free."""
        free = [self._refuse(np.flatnonzero(self.count > self.limit), self.limit)]
        has_extra = (self.count > self.quota).reshape(self.pools, self.members)
        crowded = np.flatnonzero(has_extra.sum(axis=1) > self.spare)
        if crowded.size:
            # Of the extra slots the best ones stay: by score, and of equal ones that of the first member.
            extra = self.kept[:, -1].reshape(self.pools, self.members)[crowded] >> _SLOT_BITS
            extra[~has_extra[crowded]] = _CLAIM
            rank = extra.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            goes = has_extra[crowded] & (rank >= self.spare[crowded, None])
            pool, member = goes.nonzero()
            free.append(self._refuse(crowded[pool] * self.members + member, self.quota))
        self.free = np.concatenate(free)
        return bool(self.free.size)

    def _refuse(self, members: Counts, most: Counts) -> Counts:
        """Members that hold more than `most` refuse the rest; the slots of these."""
        over = (self.count - most)[members]
        width = self.kept.shape[1]
        over = np.minimum(over, width)
        columns = np.arange(width)
        claims = self.kept[members]
        goes = columns >= (width - over)[:, None]
        gone = claims[goes]
        first = claims[np.arange(members.size), width - over]
        self.refused.ravel()[members] = (first >> _SLOT_BITS).astype(np.uint32)
        sources = columns - over[:, None]
        self.kept[members] = np.where(sources >= 0, np.take_along_axis(claims, np.maximum(sources, 0), 1), _NOBODYS)
        self.count[members] = most[members]
        self._lose(members[(self.kept[members, -1] == _NOBODYS) & (self.count[members] > 0) | (first == _NOBODYS)])
        pool = np.repeat(members // self.members, over)
        sound = gone != _NOBODYS
        slots: Counts = (pool * self.size + (gone & _SLOT).astype(np.int64))[sound]
        return slots

    def _lose(self, members: Counts) -> None:
        """The pools of these members must be built alone."""
        self.is_lost[members // self.members] = True

    def turn(self) -> None:
        """Each free slot turns to the best of the members that would not refuse it."""
        pool, slot = np.divmod(self.free, self.size)
        on = ~self.is_lost[pool]
        pool, slot, free = pool[on], slot[on], self.free[on]
        if not free.size:
            return
        of_pools = np.s_[:, pool]
        factor, offset, scale = self.factor.T[of_pools], self.offset.T[of_pools], self.scale.T[of_pools]
        scores = scores_of(self.hashes[slot], factor, offset, scale)
        np.copyto(scores, _NEVER, where=scores >= self.refused.T[:, pool])
        (best,), (score,) = _best(scores[None])
        self.owner[free] = best
        claim = (pool * self.members + best).astype(np.uint64) << _MEMBER_SHIFT
        claim |= score.astype(np.uint64) << _SLOT_BITS | slot.astype(np.uint64)
        claim.sort()
        member, claim = (claim >> _MEMBER_SHIFT).astype(np.intp), claim & _CLAIM
        first = np.flatnonzero(np.diff(member, prepend=-1))
        members, new = member[first], np.diff(first, append=member.size)
        former = self.count[members]
        self.count[members] += new
        # What is better than all kept claims, where not all are kept, is not kept either.
        width = self.kept.shape[1]
        kept = self.kept[members]
        number = np.arange(member.size) - np.repeat(first, new)
        row = np.repeat(np.arange(members.size), new)
        held = (kept != _NOBODYS).sum(axis=1)
        worse = np.where(held < former, kept[np.arange(members.size), np.minimum(width - held, width - 1)], _NOBODYS)
        joined = np.zeros((members.size, width + int(new.max())), np.uint64)
        joined[:, :width] = kept
        joined[row, width + number] = np.where(claim > worse[row], claim, _NOBODYS)
        joined.sort(axis=1)
        self.kept[members] = joined[:, -width:]


def _best(scores: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """The member of the lowest score of each slot, the first one of equals, and that score. There are few members."""
    lowest: NDArray[np.uint32] = scores.min(axis=1)
    numbers = (scores == lowest[:, None]).view(np.uint8)
    numbers -= np.uint8(1)
    numbers |= np.arange(scores.shape[1], dtype=np.uint8)[:, None]
    return numbers.min(axis=1), lowest
