# SPDX-License-Identifier: Apache-2.0
"""Rings as the kernel holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from reconciler.dataplane.ring import Slots
from reconciler.dataplane.slots import Held
from reconciler.kernel.port import Kernel, Outcome
from reconciler.ring_store import Rings, RingWriter


def read_ring(kernel: Kernel, index: int) -> Held | None:
    """A ring and the rows of its slots in transition; None if there is no such ring."""
    rings = Rings(kernel)
    place = rings.place(index)
    return rings.held(place) if place else None


def write_rings(
    kernel: Kernel, wanted: Mapping[int, Slots], known: Collection[int], dead: Slots | None = None
) -> dict[int, Outcome]:
    """Give rings the endpoints `wanted`, by index; those not in `known` are new. One outcome each."""
    writer = RingWriter(kernel, wanted, known)
    writer.write(wanted, {} if dead is None else dict.fromkeys(wanted, dead))
    return writer.flip()
