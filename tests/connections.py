# SPDX-License-Identifier: Apache-2.0
"""Connections of NAT in the map of any kernel, for those who read them all and look none up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reconciler import clock
from reconciler.dataplane.connections import Pair, entry, unit_of
from reconciler.dataplane.layout import CONNECTIONS, ConnectionState
from reconciler.dataplane.rows import Number
from reconciler.kernel.port import Kernel

TCP, UDP = 6, 17


def connection(
    number: int, state: ConnectionState = ConnectionState.OPEN, *, endpoint: int = 1, service: int = 0,
    silence: int = 0, protocol: int = TCP,
) -> Pair:  # fmt: skip
    """The connection of client 10.9.0.0 and so many further, port 40000; `silence` is in units of the table."""
    seen = (unit_of(clock.now_ns()) - silence) % 2048
    return entry((10 << 24 | 9 << 16) + number, 40_000, protocol, state, seen, endpoint=endpoint, service=service)


def put(kernel: Kernel, pairs: Sequence[Pair]) -> None:
    """Make the table hold these connections, four in a bucket."""
    for start in range(0, len(pairs), 4):
        words = np.zeros((2, 4), np.uint64)
        for place, pair in enumerate(pairs[start : start + 4]):
            words[:, place] = pair
        key = CONNECTIONS.key.pack(Number(start // 4))
        assert kernel.update(CONNECTIONS.name, [(key, words.tobytes())]) == [None]
