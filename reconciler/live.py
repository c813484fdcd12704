# SPDX-License-Identifier: Apache-2.0
"""A node's live state, read from its kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from operator import is_
from types import MappingProxyType

from reconciler import progress
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS, RESOURCES
from reconciler.readings.flows import open_counts
from reconciler.resource import Desired, Key, Live, Resource, by_kind


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
    return _read(kernel, by_kind(wanted), chosen, asked)


def read_node(kernel: Kernel, desired: Desired) -> Live:
    """The readings of all kinds, for what the manifests ask of the node. Without connections, as `read_live`."""
    return _read(kernel, desired.of_kind)


def _read(
    kernel: Kernel,
    wanted_of: Mapping[str, Mapping[Key, Resource]],
    chosen: Collection[str] | None = None,
    asked: Mapping[str, Collection[Key]] | None = None,
) -> Live:
    resources: dict[Key, Resource] = {}
    foreign: dict[Key, str] = {}
    impossible: dict[Key, str] = {}
    for kind in KINDS:
        name = kind.resource.kind
        if (chosen is not None and name not in chosen) or (asked is not None and name not in asked):
            continue
        wanted = wanted_of.get(name, {})
        with progress.step(f"reading the node: {name}"):
            reading = kind(kernel).read(wanted, None if asked is None else asked[name])
        if asked is not None:
            reading = reading.only(asked[name])
        found = reading.resources
        if len(found) == len(wanted) and all(map(is_, found, wanted.values())):
            resources.update(wanted)  # all is as it should be: no need to ask each for its key
        else:
            resources.update((resource.key, resource) for resource in found)
        foreign |= reading.foreign
        impossible |= reading.impossible
    return Live(resources, foreign, impossible=impossible)


def _keys_by_kind(keys: Iterable[Key]) -> dict[str, set[Key]]:
    found: dict[str, set[Key]] = {}
    for key in keys:
        found.setdefault(key.kind, set()).add(key)
    return found


def with_connections(live: Live, kernel: Kernel) -> Live:
    """The same state, with the open connections of each service and endpoint counted."""
    return replace(live, connections=open_counts(kernel))
