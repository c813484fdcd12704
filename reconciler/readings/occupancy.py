# SPDX-License-Identifier: Apache-2.0
"""How full the maps of a node are: rows in use beside those that there is room for.

Rows are counted where they lie, as bytes: none is decoded, so 100,000 of them take milliseconds. Left out are maps
whose rows belong to those of another one (counters, turns), and the table of NAT's connections, which tells of itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reconciler.dataplane.layout import (
    BOUND,
    ENDPOINTS,
    GATEWAYS,
    MEMBERS,
    PORT_POOLS,
    PORT_POOLS6,
    REMEMBERED,
    RING_CHUNKS,
    RINGS,
    SERVED,
    SERVICES,
    SERVICES6,
    SOURCE_LISTS,
    SOURCES,
    SOURCES6,
    UNPACKED,
    VIPS,
    VIPS6,
    VLANS,
    MapSpec,
    MapType,
)
from reconciler.kernel.port import Kernel

_COUNTED: tuple[MapSpec, ...] = (
    SERVICES, SERVICES6, VIPS, VIPS6, ENDPOINTS, RINGS, RING_CHUNKS, MEMBERS, SOURCES, SOURCES6, SOURCE_LISTS, VLANS,
    GATEWAYS, UNPACKED, SERVED, PORT_POOLS, PORT_POOLS6,
)  # fmt: skip
_PLACES = REMEMBERED.value_size // 8
"""Flows in a bucket of the table of remembered flows, or clients in one of affinity."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Rows of a map; of the tables of remembered flows and of clients, places for one."""

    map: str
    used: int
    most: int


def occupancy(kernel: Kernel) -> Iterator[Occupancy]:
    """How full each map is that the node has. Raises KernelError."""
    for spec in _COUNTED:
        if room := kernel.capacity(spec.name):
            yield Occupancy(spec.name, _used(kernel, spec), room)
    for spec in (REMEMBERED, BOUND):
        words = kernel.words(spec.name)
        if words is not None:
            yield Occupancy(spec.name, int(np.count_nonzero(words)), kernel.capacity(spec.name) * _PLACES)


def _used(kernel: Kernel, spec: MapSpec) -> int:
    if spec.type == MapType.ARRAY_OF_MAPS:
        return len(kernel.dump(spec.name))
    keys, values = kernel.joined(spec.name)
    if spec.type == MapType.HASH:
        return len(keys) // spec.key_size
    return int(np.frombuffer(values, np.uint8).reshape(-1, spec.value_size).any(axis=1).sum())
