# SPDX-License-Identifier: Apache-2.0
"""The data plane's clock: CLOCK_MONOTONIC of the machine, which starts at boot."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

_OFFSETS = Path("/proc/self/timens_offsets")


def now_ns() -> int:
    """The time that bpf_ktime_get_ns() returns.

    In a time namespace, CLOCK_MONOTONIC is shifted for processes, but not for BPF programs (time_namespaces(7)).
    """
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) - _shift_ns()


@cache
def _shift_ns() -> int:
    try:
        text = _OFFSETS.read_text(encoding="ascii")
    except OSError:  # a kernel without time namespaces
        return 0
    return next((shift_ns_of(line) for line in text.splitlines() if line.startswith("monotonic")), 0)


def shift_ns_of(line: str) -> int:
    """The offset in a line of /proc/PID/timens_offsets: name of a clock, seconds and nanoseconds, e.g. `monotonic -7
    5`."""
    _, seconds, nanoseconds = line.split()
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
