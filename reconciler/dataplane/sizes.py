# SPDX-License-Identifier: Apache-2.0
"""How many rows the maps have room for, and what that takes.

A node's `capacity` says how much the node may have to hold; what it leaves out grows with what the manifests ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from reconciler.dataplane.description import specs_of
from reconciler.dataplane.layout import MapSpec, MapType
from reconciler.limits import Sizes, power_of_two

PLACES = 8
"""Flows that a bucket of `remembered` has room for: one line of a processor's cache."""
PLACES_A_FLOW = 5
"""Room for so many times the flows that a node is made for, at least: flows fall into buckets by chance. With four
times the room, 14 of 100,000 flows find their bucket full; with five times, 3."""
MOST_KNOWN = 4_096
"""Services that each CPU keeps at hand, 256 kB."""
FEWEST_BUCKETS = 131_072
"""8 MB."""
BITS_A_LINE = 512
BITS_AN_ENDPOINT = 8
"""Of the filter of their addresses: with as many endpoints as there is room for, it lets 12 of 100 other addresses
pass."""
CONNECTIONS_A_BUCKET = 4
"""That a bucket of `connections` has room for, one line of a processor's cache; and one of `connections6`, two."""
RETURNS_A_BUCKET = 8
"""That a bucket of `returns` has room for."""
RETURNS_A_PLACE = 1.6
"""Of fullnat. A flood fills every place, and who finds no room for its return is refused: with as many returns as
places that are two of three, with 1.6 times as many 5 of 100,000."""
FLOWS_A_POOL, FEWEST_POOLS, MOST_POOLS = 512, 256, 1 << 15
"""Ports of fullnat: there is room for a pool for each so many flows; each takes 33 kB."""
PLACES_A_CONNECTION = 2.5
"""Of NAT, in all buckets together, so that one takes 40 bytes, and one of IPv6 80. Each family has a table of its own,
with room for all the flows that a node is made for: which of the two its clients use is theirs to say. Each connection
may be in either of two buckets: when 300,000 of 300,000 are open, 3 in a million find both full."""


def _rows(sizes: Sizes) -> int:
    return sizes.services


def _known(sizes: Sizes) -> int:
    return min(sizes.services, MOST_KNOWN)


def _numbers(sizes: Sizes) -> int:
    return sizes.endpoints + 1  # number 0 is never used


def _filter_lines(sizes: Sizes) -> int:
    return max(1, _numbers(sizes) * BITS_AN_ENDPOINT // BITS_A_LINE)


def _connections(sizes: Sizes) -> int:
    return max(1, math.ceil(sizes.flows * PLACES_A_CONNECTION / CONNECTIONS_A_BUCKET))


def _returns(sizes: Sizes) -> int:
    return max(1, math.ceil(sizes.flows * PLACES_A_CONNECTION * RETURNS_A_PLACE / RETURNS_A_BUCKET))


def _pools(sizes: Sizes) -> int:
    return min(MOST_POOLS, max(FEWEST_POOLS, sizes.flows // FLOWS_A_POOL))


def _buckets(sizes: Sizes) -> int:
    return max(FEWEST_BUCKETS, power_of_two(sizes.flows * PLACES_A_FLOW // PLACES))


_SIZED: Mapping[str, Callable[[Sizes], int]] = {
    **dict.fromkeys(("services", "services6", "vips", "vips6", "service_counters", "fronts"), _rows),
    **dict.fromkeys(("endpoints", "endpoints6", "endpoint_counters", "unanswered", "served", "loads"), _numbers),
    "endpoint_filter": _filter_lines,
    "known_services": _known,
    **dict.fromkeys(("connections", "connections6", "translated", "translated6"), _connections),
    **dict.fromkeys(("returns", "returns6"), _returns),
    **dict.fromkeys(("port_pools", "port_pools6", "pool_ports", "pool_sources6"), _pools),
    **dict.fromkeys(("remembered", "bound"), _buckets),
}
"""The maps that a capacity sizes. All others have the size that the layout says."""


def capacity_of(spec: MapSpec, sizes: Sizes) -> int:
    """How many rows a map has room for."""
    sized = _SIZED.get(spec.name)
    return sized(sizes) if sized else spec.capacity


def memory_bytes(sizes: Sizes, features: Collection[str], cpus: int) -> int:
    """About as much memory as the maps of a program take when they are full."""
    return sum(_bytes(spec, capacity_of(spec, sizes), cpus) for spec in specs_of(features))


def _bytes(spec: MapSpec, rows: int, cpus: int) -> int:
    key, value = -(-spec.key_size // 8) * 8, -(-spec.value_size // 8) * 8
    match spec.type:
        case MapType.HASH | MapType.LRU_HASH:
            # struct htab_elem of kernel/bpf/hashtab.c, and a bucket for each row, rounded up to a power of two
            return rows * (48 + key + value) + 16 * power_of_two(rows)
        case MapType.PERCPU_ARRAY:
            return rows * (8 + value * cpus)
        case MapType.CPU_ARRAY:
            return rows * value * cpus
        case _:
            return rows * value
