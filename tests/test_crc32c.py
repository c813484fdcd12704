# SPDX-License-Identifier: Apache-2.0
"""The tables of SCTP's checksum, against a CRC that goes through all bytes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.sctp import crc32c

from reconciler.dataplane.crc32c import tables
from reconciler.dataplane.layout import CRC32C

WORDS = np.frombuffer(tables(), "<u4").reshape(4, 16, 4, 256)


def changed(change: bytes, length: int) -> bytes:
    """What a change of the first four bytes of so many makes of their CRC, as bpf/crc32c.h does it."""
    for step in range(4):
        ways = WORDS[step, length >> 4 * step & 15]
        found = [int(ways[at, byte]) for at, byte in enumerate(change)]
        change = (found[0] ^ found[1] ^ found[2] ^ found[3]).to_bytes(4, "little")
    return change


def test_the_map_has_room_for_them() -> None:
    assert len(tables()) == CRC32C.value_size


@settings(deadline=None)
@given(
    length=st.integers(4, 2_000) | st.sampled_from([4, 15, 16, 255, 256, 4_095, 4_096, 65_515]),
    before=st.binary(min_size=4, max_size=4), after=st.binary(min_size=4, max_size=4),
)  # fmt: skip
def test_a_change_of_the_first_bytes_changes_the_checksum_of_all(length: int, before: bytes, after: bytes) -> None:
    rest = bytes(at * 37 % 251 for at in range(length - 4))
    sums = crc32c(before + rest) ^ crc32c(after + rest)
    change = bytes(one ^ other for one, other in zip(before, after, strict=True))
    assert changed(change, length) == sums.to_bytes(4, "big")
