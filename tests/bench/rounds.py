# SPDX-License-Identifier: Apache-2.0
"""Rounds of BPF_PROG_TEST_RUN: how long a program takes for one of many packets, and what it made of them.

Programs take turns, run by run, so that whatever else the machine does meanwhile hits all of them.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.kernel import bpf, maps
from reconciler.kernel.maps import OpenMap

HEADERS = 80
_ROW = struct.Struct(f"={HEADERS}s8QQ4I")
"""struct bench of bpf/wrapper.h."""
_ROOM = 4096


@dataclass(frozen=True, slots=True)
class Stream:
    """What comes in: one frame, whose source and VIP vary by the numbers of flow and service.

    Both counts are powers of two. `grows` is how many bytes the empty program puts before a frame.
    """

    frame: bytes
    flows: int = 1
    services: int = 1
    grows: int = 0


class Subject:
    """A loaded program and its row `bench`. `output` is the last frame as the program left it."""

    def __init__(self, program: int, bench: OpenMap, ifindex: int) -> None:
        self._program, self._bench, self._ifindex = program, bench, ifindex
        self._stream: Stream | None = None
        self.output = b""

    def take(self, stream: Stream, first: int = 0) -> None:
        """Begin a stream with the packet of this number."""
        assert len(stream.frame) >= HEADERS
        self._stream = stream
        maps.update_one(self._bench, bytes(4), _ROW.pack(
            stream.frame[:HEADERS], *[0] * 8, first, stream.flows - 1, stream.services - 1, len(stream.frame),
            stream.grows,
        ))  # fmt: skip

    def actions(self) -> list[int]:
        """How often each XDP action was returned since the stream began."""
        row = maps.lookup(self._bench, bytes(4))
        assert row
        return list(_ROW.unpack(row)[1:9])

    def run(self, packets: int) -> int:
        """Hand in so many packets; nanoseconds for each, on average."""
        assert self._stream
        content = self._stream.frame
        sent, room = bpf.memory(content), bpf.memory(_ROOM)
        context = bpf.memory(struct.pack("=6I", 0, len(content), 0, self._ifindex, 0, 0))
        # As reconciler.kernel.bpf.test_run, but for the number of rounds.
        attributes = bpf.memory(struct.pack(
            "=IIIIQQIIIIQQIIII", self._program, 0, len(content), len(room), ctypes.addressof(sent),
            ctypes.addressof(room), packets, 0, len(context), 0, ctypes.addressof(context), 0, 0, 0, 0, 0,
        ))  # fmt: skip
        bpf.call(bpf.Command.PROG_TEST_RUN, attributes)
        self.output = room.raw[: struct.unpack_from("=I", attributes, 12)[0]]
        duration: int = struct.unpack_from("=I", attributes, 36)[0]
        return duration


def measure(subjects: Sequence[Subject], packets: int, runs: int) -> list[list[int]]:
    """Let the subjects take turns for so many runs of so many packets; nanoseconds a packet of each run."""
    times: list[list[int]] = [[] for _ in subjects]
    for _ in range(runs):
        for subject, of_subject in zip(subjects, times, strict=True):
            of_subject.append(subject.run(packets))
    return times


@contextmanager
def pinned() -> Iterator[int]:
    """Stay on one CPU, the last that there is: interrupts tend to come to the first."""
    former = os.sched_getaffinity(0)
    cpu = max(former)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, former)
