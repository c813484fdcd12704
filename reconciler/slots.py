# SPDX-License-Identifier: Apache-2.0
"""The slots of a ring as the kernel holds them, and what becomes of open connections when a slot changes hands.

A hash of the client falls into a slot, and the slot has an endpoint. While a slot is in transition it also has a
row that says who had it before (bpf/transition.h says what the program makes of it). Times are in units of 2**30 ns
of `clock`, modulo 2**32, as the program has them: a machine that booted a minute ago has times before its zero.

Two rings say the same if they send each hash to the same endpoint, whatever their sizes: a ring of twice the slots,
each slot twice, is the same ring. So a ring may be held larger than it was asked for, and grows without losing
track of who had what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reconciler import clock
from reconciler.ring import Slots

ROW = np.dtype([(name, "<u4") for name in ("stream", "datagram", "began", "learnt", "used", "pad")])
Rows = NDArray[np.void]
"""An array of `ROW`s: `struct previous` of bpf/maps.h."""

ENDPOINT_MASK = np.uint32(0x1FFFF)
"""Of a slot: the number of its endpoint. Above it are the ring's generation and the mark of a transition."""
NOBODY = np.zeros(1, np.uint32)
"""The ring that sends each hash to number 0, which no endpoint has."""
IN_TRANSITION = np.uint32(1 << 31)
GENERATIONS = 1 << 13
"""A ring of another size is of another generation: its slots can't be mistaken for those of its predecessor."""
_WRAP = 1 << 32
_SLOT_GENERATION, _HEAD_GENERATION = 17, 19
MAX_SLOTS = (1 << _HEAD_GENERATION) - 1

LEARNING = 112
"""Two minutes: within this time a UDP flow should send something (RFC 4787, REQ-5)."""
STREAM_IDLE = 434 * 16
"""2 hours 4 minutes, for which a TCP connection may be silent (RFC 5382, REQ-5)."""
DATAGRAM_IDLE = 18 * 16
"""Five minutes, for which a UDP flow may be silent (RFC 4787, REQ-5)."""


@dataclass(frozen=True, slots=True)
class Held:
    """A ring in the kernel: for each slot the number of its endpoint, whether it is in transition, and its row."""

    endpoints: Slots
    moving: NDArray[np.bool_]
    rows: Rows
    generation: int = 0

    @property
    def bank(self) -> int:
        """Which of two arrays of rows belongs to this ring: those of the next generation are in the other."""
        return self.generation % 2

    @property
    def head(self) -> int:
        """Element 0: the count of slots and the generation."""
        return self.endpoints.size | self.generation << _HEAD_GENERATION

    @property
    def content(self) -> bytes:
        """The array as the program reads it: the head, then the slots."""
        marks = np.where(self.moving, IN_TRANSITION, 0) | self.generation << _SLOT_GENERATION
        return np.concatenate(([self.head], self.endpoints | marks)).astype("<u4").tobytes()


def held(content: bytes, rows: bytes | None = None) -> Held:
    """The ring that an array holds, and the rows that belong to it; None if there are none."""
    array = np.frombuffer(content, np.uint32)
    generation, count = divmod(int(array[0]), 1 << _HEAD_GENERATION)
    slots = array[1 : 1 + count]
    known = np.zeros(slots.size, ROW)
    if rows:
        found = np.frombuffer(rows, ROW)[: slots.size]
        known[: found.size] = found
    return Held(slots & ENDPOINT_MASK, (slots & IN_TRANSITION) != 0, known, generation)


def still(endpoints: Slots) -> Held:
    """A ring of which no slot is in transition."""
    return Held(endpoints, np.zeros(endpoints.size, np.bool_), np.zeros(endpoints.size, ROW))


def reduced(slots: Slots) -> Slots:
    """The shortest ring that says the same."""
    changes = np.flatnonzero(np.diff(slots)) + 1
    return slots[:: np.gcd.reduce([slots.size, *changes])] if slots.size else slots


def fitted(ring: Held, wanted: Slots) -> tuple[Held, Slots]:
    """Both at one size, so that each slot of one stands for a slot of the other.

    Where neither size is a multiple of the other, a slot has the former endpoint of most of its hashes.
    """
    if ring.endpoints.size % wanted.size == 0:
        return ring, wanted.repeat(ring.endpoints.size // wanted.size)
    former = _midpoints(wanted.size, ring.endpoints.size)
    generation = (ring.generation + 1) % GENERATIONS
    return Held(ring.endpoints[former], ring.moving[former], ring.rows[former], generation), wanted


def changed(ring: Held, wanted: Slots, now: int) -> Held:
    """The ring once its slots have the endpoints `wanted`; both have the same size.

    A slot that changes hands is in transition from then on. If it is already, connections that nobody remembered
    still belong to the first of its former endpoints. Datagrams belong to the last that was there for longer than
    it takes to learn them. What nobody held, nobody has connections in.
    """
    moves = ring.endpoints != wanted
    rows = ring.rows.copy()
    fresh = moves & ~ring.moving & (ring.endpoints != NOBODY)
    rows["stream"][fresh] = ring.endpoints[fresh]
    rows["began"][fresh] = now % _WRAP
    learnt = fresh | (moves & (since(rows["learnt"], now) >= 0))
    rows["datagram"][learnt] = ring.endpoints[learnt]
    rows["learnt"][moves] = (now + LEARNING) % _WRAP
    rows["used"][moves] = now % _WRAP
    return Held(wanted, ring.moving | fresh, rows, ring.generation)


def settled(ring: Held, idle: int, now: int) -> Held:
    """The ring without the transitions in which nobody but the current endpoint was used for `idle`."""
    return replace(ring, moving=ring.moving & (since(ring.rows["used"], now) < idle))


def lost(before: Slots, after: Slots) -> float:
    """The share of open connections that the change of a ring cuts off although their endpoints live, 0 to 1.

    Nothing, unless neither size is a multiple of the other.
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
    """How long ago these times were; less than nothing if they are to come."""
    return (np.uint32(now % _WRAP) - times).astype(np.int32)


def now() -> int:
    return clock.now_ns() >> 30


def _midpoints(size: int, former: int) -> NDArray[np.intp]:
    """For each of `size` slots, the slot of a ring of `former` slots that its middle falls into."""
    return (2 * np.arange(size) + 1) * former // (2 * size)
