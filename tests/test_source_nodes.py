# SPDX-License-Identifier: Apache-2.0
"""Lists of sources in nodes of 256 bits, held against `ipaddress`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dataplane.source_nodes import Nodes, canonical, has_outside, levels_of, networks_of, nodes_of
from reconciler.model import Address, Prefix


def _network(number: int, length: int, width: int) -> Prefix:
    base = number >> (width - length) << (width - length) if length else 0
    return ip_network((base.to_bytes(width // 8), length))


def networks(version: int, fewest: int = 0) -> st.SearchStrategy[list[Prefix]]:
    """Of any length, half of them close together so that they overlap and touch."""
    width = 32 if version == 4 else 128
    far = st.integers(0, 2**width - 1)
    near = st.integers(0, 2**12 - 1).map(lambda low: (0x0A << (width - 8)) | low << (width - 24))
    one = st.builds(_network, far | near, st.integers(0, width), st.just(width))
    short = st.builds(_network, near, st.integers(width - 12, width), st.just(width))
    return st.lists(one | short, min_size=fewest, max_size=30)


def holds(nodes: Nodes, address: Address) -> bool:
    """What the program does: one look-up for each level that is in use."""
    content = address.packed
    return any(
        levels_of(nodes) >> level & 1 and nodes.get((level, int.from_bytes(content[:level])), 0) >> content[level] & 1
        for level in range(len(content))
    )


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
@settings(deadline=None)
def test_nodes_hold_the_addresses_of_the_networks_and_no_others(version: int, data: st.DataObject) -> None:
    found = data.draw(networks(version))
    nodes = nodes_of(canonical(found))
    width = 32 if version == 4 else 128
    edges = [int(end) + step for n in found for end in (n[0], n[-1]) for step in (-1, 0, 1)]
    type_ = IPv4Address if version == 4 else IPv6Address
    for number in [*edges, *data.draw(st.lists(st.integers(0, 2**width - 1), max_size=10))]:
        if 0 <= number < 2**width:
            address = type_(number)
            assert holds(nodes, address) == any(address in network for network in found)
    assert networks_of(nodes, version) == canonical(found)


@settings(deadline=None)
@given(one=networks(4), other=networks(4), six=networks(6), six_too=networks(6))
def test_what_is_outside_is_found(
    one: list[Prefix], other: list[Prefix], six: list[Prefix], six_too: list[Prefix]
) -> None:
    first, second = canonical(one + six), canonical(other + six_too)
    joined = canonical([*first, *second])
    assert has_outside(first, second) == (joined != second)


def test_a_few_short_networks_cost_no_level() -> None:
    """A list of a few large and many small networks takes one look-up an address."""
    many = [ip_network(f"11.{n // 256}.{n % 256}.0/24") for n in range(0, 4096, 2)]
    assert levels_of(nodes_of(canonical([ip_network("10.0.0.0/12"), *many]))) == 0b100
    # But everybody else in nodes of a deep level would take too many.
    assert levels_of(nodes_of(canonical([ip_network("128.0.0.0/1"), ip_network("10.0.0.1/32")]))) == 0b1001
