# SPDX-License-Identifier: Apache-2.0
"""A node's live state, read from its kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from reconciler import progress
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS, RESOURCES
from reconciler.readings.flows import open_flows
from reconciler.resource import Key, Live, Resource


def read_live(
    kernel: Kernel,
    wanted: Mapping[Key, Resource] = MappingProxyType({}),
    kinds: Iterable[str] | None = None,
    only: Collection[Key] | None = None,
) -> Live:
    """The readings of all kinds, or of those named. `wanted` is what the manifests ask for, by key.

    With `only`, just these keys are read, and kinds without any of them are left alone; given resources, which
    depend on each other, are read all together. Connections are left out: counting them reads the whole flow table
    (`with_connections`).
    """
    chosen = None if kinds is None else set(kinds)
    asked = None if only is None else _keys_by_kind(only)
    if only is not None and not any(RESOURCES[kind].is_given for kind in asked or ()):
        wanted = {key: wanted[key] for key in only if key in wanted}
    wanted_of = by_kind(wanted)
    resources: dict[Key, Resource] = {}
    foreign: dict[Key, str] = {}
    impossible: dict[Key, str] = {}
    for kind in KINDS:
        name = kind.resource.kind
        if (chosen is not None and name not in chosen) or (asked is not None and name not in asked):
            continue
        with progress.step(f"reading the node: {name}"):
            reading = kind(kernel).read(wanted_of.get(name, {}), None if asked is None else asked[name])
        if asked is not None:
            reading = reading.only(asked[name])
        for resource in reading.resources:
            resources[resource.key] = resource
        foreign |= reading.foreign
        impossible |= reading.impossible
    return Live(resources, foreign, impossible=impossible)


def _keys_by_kind(keys: Iterable[Key]) -> dict[str, set[Key]]:
    found: dict[str, set[Key]] = {}
    for key in keys:
        found.setdefault(key.kind, set()).add(key)
    return found


def by_kind(wanted: Mapping[Key, Resource]) -> dict[str, dict[Key, Resource]]:
    """The same resources, grouped."""
    found: dict[str, dict[Key, Resource]] = {}
    for key, resource in wanted.items():
        found.setdefault(key.kind, {})[key] = resource
    return found


def with_connections(live: Live, kernel: Kernel) -> Live:
    """The same state, with the open connections of each service and endpoint counted."""
    counts = Counter((flow.service, flow.endpoint) for flow in open_flows(kernel))
    return replace(live, connections=dict(counts))
