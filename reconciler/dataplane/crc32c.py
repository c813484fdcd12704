# SPDX-License-Identifier: Apache-2.0
"""The tables by which the program brings the checksum of SCTP up to date where a port changes: bpf/crc32c.h.

The state of a CRC passes one zero byte as `_pass` says. What many of them make of it is the sum (exclusive or) of what
they make of each of its four bytes, so a table of 4 times 256 words says it for any state.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
"""Of CRC32c, its bits in the order of packets: RFC 9260, appendix A."""

_STEPS, _DIGITS = 4, 16
_LOWEST = np.uint32(0xFF)
_BYTE = np.uint32(8)

Words = NDArray[np.uint32]


@functools.cache
def tables() -> bytes:
    """The row of the map: by step, by the four bits of the length that are the step's, by number of a byte and its
    value. Words lie as in packets."""
    content = np.zeros((_STEPS, _DIGITS, 4, 256), np.uint32)
    one = _pass_one(_states())
    for step in range(_STEPS):
        content[step, 0] = _states()
        for digit in range(1, _DIGITS):
            content[step, digit] = _through(one, content[step, digit - 1])
        one = _through(one, content[step, _DIGITS - 1])
    return content.astype("<u4").tobytes()


def _states() -> Words:
    """Each value of each byte of a state, alone."""
    return np.arange(256, dtype=np.uint32) << (np.arange(4, dtype=np.uint32) * _BYTE)[:, None]


def _pass_one(states: Words) -> Words:
    """What a zero byte makes of states."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(POLYNOMIAL), table >> np.uint32(1))
    passed: Words = states >> _BYTE ^ table[states & _LOWEST]
    return passed


def _through(table: Words, states: Words) -> Words:
    """What the bytes that a table stands for make of states."""
    found: Words = np.zeros_like(states)
    for byte in range(4):
        found ^= table[byte][states >> np.uint32(8 * byte) & _LOWEST]
    return found
