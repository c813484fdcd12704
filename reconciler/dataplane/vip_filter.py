# SPDX-License-Identifier: Apache-2.0
"""The filter that spares packets to addresses that are no VIP all further lookups: one bit for each hash of an
address.

The hashes are those of mix() in bpf/vip.h and fold_address() in bpf/address.h.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import VIP_FILTER

BITS = VIP_FILTER.value_size * 8
_SHIFT = np.uint32(16)
_FACTORS = np.array([0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53], np.uint64)

Words = NDArray[np.uint32]


def filter_of(addresses: Collection[bytes]) -> bytes:
    """The filter that lets these addresses pass, 4 or 16 bytes each in network byte order."""
    bits = np.zeros(BITS, np.uint8)
    for length in (4, 16):
        bits[_numbers([address for address in addresses if len(address) == length], length)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def let_pass(addresses: Collection[bytes], content: bytes) -> set[bytes]:
    """The addresses that a filter lets pass, out of these."""
    bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    found: set[bytes] = set()
    for length in (4, 16):
        of_length = [address for address in addresses if len(address) == length]
        passing = bits[_numbers(of_length, length)]
        found.update(address for address, bit in zip(of_length, passing.tolist(), strict=True) if bit)
    return found


def _numbers(addresses: Collection[bytes], length: int) -> Words:
    """The number of the bit of each address, all of one length."""
    return hashes_of(b"".join(addresses), length) >> _SHIFT


def hashes_of(joined: bytes, length: int) -> Words:
    """The hash of each address; all have this length, and are joined."""
    if length == 4:
        return _mix(np.frombuffer(joined, ">u4").astype(np.uint32))
    halves = np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2)
    halves = (halves ^ (halves >> np.uint64(29))) * _FACTORS
    return _mix(((halves[:, 0] ^ halves[:, 1]) >> np.uint64(32)).astype(np.uint32))


def _mix(x: Words) -> Words:
    """The finalizer of MurmurHash3."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
