# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of ranges, against the plain definitions."""

from ipaddress import ip_address, ip_interface
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reconciler.config.rules.segments import count_inside, inside, merged, near, number, outside, segments
from reconciler.model import Interface, Node

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda r: (r[0], r[0] + r[1])), max_size=6)
NUMBERS = st.lists(st.integers(0, 50), max_size=30).map(sorted)


def within(value, ranges):
    return any(first <= value <= last for first, last in ranges)


@given(RANGES)
def test_merged_ranges_hold_the_same_numbers_and_keep_apart(ranges):
    found = merged(ranges)
    assert [value for value in range(60) if within(value, found)] == [v for v in range(60) if within(v, ranges)]
    assert all(first[1] + 1 < second[0] for first, second in pairwise(found))


@given(NUMBERS, RANGES)
def test_outside_and_inside_are_opposites(numbers, ranges):
    apart = merged(ranges)
    assert outside(numbers, apart) == [value for value in numbers if not within(value, ranges)]
    assert [value for value in numbers if not inside(value, apart)] == outside(numbers, apart)


@given(NUMBERS, st.integers(0, 50), st.integers(0, 50))
def test_count_inside(numbers, first, last):
    expected = sum(first <= value <= last for value in numbers)
    assert count_inside(numbers, first, last) == (expected if first <= last else 0) or first > last


@given(st.lists(st.ip_addresses(), max_size=10))
def test_families_never_share_a_number(addresses):
    numbers = {number(address) for address in addresses}
    assert len(numbers) == len(set(addresses))
    v4 = [number(address) for address in addresses if address.version == 4]
    v6 = [number(address) for address in addresses if address.version == 6]
    assert not v4 or not v6 or max(v4) < min(v6)


def attached(*addresses):
    node = Node("lb1", (Interface("eth0", addresses=tuple(map(ip_interface, addresses))),))
    return near(node, segments(node))


def test_of_a_family_without_an_address_nothing_is_known():
    ranges = attached("10.1.0.1/24")
    assert inside(number(ip_address("10.1.0.255")), ranges)
    assert not inside(number(ip_address("10.1.1.0")), ranges)
    assert inside(number(ip_address("2001:db8::1")), ranges)
    assert not inside(number(ip_address("2001:db8::1")), attached("2001:db8:1::1/64"))


def test_link_local_networks_are_no_networks_of_endpoints():
    assert inside(number(ip_address("2001:db8::1")), attached("fe80::1/64"))
