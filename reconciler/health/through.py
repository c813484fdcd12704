# SPDX-License-Identifier: Apache-2.0
"""The way of checks through VIPs: from the prober's namespace, each socket with the mark of its endpoint's row.

Rows are read again when the node was changed, or when somebody doubts them, a second after the last time at the
earliest: an endpoint may get another number only long after its last one was given up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from reconciler import private
from reconciler.errors import KernelError
from reconciler.health.place import HERE, Place
from reconciler.health.target import Target
from reconciler.health.way import DIRECT, Way
from reconciler.model import Address, Mode

LOOK_S = 1.0


class Through:
    """`directory` is that of the instance, `record` the name of a file there that is written with each change of the
    node."""

    def __init__(self, directory: Path, record: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._record, self._clock = directory, directory / record, clock
        self._looked_s = float("-inf")
        self._place: Place | None = None
        self._mark: tuple[int, ...] | None = None
        self._numbers: dict[Address, int] = {}
        self._is_doubtful = False
        self._lack = ""

    def way(self, target: Target) -> Way:
        """The way to a target. If there is none, it says what is lacking."""
        if target.vip is None:
            return DIRECT
        from reconciler.dataplane.layout import MARK_TUNNEL

        if self._clock() - self._looked_s >= LOOK_S:
            self._look()
            self._looked_s = self._clock()
        number = self._numbers.get(target.address, 0)
        self._is_doubtful |= not number
        lack = self._lack or ("" if number else "the endpoint is not in the data plane yet")
        tunnel = MARK_TUNNEL if target.mode is Mode.DSR_L3 else 0
        return Way(number | tunnel, self._place or HERE, lack)

    def doubt(self) -> None:
        """Somebody who was well has not answered: who mended a damaged row may have given it another number."""
        self._is_doubtful = True

    def close(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None

    def _look(self) -> None:
        self._lack = self._find_place()
        mark = private.mark(self._record)
        if self._lack or (mark == self._mark and not self._is_doubtful):
            return
        self._is_doubtful = False
        try:
            self._numbers = _numbers(self._directory)
        except (KernelError, OSError) as error:
            self._mark, self._lack = None, f"the data plane can't be read: {error}"
        else:
            self._mark = mark  # of before the reading: what was written meanwhile is read the next time

    def _find_place(self) -> str:
        """Have the namespace of the prober at hand, or say why there is none."""
        from reconciler.kernel.prober import FILE, is_namespace

        path = self._directory / FILE
        if not is_namespace(path):
            self.close()
            return "this node has no address to check through VIPs from: healthAddress"
        try:
            status = path.stat()
            if self._place is None or self._place.identity != (status.st_dev, status.st_ino):
                self.close()
                self._place = Place(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            return f"the place that checks through VIPs come from can't be entered: {error.strerror}"
        return ""


def _numbers(directory: Path) -> dict[Address, int]:
    """The first row of each address, of those that the maps of an instance hold. Raises KernelError, OSError."""
    from ipaddress import IPv4Address, IPv6Address

    import numpy as np

    from reconciler.dataplane.endpoint_table import table
    from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6
    from reconciler.kernel.instance import Instance
    from reconciler.kernel.instance_maps import InstanceMaps

    maps = InstanceMaps(Instance(directory.name, directory.parent))
    rows = table(maps.joined(ENDPOINTS.name), lambda: maps.joined(ENDPOINTS6.name))
    found: dict[Address, int] = {}
    addresses = rows.endpoints(np.arange(len(rows.numbers))) if len(rows.numbers) else []
    for number, (packed, _) in zip(rows.numbers.tolist(), addresses, strict=True):
        address = IPv4Address(packed) if len(packed) == len(bytes(4)) else IPv6Address(packed)
        found.setdefault(address, number)
    return found
