# SPDX-License-Identifier: Apache-2.0
"""The flows that the data plane remembers because their slots are, or were, in transition.

Each is one 64-bit number, which bpf/remember.h describes. A flow that was silent for too long no longer counts, but
stays in its place until another flow needs it. Clients of services with affinity are remembered alike, and count for
nothing: who is forgotten gets any endpoint (bpf/affinity.h).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from reconciler.dataplane.layout import BOUND, REMEMBERED
from reconciler.dataplane.slots import STREAM_IDLE
from reconciler.kernel.port import Kernel

_ENDPOINT_SHIFT, _ENDPOINT_MASK = np.uint64(15), np.uint64(0x1FFFF)
_SEEN_SHIFT, _SEEN_MASK = np.uint64(2), np.uint64(0x1FFF)


def endpoints_in_use(kernel: Kernel, now: int) -> set[int]:
    """The numbers of the endpoints of all flows that still count. `now` is in the unit of `slots`."""
    flows = np.frombuffer(kernel.joined(REMEMBERED.name)[1], np.uint64)
    age = (np.uint64(now) - (flows >> _SEEN_SHIFT)) & _SEEN_MASK
    counting = (flows != 0) & (age <= STREAM_IDLE)
    return set(np.unique(flows[counting] >> _ENDPOINT_SHIFT & _ENDPOINT_MASK).tolist())


def forget(kernel: Kernel, endpoints: Collection[int]) -> None:
    """Remove all flows and clients of these endpoints, whose numbers go to other endpoints."""
    for spec in (REMEMBERED, BOUND):
        keys, values = kernel.joined(spec.name)
        buckets = np.frombuffer(values, np.uint64).reshape(-1, spec.value_size // 8)
        theirs = np.isin(buckets >> _ENDPOINT_SHIFT & _ENDPOINT_MASK, list(endpoints)) & (buckets != 0)
        size, rows = spec.key_size, []
        for number in np.flatnonzero(theirs.any(axis=1)).tolist():
            left = np.where(theirs[number], np.uint64(0), buckets[number])
            rows.append((keys[number * size : (number + 1) * size], left.tobytes()))
        kernel.update(spec.name, rows)
