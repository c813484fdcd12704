# SPDX-License-Identifier: Apache-2.0
"""Servers that don't answer clients of nat or fullnat, long before their next check may be due.

A client sends its SYN again after a second without an answer (RFC 6298, section 2.1). The data plane sees that it is
of a connection that a SYN has opened before, and counts it for the endpoint. That is no proof, since anybody may send
a SYN twice, and so it is only the reason for a check.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import private
from reconciler.errors import KernelError
from reconciler.model import Address

if TYPE_CHECKING:
    from reconciler.dataplane.slots import Words
    from reconciler.kernel.instance_maps import InstanceMaps

LOOK_S = 1.0
"""How often the counts are compared with what they were, which takes 0.1 ms for 100,000 endpoints."""
MOST_AT_ONCE = 256
"""So many servers are told of at a time, lest a flood of SYNs makes checks as many."""


class Unanswered:
    """`directory` is that of the instance, `record` the name of a file there that is written with each change of the
    node: afterwards another program may count, in another map."""

    def __init__(self, directory: Path, record: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._record, self._clock = directory, directory / record, clock
        self._looked_s = float("-inf")
        self._mark: tuple[int, ...] = ()
        self._counts: Words | None = None
        self._seen: Words | None = None

    def look(self) -> set[Address]:
        """The servers that were sent a SYN again since the last look. None if that is less than LOOK_S ago."""
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_S:
            return set()
        self._looked_s = now_s
        try:
            return self._look()
        except (KernelError, OSError):  # who can't read the data plane says so elsewhere
            self._mark, self._counts = (), None
            return set()

    def _look(self) -> set[Address]:
        mark = private.mark(self._record)
        if not mark:
            return set()
        import numpy as np

        from reconciler.dataplane.layout import UNANSWERED

        maps = self._maps()
        if mark != self._mark:
            self._mark, self._counts = mark, maps.words(UNANSWERED.name)
            if self._counts is not None and (self._seen is None or self._seen.size != self._counts.size):
                self._seen = self._counts.copy()
        if self._counts is None or self._seen is None:
            return set()
        counts = self._counts.copy()
        numbers = np.flatnonzero(counts != self._seen)[:MOST_AT_ONCE].tolist()
        self._seen = counts
        return _addresses(maps, numbers) if numbers else set()

    def _maps(self) -> InstanceMaps:
        from reconciler.kernel.instance import Instance
        from reconciler.kernel.instance_maps import InstanceMaps

        return InstanceMaps(Instance(self._directory.name, self._directory.parent))


def _addresses(maps: InstanceMaps, numbers: list[int]) -> set[Address]:
    """Those of endpoints with these numbers. Raises KernelError."""
    from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6
    from reconciler.dataplane.rows import Number

    keys = [ENDPOINTS.key.pack(Number(number)) for number in numbers]
    found: set[Address] = set()
    for packed, packed6 in zip(maps.lookup(ENDPOINTS.name, keys), maps.lookup(ENDPOINTS6.name, keys), strict=True):
        if packed is None:
            continue
        address = IPv4Address(ENDPOINTS.value.unpack(packed).address)
        found.add(IPv6Address(packed6) if not int(address) and packed6 is not None else address)
    return found
