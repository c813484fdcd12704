# SPDX-License-Identifier: Apache-2.0
"""Rings as the kernel holds them."""

from __future__ import annotations

from reconciler.dataplane.slots import Held
from reconciler.kernel.port import Kernel
from reconciler.ring_store import Rings


def read_ring(kernel: Kernel, index: int) -> Held | None:
    """A ring and the rows of its slots in transition; None if there is no such ring."""
    rings = Rings(kernel)
    place = rings.place(index)
    return rings.held(place) if place else None
