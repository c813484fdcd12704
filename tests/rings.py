# SPDX-License-Identifier: Apache-2.0
"""Rings as the kernel holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from reconciler.dataplane.ring import Slots
from reconciler.dataplane.slots import Held
from reconciler.kernel.port import Kernel, Outcome
from reconciler.ring_store import Rings, RingWriter


def read_ring(kernel: Kernel, index: int) -> Held | None:
    """A ring and the rows of its slots in transition; None if there is no such ring."""
    return read_rings(kernel, [index])[index]


def read_rings(kernel: Kernel, indexes: Iterable[int]) -> dict[int, Held | None]:
    """As `read_ring`, of several rings at one moment: to look at all heads takes the most time."""
    rings = Rings(kernel)
    places = {index: rings.place(index) for index in indexes}
    return {index: rings.held(place) if place else None for index, place in places.items()}


def write_rings(
    kernel: Kernel, wanted: Mapping[int, Slots], known: Collection[int], dead: Slots | None = None
) -> dict[int, Outcome]:
    """Give rings the endpoints `wanted`, by index; those not in `known` are new. One outcome each."""
    writer = RingWriter(kernel, wanted, known)
    writer.write(wanted, {} if dead is None else dict.fromkeys(wanted, dead))
    return writer.flip()
