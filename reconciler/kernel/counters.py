# SPDX-License-Identifier: Apache-2.0
"""What the kernel counts of packets that it refuses or is told about, and whether its clock is kept right.

Counters are those of the network namespace of the calling thread: net/ipv4/proc.c. Martians alone are counted for the
whole machine, by processor: net/ipv4/route.c.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

_FILES = tuple(Path("/proc/thread-self/net", name) for name in ("snmp", "netstat"))
_OF_ROUTES = Path("/proc/thread-self/net/stat/rt_cache")
_TIMEX_BYTES = 256  # struct timex is shorter
_TIME_ERROR = 5  # linux/timex.h: the clock is not synchronised
_libc = ctypes.CDLL(None, use_errno=True)


def read() -> Mapping[str, int]:
    """Counters by their group and name, e.g. `Icmp InRedirects` or `Routes in_martian_src`; those that the kernel
    doesn't have are missing."""
    found: dict[str, int] = {}
    for path in _FILES:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines() if path.exists() else []
        for names, values in zip(lines[::2], lines[1::2], strict=False):  # a line of names, then one of values
            group, *words = names.split()
            numbers = map(int, values.split()[1:])
            found |= {f"{group[:-1]} {word}": number for word, number in zip(words, numbers, strict=False)}
    return found | _of_routes()


def _of_routes() -> dict[str, int]:
    """Lines of hexadecimal numbers, one a processor, below one of names."""
    lines = _OF_ROUTES.read_text(encoding="ascii", errors="replace").splitlines() if _OF_ROUTES.exists() else [""]
    columns = zip(*(line.split() for line in lines[1:]), strict=False)
    sums = (sum(int(number, 16) for number in column) for column in columns)
    return {f"Routes {name}": total for name, total in zip(lines[0].split(), sums, strict=False)}


def is_clock_kept() -> bool:
    """Whether something keeps the clock of this machine right (adjtimex(2)); also if the kernel doesn't say."""
    return bool(_libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) != _TIME_ERROR)
