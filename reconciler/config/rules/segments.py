# SPDX-License-Identifier: Apache-2.0
"""The networks that a node is attached to, as ranges of numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from reconciler.model import Address, InterfaceAddress, Node

IPV6 = 1 << 32
"""The number of the IPv6 address `::`, see `number`."""
BEHIND_IPV6 = IPV6 + (1 << 128)

Range = tuple[int, int]
"""The first and the last number of a range."""


def number(address: Address) -> int:
    """An address as a number. IPv6 lies above IPv4, so that addresses and networks of both families can be
    sorted, and found, in one list."""
    return int(address) if type(address) is IPv4Address else IPV6 + int(address)


@dataclass(frozen=True, slots=True)
class Segment:
    """A network that a node has an address in. `interface` and `index` say where the address was written."""

    first: int
    last: int
    interface: int
    index: int
    address: InterfaceAddress


def segments(node: Node) -> list[Segment]:
    """One for each address that is declared for the node, except for addresses of a single link."""
    return [
        Segment(number(address.network[0]), number(address.network[-1]), i, j, address)
        for i, interface in enumerate(node.interfaces)
        for j, address in enumerate(interface.addresses)
        if not address.is_link_local
    ]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same numbers as sorted ranges that don't overlap."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def near(node: Node, own: Sequence[Segment]) -> list[Range]:
    """The ranges of addresses that are, or may be, in the networks of a node; `own` are its segments. If the node
    declares no address of a family, any address of the family may be; if an interface declares none, any address at
    all."""
    if not all(interface.addresses for interface in node.attached):
        return [(0, BEHIND_IPV6)]
    ranges = [(segment.first, segment.last) for segment in own]
    if all(first >= IPV6 for first, _ in ranges):
        ranges.append((0, IPV6 - 1))
    if all(first < IPV6 for first, _ in ranges):
        ranges.append((IPV6, BEHIND_IPV6))
    return merged(ranges)


def outside(numbers: Sequence[int], ranges: Sequence[Range]) -> list[int]:
    """The sorted numbers without those in any of the ranges, which are sorted and don't overlap."""
    found: list[int] = []
    begin = 0
    for first, last in ranges:
        found += numbers[begin : bisect_left(numbers, first, begin)]
        begin = bisect_right(numbers, last, begin)
    return [*found, *numbers[begin:]]


def count_inside(numbers: Sequence[int], first: int, last: int) -> int:
    """How many of the sorted numbers are in a range."""
    return bisect_right(numbers, last) - bisect_left(numbers, first)


def inside(number: int, ranges: Sequence[Range]) -> bool:
    """Whether a number is in one of the ranges, which are sorted and don't overlap."""
    place = bisect_right(ranges, (number, BEHIND_IPV6)) - 1
    return place >= 0 and number <= ranges[place][1]
