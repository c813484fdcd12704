# SPDX-License-Identifier: Apache-2.0
"""The slots of a ring as the kernel holds them, and the transitions that keep open connections when a slot gets
another endpoint.

A hash of the client selects a slot, and the slot has an endpoint. While a slot is in transition it also has a row with
its former endpoints (bpf/transition.h tells how the program uses it); slots that changed hands alike mostly share one.
Times are in units of 2**34 ns of `clock`; rows hold them modulo 1,024.

Two rings are equal if they send each hash to the same endpoint, whatever their sizes: a ring with twice the slots,
each slot twice, is the same ring. So the kernel may hold a ring larger than it was asked for, and a ring grows without
losing the former endpoints of its slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from reconciler import clock
from reconciler.dataplane.ring import Slots

Words = NDArray[np.uint64]

ROW = np.dtype([(name, "<u4") for name in ("stream", "datagram", "began", "moved", "used")])
Rows = NDArray[np.void]
"""An array of `ROW`s: what the 64-bit numbers of bpf/transition.h mean."""
_COLUMNS = (("stream", 0, 0x1FFFF), ("datagram", 17, 0x1FFFF), ("began", 34, 0x3FF), ("moved", 44, 0x3FF),
            ("used", 54, 0x3FF))  # fmt: skip
"""The first bit of each column, and as many ones as it has bits."""

ENDPOINT_MASK = np.uint32(0x1FFFF)
"""The bits of a slot that hold its endpoint's number. The highest one is the mark of a transition."""
NOBODY = np.zeros(1, np.uint32)
"""The ring without endpoints: it sends each hash to number 0, which stands for none."""
IN_TRANSITION = np.uint32(1 << 31)
MAX_SLOTS = (1 << 19) - 1

TIME_SHIFT = 34
LEARNING = 7
"""Two minutes: within this time a UDP flow should send something (RFC 4787, REQ-5)."""
STREAM_IDLE = 434
"""2 hours 4 minutes, for which a TCP connection may be silent (RFC 5382, REQ-5)."""
DATAGRAM_IDLE = 18
"""Five minutes, for which a UDP flow may be silent (RFC 4787, REQ-5)."""
_TURN = 1024
_FEW = 8
"""To look for so many numbers one by one takes less time than all at once."""
_BEGINNING = 64
_USED_SHIFT = 54
SHARED_ROWS = 256
"""As many rows as a byte can tell apart."""


@dataclass(frozen=True, slots=True)
class Held:
    """A ring in the kernel: for each slot the number of its endpoint, whether it is in transition, and its row."""

    endpoints: Slots
    moving: NDArray[np.bool_]
    rows: Rows

    @property
    def slots(self) -> Slots:
        """The slots as the program reads them."""
        return self.endpoints | np.where(self.moving, IN_TRANSITION, np.uint32(0))


def held(slots: Slots, rows: Words | None = None) -> Held:
    """The ring of these slots, and the rows that belong to it; None if it has none."""
    known = np.zeros(slots.size, ROW) if rows is None else unpacked(rows)
    return Held(slots & ENDPOINT_MASK, (slots & IN_TRANSITION) != 0, known)


def checksum(slots: Slots) -> int:
    """A checksum of the endpoints of slots, whether in transition or not."""
    return crc32((slots & ENDPOINT_MASK).astype("<u4").tobytes())


def checksums(slots: Slots) -> list[int]:
    """As `checksum`, of the slots of several rings, a line each."""
    return [crc32(line) for line in np.ascontiguousarray(slots & ENDPOINT_MASK, "<u4")]


def unpacked(words: Words) -> Rows:
    """Rows from the numbers that the program reads."""
    rows = np.empty(words.size, ROW)
    for name, shift, mask in _COLUMNS:
        rows[name] = words >> np.uint64(shift) & np.uint64(mask)
    return rows


def packed(rows: Rows) -> Words:
    """The reverse of `unpacked`."""
    words = np.zeros(rows.size, np.uint64)
    for name, shift, mask in _COLUMNS:
        words |= (rows[name].astype(np.uint64) & np.uint64(mask)) << np.uint64(shift)
    return words


def shared(rows: Words, now: int) -> tuple[Words, NDArray[np.uint8]] | None:
    """The rows that differ in more than their time of use, and for each slot the number of its row; None if these are
    too many. Row 0 is all zeros. Slots that share a row have the most recent of their times of use."""
    of_use = np.uint64(0x3FF << _USED_SHIFT)
    numbers, made = np.zeros(rows.size, np.uint8), np.zeros(SHARED_ROWS, np.uint64)
    some = np.flatnonzero(rows)
    kept, row_of = np.unique(rows[some] & ~of_use, return_inverse=True)
    if kept.size >= SHARED_ROWS:
        return None
    age = np.full(kept.size, _TURN - 1, np.int32)
    np.minimum.at(age, row_of, since((rows[some] >> np.uint64(_USED_SHIFT)).astype(np.uint32), now))
    used = ((now - age) % _TURN).astype(np.uint64) << np.uint64(_USED_SHIFT)
    numbers[some] = row_of + 1
    made[1 : 1 + kept.size] = kept | used
    return made, numbers


def with_uses(rows: Words, others: Words) -> Words:
    """These rows with the time of use of others."""
    times = np.uint64(0x3FF << _USED_SHIFT)
    return rows & ~times | others & times


def without_datagrams_to(dead: Slots, rows: Words) -> Words:
    """These rows, but with no unknown datagram for `dead` endpoints: who sends it waits for an answer in vain, and has
    no connection to lose."""
    bits = np.uint64(0x1FFFF << 17)
    numbers = rows & bits
    shifted = dead.astype(np.uint64) << np.uint64(17)
    if dead.size > _FEW:
        return np.where(np.isin(numbers, shifted), rows & ~bits, rows)
    for number in shifted:
        rows = np.where(numbers == number, rows & ~bits, rows)
    return rows


def still(endpoints: Slots) -> Held:
    """A ring of which no slot is in transition."""
    return Held(endpoints, np.zeros(endpoints.size, np.bool_), np.zeros(endpoints.size, ROW))


def reduced(slots: Slots) -> Slots:
    """The shortest equal ring. Of most rings, the first slots show that there is no shorter one."""
    for some in (slots[:_BEGINNING], slots):
        changes = np.flatnonzero(np.diff(some)) + 1
        step = int(np.gcd.reduce(changes, initial=slots.size))
        if step <= 1:
            return slots
    return slots[::step]


def distinct(numbers: Slots) -> NDArray[np.integer]:
    """The numbers in slots, each once, in order. Those of a ring are mostly close to each other."""
    if not numbers.size:
        return numbers
    least, most = int(numbers.min()), int(numbers.max())
    if most - least > 8 * numbers.size:
        return np.unique(numbers)
    return np.flatnonzero(np.bincount(numbers - np.uint32(least))) + least


def fitted(ring: Held, wanted: Slots) -> tuple[Held, Slots]:
    """Both rings in one size, so that their slots correspond one to one.

    If neither size is a multiple of the other, the former endpoint of a slot is that of most of its hashes.
    """
    if ring.endpoints.size % wanted.size == 0:
        return ring, wanted.repeat(ring.endpoints.size // wanted.size)
    former = _midpoints(wanted.size, ring.endpoints.size)
    return Held(ring.endpoints[former], ring.moving[former], ring.rows[former]), wanted


def changed(ring: Held, wanted: Slots, now: int) -> Held:
    """The ring once its slots have the endpoints `wanted`; both have the same size.

    A slot that gets another endpoint is in transition from then on. If it is already, unremembered connections still
    belong to the first of its former endpoints. Datagrams belong to the last endpoint that had the slot for longer
    than LEARNING. A slot without a former endpoint has no open connections, so it is in no transition.
    """
    moves = ring.endpoints != wanted
    rows = ring.rows.copy()
    fresh = moves & ~ring.moving & (ring.endpoints != NOBODY)
    rows["stream"][fresh] = ring.endpoints[fresh]
    rows["began"][fresh] = now % _TURN
    learnt = fresh | (moves & (since(rows["moved"], now) > LEARNING))
    rows["datagram"][learnt] = ring.endpoints[learnt]
    rows["moved"][moves] = now % _TURN
    rows["used"][moves] = now % _TURN
    return Held(wanted, ring.moving | fresh, rows)


def settled(ring: Held, idle: int, now: int) -> Held:
    """The ring without the transitions in which only the current endpoint was used for longer than `idle`."""
    return replace(ring, moving=ring.moving & (since(ring.rows["used"], now) <= idle))


def lost(before: Slots, after: Slots) -> float:
    """The share of open connections that a change of the ring breaks although their endpoints stay, 0 to 1.

    It is 0 if one size is a multiple of the other.
    """
    if not before.size or not after.size:
        return 0.0
    return moved(before, fitted(still(before), after)[0].endpoints)


def moved(before: Slots, after: Slots) -> float:
    """The share of hashes that two rings, neither of them empty, send to different endpoints, 0 to 1."""
    edges = np.union1d(np.arange(before.size + 1) / before.size, np.arange(after.size + 1) / after.size)
    middle = (edges[:-1] + edges[1:]) / 2
    one, other = (middle * before.size).astype(np.intp), (middle * after.size).astype(np.intp)
    return float(np.diff(edges)[before[one] != after[other]].sum())


def since(times: NDArray[np.uint32], now: int) -> NDArray[np.int32]:
    """How long ago these times of rows were; they come round after five hours."""
    return ((np.uint32(now % _TURN) - times) % np.uint32(_TURN)).astype(np.int32)


def now() -> int:
    return clock.now_ns() >> TIME_SHIFT


def _midpoints(size: int, former: int) -> NDArray[np.intp]:
    """For each of `size` slots, the slot of a ring of `former` slots that its middle falls into."""
    return (2 * np.arange(size) + 1) * former // (2 * size)
