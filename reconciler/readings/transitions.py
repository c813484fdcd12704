# SPDX-License-Identifier: Apache-2.0
"""Rings with slots in transition, for people: their former endpoints, and how long these are still needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reconciler.dataplane import slots
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import numbered_rows
from reconciler.ring_names import RingNames
from reconciler.ring_store import idle, in_transition, protocols

_UNIT_S = 2**slots.TIME_SHIFT / 1e9


@dataclass(frozen=True, slots=True)
class Transition:
    """The slots of a ring that are in transition. Times are in seconds.

    `former` are the endpoints that older connections still go to; empty if all of these died or got their slots back.
    `used_s` is the time since an endpoint other than the current one was last chosen; if that does not happen again,
    the last slot settles in `settles_s`.
    """

    ring: str
    moving: int
    slots: int
    former: tuple[str, ...]
    began_s: int
    used_s: int
    settles_s: int


def transitions(kernel: Kernel, now: int | None = None) -> Iterator[Transition]:
    """The present transitions, by name of the ring. `now` is in the unit of `slots`, None for the present."""
    at = slots.now() if now is None else now
    names = RingNames(kernel)
    endpoints = {row.number: row.row.id for row in numbered_rows(kernel)}
    used_by = protocols(kernel)
    rings = {names.name(index) or f"lost ring {index}": (index, ring) for index, ring in in_transition(kernel).items()}
    for name, (index, ring) in sorted(rings.items()):
        rows = ring.rows[ring.moving]
        if not rows.size:
            continue
        current = ring.endpoints[ring.moving]
        columns = [rows[column] for column in ("stream", "datagram")]
        numbers = np.concatenate([column[(column != current) & (column != 0)] for column in columns])
        silent = int(slots.since(rows["used"], at).min())
        yield Transition(
            name, rows.size, ring.endpoints.size,
            tuple(sorted(endpoints.get(int(n), f"removed endpoint {n}") for n in np.unique(numbers))),
            _seconds(int(slots.since(rows["began"], at).max())), _seconds(silent),
            _seconds(max(0, idle(used_by.get(index, ())) - silent)),
        )  # fmt: skip


def _seconds(units: int) -> int:
    return int(units * _UNIT_S)
