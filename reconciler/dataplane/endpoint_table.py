# SPDX-License-Identifier: Apache-2.0
"""The maps `endpoints` and `endpoints6` as one table, to find endpoints by address and port among 100,000 rows.

An endpoint is three 64-bit words: port and address of IPv4, then the address of IPv6. A
hash of the three sorts out candidates; it may be the same for several endpoints, and whoever finds rows by it compares
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6, EndpointRowState

Words = NDArray[np.uint64]
Address = IPv4Address | IPv6Address
Joined = tuple[bytes, bytes]
"""All keys of a map and all its values, each joined."""

_NO_ADDRESS = bytes(4)
_FIRST = np.dtype([("port", "u2"), ("pad", "u2"), ("address", "V4")])
"""The first word of an endpoint."""
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
"""Odd, so that different rows of IPv4 have different hashes."""


@dataclass(frozen=True, slots=True, eq=False)
class EndpointTable:
    """The rows in use, by ascending number: they have a state and an address."""

    numbers: NDArray[np.uint32]
    states: NDArray[np.uint8]
    words: Words
    hashes: Words

    def rows_of(self, words: Words) -> NDArray[np.intp]:
        """The places of all rows that may be of these endpoints."""
        return np.flatnonzero(np.isin(self.hashes, hashes_of(words)))

    @property
    def is_retired(self) -> NDArray[np.bool_]:
        """Which rows no manifest asks for any more."""
        retired: NDArray[np.bool_] = self.states == EndpointRowState.RETIRED
        return retired

    def part(self, places: NDArray[np.intp]) -> EndpointTable:
        """The rows at these places."""
        return EndpointTable(self.numbers[places], self.states[places], self.words[places], self.hashes[places])

    def endpoints(self, places: NDArray[np.intp]) -> list[tuple[bytes, int]]:
        """Address and port of the rows at these places."""
        first = np.ascontiguousarray(self.words[places, 0]).view(_FIRST)
        wide = np.frombuffer(self.words[places, 1:].tobytes(), ENDPOINTS6.value.dtype["address"]).tolist()
        found = zip(first["address"].tolist(), wide, first["port"].tolist(), strict=True)
        return [(address6 if address == _NO_ADDRESS else address, port) for address, address6, port in found]

    def free_numbers(self, count: int, capacity: int) -> list[int]:
        """The lowest numbers below `capacity`, at most so many, that no row in use has; 0 is nobody's."""
        is_free = np.ones(capacity, np.bool_)
        is_free[0] = False
        is_free[self.numbers[self.numbers < capacity]] = False
        free: list[int] = np.flatnonzero(is_free)[:count].tolist()
        return free


class Index:
    """The rows of a table in the order of their hashes, to find endpoints among them; of rows of one endpoint, those
    that `is_last` marks come behind the others."""

    def __init__(self, rows: EndpointTable, is_last: NDArray[np.bool_]) -> None:
        self._rows = rows
        self._order = np.lexsort((is_last, rows.hashes))
        self._hashes = rows.hashes[self._order]

    def matches(self, words: Words, states: NDArray[np.uint8]) -> NDArray[np.intp]:
        """For each endpoint the place of its only row, if that is in the given state; else -1."""
        found = np.full(len(words), -1, np.intp)
        if not self._hashes.size:
            return found
        first, after = _found(self._hashes, hashes_of(words))
        alone = np.flatnonzero(after - first == 1)
        places = self._order[first[alone]]
        same = (self._rows.words[places] == words[alone]).all(axis=1) & (self._rows.states[places] == states[alone])
        found[alone[same]] = places[same]
        return found

    def numbers_of(self, words: Words) -> NDArray[np.uint32]:
        """For each endpoint the number of its first row. 0: no row."""
        found = np.zeros(len(words), np.uint32)
        if not self._hashes.size:
            return found
        first, after = _found(self._hashes, hashes_of(words))
        for step in range(int((after - first).max(initial=0))):  # more than one step for copies and equal hashes only
            open_ = np.flatnonzero((found == 0) & (first + step < after))
            places = self._order[first[open_] + step]
            same = (self._rows.words[places] == words[open_]).all(axis=1)
            found[open_[same]] = self._rows.numbers[places[same]]
        return found


def table(joined: Joined, joined6: Callable[[], Joined], of: Words | None = None) -> EndpointTable:
    """The table that both maps hold, or at least all rows `of` these endpoints. The second map, which is the larger
    one, is read only if a row refers to it."""
    numbers, rows = ENDPOINTS.key.array(joined[0])["number"], ENDPOINTS.value.array(joined[1])
    is_used = rows["state"] != EndpointRowState.FREE
    if of is not None:
        addresses = np.ascontiguousarray(rows["address"]).view(np.uint32)
        is_used &= np.isin(addresses, np.ascontiguousarray(of[:, 0]).view(_FIRST)["address"].copy().view(np.uint32))
    used = np.flatnonzero(is_used)
    used = used[np.argsort(numbers[used], kind="stable")]
    numbers, rows = numbers[used], rows[used]
    words = np.zeros((used.size, 3), np.uint64)
    first = np.zeros(used.size, _FIRST)
    first["port"], first["address"] = rows["port"], rows["address"]
    words[:, 0] = first.view(np.uint64)
    is_wide = np.ascontiguousarray(rows["address"]).view(np.uint32) == 0
    if is_wide.any():
        words[is_wide, 1:] = _wide_addresses(joined6(), numbers[is_wide])
    held = words.any(axis=1) & ~(is_wide & ~words[:, 1:].any(axis=1))  # else the row was damaged
    words = words[held]
    return EndpointTable(numbers[held], rows["state"][held], words, hashes_of(words))


def _wide_addresses(joined6: Joined, numbers: NDArray[np.uint32]) -> Words:
    """The addresses of IPv6 of these numbers; zeros where there is none."""
    held = ENDPOINTS6.key.array(joined6[0])["number"]
    addresses = np.zeros((max(held.max(initial=0), numbers.max()) + 1, 2), np.uint64)
    addresses[held] = np.frombuffer(joined6[1], np.uint64).reshape(-1, 2)
    return addresses[numbers]


def words_of(addresses: Sequence[Address], ports: Sequence[int]) -> Words:
    """The words of endpoints, a line for each."""
    first = np.zeros(len(addresses), _FIRST)
    first["port"] = ports
    is_wide = np.array([type(address) is IPv6Address for address in addresses], np.bool_)
    numbers = [0 if type(address) is IPv6Address else int(address) for address in addresses]
    first["address"] = np.array(numbers, ">u4").view("V4")
    words = np.zeros((first.size, 3), np.uint64)
    words[:, 0] = first.view(np.uint64)
    if is_wide.any():
        wide = b"".join(address.packed for address in addresses if type(address) is IPv6Address)
        words[is_wide, 1:] = np.frombuffer(wide, np.uint64).reshape(-1, 2)
    return words


def addresses_of(words: Words) -> dict[int, tuple[NDArray[np.intp], bytes]]:
    """By length in bytes: the places of the endpoints that have addresses of it, and these, joined."""
    first = np.ascontiguousarray(words[:, 0]).view(_FIRST)["address"].copy()
    is_wide = first.view(np.uint32) == 0
    return {
        4: (np.flatnonzero(~is_wide), first[~is_wide].tobytes()),
        16: (np.flatnonzero(is_wide), words[is_wide, 1:].tobytes()),
    }


def values_of(words: Words, states: Sequence[int]) -> list[bytes]:
    """The rows of the map `endpoints` for endpoints in these states, in order."""
    first = np.ascontiguousarray(words[:, 0]).view(_FIRST)
    rows = np.zeros(first.size, ENDPOINTS.value.dtype)
    rows["address"], rows["port"], rows["state"] = first["address"], first["port"], states
    return ENDPOINTS.value.split(rows.tobytes())


def _found(ordered: Words, wanted: Words) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each wanted number begins among ordered ones, and where it ends."""
    order = np.argsort(wanted)  # to look for neighbours one after the other spares the cache
    first, after = np.empty(wanted.size, np.intp), np.empty(wanted.size, np.intp)
    first[order] = np.searchsorted(ordered, wanted[order])
    after[order] = np.searchsorted(ordered, wanted[order], "right")
    return first, after


def hashes_of(words: Words) -> Words:
    """One number for each endpoint."""
    hashes: Words = (words * _FACTORS).sum(axis=1, dtype=np.uint64)
    return hashes
