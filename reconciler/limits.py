# SPDX-License-Identifier: Apache-2.0
"""How much one node can hold.

`capacity` of a Node sizes the maps (dataplane/sizes.py), up to what is possible at all; what it leaves out grows with
the manifests, from the sizes that are enough for most. `config/rules` checks manifests against the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

SERVICES = 16_384
"""Pairs of a VIP and a port, of both families of IP together: each has counters. Enough for most."""
MOST_SERVICES = 262_144

ENDPOINTS = 131_071
"""Addresses with a port. A slot of a ring has 17 bits for the number of an endpoint, and 0 stands for none."""
FEWEST_ENDPOINTS = 16_383
"""Enough for most."""

FLOWS = 131_072
"""Connections of NAT, and flows that are remembered in a transition. Enough for most."""
MOST_FLOWS = 16_777_216

SOURCE_LISTS = 65_535
"""Different lists of allowed sources. A row of a service has 16 bits for the number of one, and 0 stands for none."""
SOURCE_NODES = 524_288
"""Of the lists of all services, for each family of IP. A list of networks that lie far apart has one for each."""

MEMBERS = 524_288
"""Endpoints of pools whose services have affinity. One in several pools, or with several algorithms, counts for
each."""

RINGS = 16_383
"""Pairs of a pool and an algorithm."""

MIN_HASH_SLOTS = 4_096
MAX_HASH_SLOTS = 65_536


def default_size(members: int) -> int:
    """Slots of a hash ring without `ringSize`: 64 for each member, rounded to a power of two from 4,096 to 65,536."""
    return min(MAX_HASH_SLOTS, max(MIN_HASH_SLOTS, 1 << (64 * members - 1).bit_length()))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pairs of a VIP and a port; endpoints; connections of NAT, which are as many flows remembered in a transition."""

    services: int = SERVICES
    endpoints: int = ENDPOINTS
    flows: int = FLOWS

    def __str__(self) -> str:
        return f"{self.services}/{self.endpoints}/{self.flows}"

    def at_least(self, other: Sizes) -> Sizes:
        """The larger one of each."""
        return Sizes(*(max(getattr(self, key.name), getattr(other, key.name)) for key in fields(self)))


def grown(need: int, floor: int, most: int) -> int:
    """The capacity that is made for a need: the smallest power of two with a quarter to spare, from `floor` to
    `most`."""
    return min(most, max(floor, power_of_two(need + need // 4)))


def power_of_two(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()
