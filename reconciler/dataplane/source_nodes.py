# SPDX-License-Identifier: Apache-2.0
"""Lists of sources as the program looks them up: networks in nodes of 256 bits (bpf/allow.h).

A node of level n stands for all addresses with the same first n bytes, and has a bit for each value of the next byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, summarize_address_range
from itertools import pairwise

Network = IPv4Network | IPv6Network

_BITS = 8
_ALL = (1 << (1 << _BITS)) - 1
_SPARE_NODES = 1_024
"""So many nodes more than needed may be written, and as many again as are needed, to spare the program a level."""

Nodes = Mapping[tuple[int, int], int]
"""By level and first bytes, as a number: which values of the next byte are in the list, a bit for each."""


def canonical(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The fewest networks that hold the same addresses, sorted, IPv4 first."""
    found: dict[int, list[Network]] = {4: [], 6: []}
    for network in networks:
        found[network.version].append(network)
    ipv4 = collapse_addresses([n for n in found[4] if isinstance(n, IPv4Network)])
    ipv6 = collapse_addresses([n for n in found[6] if isinstance(n, IPv6Network)])
    return (*ipv4, *ipv6)


def nodes_of(networks: Iterable[Network]) -> Nodes:
    """The nodes of networks of one family, none of which holds another. Few levels: a network that is short goes to a
    deeper level as long as that takes few nodes."""
    by_level: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for network in networks:
        level = max(network.prefixlen - 1, 0) // _BITS
        by_level[level].append((int(network.network_address) >> network.max_prefixlen - network.prefixlen,
                                network.prefixlen))  # fmt: skip
    nodes: dict[tuple[int, int], int] = {}
    levels = sorted(by_level)
    spare = _SPARE_NODES + sum(map(len, by_level.values()))
    for level, deeper in pairwise(levels):
        need = sum(1 << _BITS * deeper - length for _, length in by_level[level])
        if need <= spare:
            spare -= need
            by_level[deeper] += by_level.pop(level)
    for level, some in by_level.items():
        for number, length in some:
            missing = _BITS * level - length  # a network that is shorter than what a node stands for takes many nodes
            if missing >= 0:
                nodes |= dict.fromkeys(((level, number << missing | n) for n in range(1 << missing)), _ALL)
                continue
            rest = _BITS + missing  # bits of the next byte that the network leaves open
            first = (number << rest) & 0xFF
            key = level, number >> -missing
            nodes[key] = nodes.get(key, 0) | ((1 << (1 << rest)) - 1) << first
    return nodes


def levels_of(nodes: Nodes) -> int:
    """A bit for each level that has nodes."""
    levels = 0
    for level in {level for level, _ in nodes}:
        levels |= 1 << level
    return levels


def networks_of(nodes: Nodes, version: int) -> tuple[Network, ...]:
    """The reverse of `nodes_of`: the fewest networks that hold these addresses."""
    width = 32 if version == 4 else 128
    ranges: list[tuple[int, int]] = []
    for (level, number), bits in nodes.items():
        unit = width - _BITS * (level + 1)  # bits behind the byte
        start = 0
        while left := bits >> start:
            start += _zeros(left)
            run = _zeros(~(bits >> start))
            first = (number << _BITS | start) << unit
            ranges.append((first, first + (run << unit) - 1))
            start += run
    found: list[Network] = []
    for first, last in ranges:
        if version == 4:
            found += summarize_address_range(IPv4Address(first), IPv4Address(last))
        else:
            found += summarize_address_range(IPv6Address(first), IPv6Address(last))
    return canonical(found)


def _zeros(number: int) -> int:
    """The zeros behind the last one of a number."""
    return (number & -number).bit_length() - 1


def has_outside(networks: Iterable[Network], others: Iterable[Network]) -> bool:
    """Whether some address of the first networks is in none of the others; both are canonical."""
    for version in (4, 6):
        rest = [(int(n[0]), int(n[-1])) for n in others if n.version == version]
        place = 0
        for network in (n for n in networks if n.version == version):
            first, last = int(network[0]), int(network[-1])
            while place < len(rest) and rest[place][1] < first:
                place += 1
            # A network of canonical ones is never spread over several others: those would have been joined.
            if place == len(rest) or not rest[place][0] <= first <= last <= rest[place][1]:
                return True
    return False
