# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a node, as far as can be seen from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reconciler.doctor.counters import Watch
from reconciler.doctor.finding import Finding
from reconciler.doctor.host import of_host
from reconciler.doctor.router import of_router
from reconciler.doctor.state import of_plan
from reconciler.doctor.ways import of_ways
from reconciler.kernel.port import Kernel
from reconciler.model import Fleet, Role
from reconciler.reconcile import desired_of, known_wish, plan_node, view_of


def examine(fleet: Fleet, node: str | None, kernel: Kernel, instance_dir: Path, netns: str = "") -> Iterator[Finding]:
    """Findings, perhaps some of them twice. `netns` is the name of the network namespace that the calling thread
    entered; empty: none. Raises LbctlError."""
    view, watch = view_of(fleet, node), Watch()
    planned = plan_node(desired_of(fleet, node, kernel, known_wish(instance_dir)), kernel, instance_dir)
    yield from of_plan(planned)
    yield from of_host(view.node, planned.live.resources, kernel)
    if view.node.role is Role.ROUTER:
        yield from of_router(fleet, view, kernel)
    else:
        yield from of_ways(view, kernel, netns)
    yield from watch.findings(view.node)
