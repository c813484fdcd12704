# SPDX-License-Identifier: Apache-2.0
"""Rows that are written for an edit, against those that differ after it, counted over many random edits.

Counted in the kernel in memory, which lists every write to a map. What rings hold is written through shared memory and
is not counted here.
"""

from __future__ import annotations

import random
from dataclasses import replace

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.live import read_live
from reconciler.model import EndpointState, Fleet, Pool
from reconciler.plan import plan
from reconciler.view import view
from tests import big_fleet

SERVICES = 10
_SEED = 9


def count(edits: int) -> tuple[int, int]:
    """Rows written, and rows that differ, of so many edits of one pool each: weights, states, endpoints that go and
    come back."""
    rng, kernel, first_fleet = random.Random(_SEED), FakeKernel(), big_fleet.fleet(SERVICES)
    fleet = first_fleet
    _apply(kernel, fleet)
    written = differing = 0
    for _ in range(edits):
        number = rng.randrange(SERVICES)
        pools = list(fleet.pools)
        pools[number] = _edited(rng, pools[number], first_fleet.pools[number])
        fleet = replace(fleet, pools=tuple(pools))
        before, first = _rows(kernel), len(kernel.writes)
        _apply(kernel, fleet)
        after = _rows(kernel)
        written += sum(method in ("update", "delete") for method, _ in kernel.writes[first:])
        differing += sum(before.get(row) != after.get(row) for row in before.keys() | after.keys())
    return written, differing


def _edited(rng: random.Random, pool: Pool, whole: Pool) -> Pool:
    what, endpoints = rng.random(), list(pool.endpoints)
    at = rng.randrange(len(endpoints))
    if what < 0.7:
        endpoints[at] = replace(endpoints[at], weight=rng.randrange(1, 60))
    elif what < 0.85:
        endpoints[at] = replace(endpoints[at], state=rng.choice(list(EndpointState)))
    elif len(endpoints) > 1 and what < 0.95:
        del endpoints[at]
    else:
        endpoints = list(whole.endpoints)
    return replace(pool, endpoints=tuple(endpoints))


def _apply(kernel: FakeKernel, fleet: Fleet) -> None:
    desired = compile_node(view(fleet, None, ""))
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()


def _rows(kernel: FakeKernel) -> dict[tuple[str, bytes], bytes]:
    return {(name, key): value for name, rows in kernel.maps.items() for key, value in rows.items()}
