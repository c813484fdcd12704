# SPDX-License-Identifier: Apache-2.0
"""Many clients as text at once are those that they are one by one."""

from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from numpy.typing import NDArray

from reconciler.readings import client_text

PORTS = np.array([0, 7, 80, 443, 8080, 65_535], np.uint16)


def ports(count: int) -> NDArray[np.uint16]:
    return np.resize(PORTS, count)


def halves(numbers: list[int]) -> NDArray[np.uint64]:
    return np.array([divmod(number, 1 << 64) for number in numbers], np.uint64).reshape(-1, 2)


def test_addresses_of_ipv4() -> None:
    numbers = np.random.default_rng(4).integers(0, 1 << 32, 70_000, dtype=np.uint32)
    numbers[:4] = 0, 1, 0x0A010002, 0xFFFFFFFF
    of = ports(numbers.size)
    expected = [f"{IPv4Address(number)}:{port}" for number, port in zip(numbers.tolist(), of.tolist(), strict=True)]
    assert client_text.ipv4(numbers, of) == expected


@pytest.mark.parametrize("digits", ["1", "f", "10", "abc", "ffff"])
def test_zeros_of_ipv6_are_left_out_once_and_where_most_follow_each_other(digits: str) -> None:
    """Each of the eight groups is a zero, or it is not: in all ways."""
    groups = [[int(digits, 16) * (which >> place & 1) for place in range(8)] for which in range(256)]
    whole = [int("".join(f"{group:04x}" for group in each), 16) for each in groups if any(each[:4])]
    of = ports(len(whole))
    expected = [f"[{IPv6Address(number)}]:{port}" for number, port in zip(whole, of.tolist(), strict=True)]
    assert client_text.ipv6(halves(whole), of) == expected


def test_addresses_of_ipv6_that_are_more_than_are_made_at_once() -> None:
    numbers = [0x2001_0DB8 << 96 | number * 0x9E37_79B9_7F4A_7C15 for number in range(70_000)]
    of = ports(len(numbers))
    expected = [f"[{IPv6Address(number)}]:{port}" for number, port in zip(numbers, of.tolist(), strict=True)]
    assert client_text.ipv6(halves(numbers), of) == expected


def test_no_clients() -> None:
    assert client_text.ipv4(np.zeros(0, np.uint32), ports(0)) == client_text.ipv6(halves([]), ports(0)) == []
