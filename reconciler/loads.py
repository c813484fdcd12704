# SPDX-License-Identifier: Apache-2.0
"""How many connections endpoints have, for least-connections: counted in the table, now and then.

The program notes what begins and what ends (bpf/load.h), but nobody sees a connection end in silence, and a program
that takes over has to begin with something. So the table is counted, slice by slice, and what the program notes counts
from the moment at which that began.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reconciler import connections
from reconciler.dataplane.layout import LOADS, ConnectionState
from reconciler.kernel.port import Kernel

ROW_WORDS, WEIGHT_WORD = 2, 1
"""Words of 64 bits in a row; the first has both numbers, the second the weight."""
_SINCE, _COUNTED = np.uint64(0xFFFF_FFFF), np.uint64(32)
_TRIES = 8


def loads(kernel: Kernel) -> NDArray[np.int32]:
    """How many connections each endpoint has, by number, as the program sees it; empty if no algorithm asks for it."""
    words = kernel.words(LOADS.name)
    if words is None:
        return np.zeros(0, np.int32)
    both = words[::ROW_WORDS]
    return (both + (both >> _COUNTED)).astype(np.uint32).view(np.int32)


def recount(kernel: Kernel, buckets_at_once: int) -> Iterator[None]:
    """Have the numbers of all endpoints agree with the table again. Whoever waits, waits for one slice at most."""
    words = kernel.words(LOADS.name)
    if words is None:
        return
    before = words[::ROW_WORDS] & _SINCE
    counts = np.zeros(before.size, np.uint64)
    for entries in connections.slices(kernel, buckets_at_once):
        numbers = entries.endpoints[entries.states != ConnectionState.OVER]
        counts += np.bincount(numbers[numbers < counts.size], minlength=counts.size).astype(np.uint64)
        yield
    counted = counts - before & _SINCE
    left = np.flatnonzero(words[::ROW_WORDS] >> _COUNTED != counted)
    for _ in range(_TRIES):  # the program notes something at the same instant, so a few have to be tried again
        seen = words[left * ROW_WORDS].copy()
        wanted = seen & _SINCE | counted[left] << _COUNTED
        swaps = zip((left * ROW_WORDS).tolist(), seen.tolist(), wanted.tolist(), strict=True)
        done = kernel.swap_words(LOADS.name, list(swaps))
        left = left[~np.array(done, np.bool_)]
        if not left.size:
            return


def forget(kernel: Kernel, numbers: list[int]) -> None:
    """Endpoints with these numbers are others from now on."""
    if kernel.words(LOADS.name) is not None:
        kernel.delete(LOADS.name, [LOADS.key.pack(LOADS.key.default._replace(number=number)) for number in numbers])
