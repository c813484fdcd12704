# SPDX-License-Identifier: Apache-2.0
"""Addresses and ports of clients as text, a million in less than half a second.

Each character has a place of its own in a line of fixed width; what an address doesn't need of it is left zero and
taken out of all lines at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 15
"""Lines that are made together; they stay in the processor's cache."""
_GROUPS = 8
_COLON = ord(":")

_LINE = np.dtype([("octets", "V4", 4), ("port", "V6")])
_LINE6 = np.dtype([
    ("open", "S1"), ("groups", [("colon", np.uint8), ("digits", "V4")], _GROUPS), ("rest", np.uint8), ("close", "S2"),
    ("port", "V6"),
])  # fmt: skip


def ipv4(addresses: NDArray[np.uint32], ports: NDArray[np.uint16]) -> list[str]:
    """Like 10.1.0.2:40000."""
    return [text for some in _parts(addresses.size) for text in _lines(_of_ipv4(addresses[some], ports[some]))]


def ipv6(addresses: NDArray[np.uint64], ports: NDArray[np.uint16]) -> list[str]:
    """Like [2001:db8::1]:40000, as RFC 5952 has it. `addresses` are upper and lower halves; no upper one is zero: some
    of those are written as addresses of IPv4 are."""
    return [text for some in _parts(len(addresses)) for text in _lines(_of_ipv6(addresses[some], ports[some]))]


def _parts(count: int) -> Iterator[slice]:
    return (slice(first, first + _AT_ONCE) for first in range(0, count, _AT_ONCE))


def _lines(of: NDArray[np.void]) -> list[str]:
    return of.tobytes().translate(None, b"\0").decode("ascii").splitlines()


def _of_ipv4(addresses: NDArray[np.uint32], ports: NDArray[np.uint16]) -> NDArray[np.void]:
    lines = np.zeros(addresses.size, _LINE)
    octets = addresses.astype(">u4").view(np.uint8).reshape(-1, 4)
    lines["octets"][:, :3] = _texts("{}.", 1 << 8, 4)[octets[:, :3]]
    lines["octets"][:, 3] = _texts("{}:", 1 << 8, 4)[octets[:, 3]]
    lines["port"] = _texts("{}\n", 1 << 16, 6)[ports]
    return lines


def _of_ipv6(addresses: NDArray[np.uint64], ports: NDArray[np.uint16]) -> NDArray[np.void]:
    groups = addresses.astype(">u8").view(">u2").reshape(-1, _GROUPS).astype(np.uint16)
    first, length = _zeros(groups)
    numbers = np.arange(_GROUPS)
    is_left_out = (numbers >= first[:, None]) & (numbers < (first + length)[:, None])
    lines = np.zeros(len(groups), _LINE6)
    lines["open"], lines["close"] = b"[", b"]:"
    lines["port"] = _texts("{}\n", 1 << 16, 6)[ports]
    digits = _texts("{:x}", 1 << 16, 4).view(np.uint32)[groups]
    digits[is_left_out] = 0
    lines["groups"]["digits"] = digits.view("V4")
    # Before each group but the first; of those that are left out one stays, which the next group's follows.
    has_colon = ~is_left_out
    has_colon[:, 0] = False
    has_colon |= is_left_out & (numbers == first[:, None])
    lines["groups"]["colon"] = has_colon * np.uint8(_COLON)
    lines["rest"] = is_left_out[:, -1] * np.uint8(_COLON)
    return lines


def _zeros(groups: NDArray[np.uint16]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The longest run of zeros in each address: where the first of them begins, and its length; 0 if it is one group
    alone, which is written (RFC 5952, section 4.2)."""
    runs = np.zeros((len(groups), _GROUPS + 1), np.intp)
    for number in reversed(range(_GROUPS)):
        runs[:, number] = (runs[:, number + 1] + 1) * (groups[:, number] == 0)
    length = runs.max(axis=1)
    return runs.argmax(axis=1), np.where(length > 1, length, 0)


@cache
def _texts(form: str, count: int, width: int) -> NDArray[Any]:
    """The numbers below `count` as text, each so many bytes wide; zeros follow where it is shorter."""
    return np.array([form.format(number) for number in range(count)], f"S{width}").view(f"V{width}")
