# SPDX-License-Identifier: Apache-2.0
"""The CPUs of this machine, as maps with a value for each of them count them."""

from __future__ import annotations

import functools
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu/possible")


def possible_cpus() -> int:
    """How many CPUs the kernel has room for: per-CPU maps hold a value for each."""
    return len(cpu_numbers())


def numbered_cpus() -> int:
    """One more than the highest number of a CPU: a CPU_ARRAY has rows for each, even for one that is nobody's."""
    return cpu_numbers()[-1] + 1


@functools.cache
def cpu_numbers() -> tuple[int, ...]:
    """The numbers of the CPUs that there may be, in ascending order."""
    numbers: set[int] = set()
    for part in _CPUS.read_text(encoding="utf-8").strip().split(","):  # e.g. 0-3,8-11
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def cpu_stride(value_size: int) -> int:
    """Bytes from one CPU's value to the next: the kernel rounds up to 8."""
    return (value_size + 7) & ~7
