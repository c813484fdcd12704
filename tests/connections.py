# SPDX-License-Identifier: Apache-2.0
"""Connections of NAT in the map of any kernel, for those who read them all and look none up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import numpy as np

from reconciler import clock
from reconciler.dataplane.connections import Pair, entry, unit_of
from reconciler.dataplane.layout import CONNECTION_MAPS, ConnectionState, MapSpec
from reconciler.dataplane.rows import Number
from reconciler.kernel.port import Kernel

TCP, UDP, SCTP = 6, 17, 132


def connection(
    number: int, state: ConnectionState = ConnectionState.OPEN, *, endpoint: int = 1, service: int = 0,
    silence: int = 0, protocol: int = TCP, version: int = 4,
) -> Pair:  # fmt: skip
    """The connection of client 10.9.0.0 or 2001:db8:9:: and so many further, port 40000; `silence` is in units of the
    table."""
    seen = (unit_of(clock.now_ns()) - silence) % 2048
    client = ip_address({4: "10.9.0.0", 6: "2001:db8:9::"}[version]) + number
    return entry(client, 40_000, protocol, state, seen, endpoint=endpoint, service=service)


def put(
    kernel: Kernel, pairs: Sequence[Pair], version: int = 4, maps: Mapping[int, MapSpec] = CONNECTION_MAPS
) -> None:
    """Make a table hold these connections, four in a bucket."""
    spec = maps[version]
    for start in range(0, len(pairs), 4):
        words = np.zeros(spec.value_size // 8, np.uint64)
        for place, (who, where, *address) in enumerate(pairs[start : start + 4]):
            words[[place, 4 + place]] = who, where
            words[8 + 2 * place : 8 + 2 * place + len(address)] = address
        key = spec.key.pack(Number(start // 4))
        assert kernel.update(spec.name, [(key, words.tobytes())]) == [None]
