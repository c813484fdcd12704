# SPDX-License-Identifier: Apache-2.0
"""The way of checks through VIPs: from the prober's namespace, each socket with the mark of its endpoint's row.

Rows are looked at again every second: an endpoint may get another number only long after its last one was given up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from reconciler.errors import KernelError
from reconciler.health.target import Target
from reconciler.health.way import DIRECT, Way
from reconciler.model import Address, Mode

LOOK_S = 1.0


class Through:
    """`directory` is that of the instance."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock = directory, clock
        self._looked_s = float("-inf")
        self._namespace = -1
        self._content: tuple[bytes, bytes] = b"", b""
        self._numbers: dict[Address, int] = {}
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
        lack = self._lack or ("" if number else "the endpoint is not in the data plane yet")
        tunnel = MARK_TUNNEL if target.mode is Mode.DSR_L3 else 0
        return Way(mark=number | tunnel, namespace=self._namespace, lack=lack)

    def _look(self) -> None:
        from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6
        from reconciler.kernel.instance import Instance
        from reconciler.kernel.instance_maps import InstanceMaps
        from reconciler.kernel.prober import FILE, is_namespace

        path = self._directory / FILE
        self._lack = "" if is_namespace(path) else "this node has no address to check through VIPs from: healthAddress"
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1
        if self._lack:
            return
        with suppress(OSError):
            self._namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            maps = InstanceMaps(Instance(self._directory.name, self._directory.parent))
            narrow, wide = maps.joined(ENDPOINTS.name), maps.joined(ENDPOINTS6.name)
        except (KernelError, OSError) as error:
            self._lack = f"the data plane can't be read: {error}"
            return
        content = b"".join(narrow), b"".join(wide)
        if content != self._content:
            self._numbers = _numbers(narrow, wide)
            self._content = content


def _numbers(narrow: tuple[bytes, bytes], wide: tuple[bytes, bytes]) -> dict[Address, int]:
    """The first row of each address."""
    from ipaddress import IPv4Address, IPv6Address

    from reconciler.dataplane.endpoint_table import table

    found: dict[Address, int] = {}
    rows = table(narrow, lambda: wide)
    places = range(len(rows.numbers))
    import numpy as np

    addresses = rows.endpoints(np.array(places, np.intp)) if len(places) else []
    for number, (packed, _) in zip(rows.numbers.tolist(), addresses, strict=True):
        address = IPv4Address(packed) if len(packed) == len(bytes(4)) else IPv6Address(packed)
        found.setdefault(address, number)
    return found
