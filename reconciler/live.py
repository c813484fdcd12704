# SPDX-License-Identifier: Apache-2.0
"""A node's live state, read from its kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS
from reconciler.readings.flows import open_flows
from reconciler.resource import Key, Live, Resource


def read_live(kernel: Kernel, wanted: Collection[Key] = (), kinds: Iterable[str] | None = None) -> Live:
    """The readings of all kinds, or of those named. `wanted` are the keys that the manifests ask for.

    Connections are left out: counting them reads the whole flow table (`with_connections`).
    """
    chosen = None if kinds is None else set(kinds)
    resources: dict[Key, Resource] = {}
    foreign: dict[Key, str] = {}
    impossible: dict[Key, str] = {}
    for kind in KINDS:
        if chosen is None or kind.resource.kind in chosen:
            reading = kind(kernel).read([key for key in wanted if key.kind == kind.resource.kind])
            resources |= {resource.key: resource for resource in reading.resources}
            foreign |= reading.foreign
            impossible |= reading.impossible
    return Live(resources, foreign, impossible=impossible)


def with_connections(live: Live, kernel: Kernel) -> Live:
    """The same state, with the open connections of each service and endpoint counted."""
    counts = Counter((flow.service, flow.endpoint) for flow in open_flows(kernel))
    return replace(live, connections=dict(counts))
