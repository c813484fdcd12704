# SPDX-License-Identifier: Apache-2.0
"""The memory of flows in another size. bpf/remember.h describes it; that of clients is alike (bpf/affinity.h).

A flow's bucket is the lower bits of its hash, as many as it takes to count the buckets, and the flow does not hold
these bits. In a table of twice the size it may belong into either of two buckets, so it gets a place in both. Nothing
ever finds the wrong one, which is given away when it was silent for long enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Buckets = NDArray[np.uint64]
"""A row of places for each bucket."""

FINGERPRINT_SHIFT = np.uint64(32)
_STATE, _SEEN = np.uint64(0x3), np.uint64(0x7FFC)
_BOUND_SEEN = np.uint64(0x7FFF)


def of_flows(words: Buckets) -> Buckets:
    """The claims of flows to their places: see `worth` in bpf/remember.h."""
    return (words & _STATE) << np.uint64(16) | (words & _SEEN)


def of_clients(words: Buckets) -> Buckets:
    """Those of clients, for affinity: see bpf/affinity.h."""
    return words & _BOUND_SEEN


def resized(buckets: Buckets, count: int, claims: Callable[[Buckets], Buckets] = of_flows) -> Buckets:
    """The flows of a table in a table of `count` buckets; both numbers are powers of two."""
    size, places = buckets.shape
    if count >= size:
        return np.tile(buckets, (count // size, 1))
    together = buckets.reshape(size // count, count, places).swapaxes(0, 1).reshape(count, -1)
    # Whoever has the better claim stays.
    best = np.argsort(claims(together), axis=1, kind="stable")[:, -places:]
    return np.take_along_axis(together, best, axis=1)


def homes(bucket: int, size: int, count: int) -> range:
    """The buckets of a table of `count` into which flows of a bucket may belong, if there are `size` where it is."""
    return range(bucket % count, count, min(size, count))


def place_for(bucket: Buckets, former: int, flow: int) -> int | None:
    """The place of a bucket for a flow that was `former` when the bucket was filled; None if it has one or there is
    none. `flow` 0 takes the former one out."""
    if former:
        same = np.flatnonzero(bucket == np.uint64(former))
        if same.size:
            return int(same[0])
    if not flow or (bucket >> FINGERPRINT_SHIFT == np.uint64(flow) >> FINGERPRINT_SHIFT).any():
        return None
    free = np.flatnonzero(bucket == 0)
    return int(free[0]) if free.size else None
