# SPDX-License-Identifier: Apache-2.0
"""The filter that spares packets which no endpoint has sent the look-up in the table of NAT's connections.

It has one bit for each hash of an address, which bpf/filter.h finds by the same arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.endpoint_table import Words, addresses_of
from reconciler.dataplane.layout import ENDPOINT_FILTER
from reconciler.dataplane.vip_filter import hashes_of

BITS_A_LINE = ENDPOINT_FILTER.value_size * 8
_WORDS_A_LINE = ENDPOINT_FILTER.value_size // 8

Row = tuple[bytes, bytes]
Lines = NDArray[np.uint64]
"""By number, the words of each line."""


def lines_of(joined: Row, count: int) -> Lines:
    """All lines of a filter that has so many, from its rows; none if there is no filter."""
    lines = np.zeros((count, _WORDS_A_LINE), np.uint64)
    if count:
        content = np.frombuffer(joined[1], np.uint64).reshape(-1, _WORDS_A_LINE)
        lines[ENDPOINT_FILTER.key.array(joined[0])["number"]] = content
    return lines


def filter_of(endpoints: Words, count: int) -> Lines:
    """The filter of so many lines that lets these endpoints pass."""
    bits = np.zeros(count * BITS_A_LINE, np.uint8)
    bits[_numbers(endpoints, count)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint64).reshape(count, -1)


def let_pass(endpoints: Words, lines: Lines) -> NDArray[np.bool_]:
    """Which of these endpoints a filter lets pass."""
    numbers = _numbers(endpoints, len(lines))
    words = lines.reshape(-1)[numbers >> np.uint64(6)]
    passing: NDArray[np.bool_] = (words >> (numbers & np.uint64(63)) & np.uint64(1)).astype(np.bool_)
    return passing


def changed(before: Lines, after: Lines) -> list[Row]:
    """The rows that make one filter of another one."""
    numbers = np.flatnonzero((before != after).any(axis=1)).astype(np.uint32)
    keys, values = numbers.tobytes(), after[numbers].tobytes()
    return list(zip(ENDPOINT_FILTER.key.split(keys), ENDPOINT_FILTER.value.split(values), strict=True))


def _numbers(endpoints: Words, count: int) -> Words:
    """The number of the bit of each endpoint."""
    numbers = np.zeros(len(endpoints), np.uint64)
    for length, (places, joined) in addresses_of(endpoints).items():
        hashes = hashes_of(joined, length).astype(np.uint64)
        lines = hashes * np.uint64(count) >> np.uint64(32)
        numbers[places] = lines * np.uint64(BITS_A_LINE) + hashes % np.uint64(BITS_A_LINE)
    return numbers
