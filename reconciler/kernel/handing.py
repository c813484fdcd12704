# SPDX-License-Identifier: Apache-2.0
"""The connections of NAT that a generation has, for the next one or for who reads them, whichever table they are
in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from reconciler.dataplane import endpoint_filter, endpoint_table
from reconciler.dataplane.connections import BUCKET_WORDS, PLACES, Entries
from reconciler.dataplane.layout import (
    CONNECTIONS,
    ENDPOINT_FILTER,
    ENDPOINTS,
    ENDPOINTS6,
    FRONTS,
    SEED,
    SERVICES,
)
from reconciler.kernel import bpf, connections, filling, former_flows, maps, whole_maps
from reconciler.kernel.former_flows import FLOWS, Fronts
from reconciler.kernel.generations import Generation
from reconciler.kernel.maps import OpenMap, Row


def fill(live: Generation, names: Iterable[str], opened: Callable[[str], OpenMap]) -> None:
    """Write the connections of the live generation into the tables of a new one, which nobody uses; `opened` opens
    maps of the new one. Fronts go first, where the live one has none."""
    secret = connections.seed_of(opened(SEED.name))
    for name in names:
        table = opened(name)
        if table.id == live.description.ids.get(name):
            continue
        with _opened(live, name) as source:
            if source:
                connections.Table(table, secret).fill(connections.held(source))
            elif name == CONNECTIONS.name:
                _fill_from_former(live, opened, connections.Table(table, secret))


def _fill_from_former(live: Generation, opened: Callable[[str], OpenMap], table: connections.Table) -> None:
    fronts = Fronts(whole_maps.read_joined(opened(FRONTS.name))[1])
    found = _former(live, fronts)
    fronts.write(opened(FRONTS.name))
    table.fill(found)


def open_filter(opened: Callable[[str], OpenMap], *, has_ipv6: bool) -> None:
    """Have the filter of a new generation let all endpoints pass that it has."""
    lines = opened(ENDPOINT_FILTER.name)

    def addresses6() -> Row:
        return whole_maps.read_joined(opened(ENDPOINTS6.name)) if has_ipv6 else (b"", b"")

    table = endpoint_table.table(whole_maps.read_joined(opened(ENDPOINTS.name)), addresses6)
    held = endpoint_filter.lines_of(whole_maps.read_joined(lines), lines.shape.capacity)
    wanted = held | endpoint_filter.filter_of(table.words, len(held))
    for error in filter(None, maps.update(lines, endpoint_filter.changed(held, wanted))):
        raise error


def has_former(generation: Generation) -> bool:
    """Whether its connections are in the table of an earlier version."""
    ids = generation.description.ids
    return FLOWS in ids and CONNECTIONS.name not in ids


def read(generation: Generation, name: str) -> Row:
    """All keys and values, each joined, of the map that this version would have in place of the table of an earlier
    one. Nothing can be found in it by a hash."""
    fronts = Fronts(bytes(FRONTS.value_size * generation.description.sizes[0]))
    found = _former(generation, fronts)
    if name == FRONTS.name:
        return np.arange(fronts.content.size, dtype=np.uint32).tobytes(), fronts.content.tobytes()
    table = np.zeros((-(-found.size // PLACES), 2, PLACES), np.uint64)
    for half, words in enumerate((found.who, found.where)):
        padded = np.zeros(table.shape[0] * PLACES, np.uint64)
        padded[: found.size] = words
        table[:, half] = padded.reshape(-1, PLACES)
    return np.arange(len(table), dtype=np.uint32).tobytes(), table.reshape(-1, BUCKET_WORDS).tobytes()


def _former(generation: Generation, fronts: Fronts) -> Entries:
    """The connections of an earlier version's table; `fronts` get those that they need."""
    described = generation.description.maps
    with ExitStack() as stack:
        services, endpoints, flows = (
            stack.enter_context(_opened(generation, name)) for name in (SERVICES.name, ENDPOINTS.name, FLOWS)
        )
        if services:
            rows = list(whole_maps.dump(services))
            fronts.add(filling.converted(SERVICES.name, described[SERVICES.name], rows))
        if not flows:
            return Entries(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        known = whole_maps.read_joined(endpoints)[1] if endpoints else b""
        return former_flows.entries(flows, described[FLOWS], known, fronts)


@contextmanager
def _opened(generation: Generation, name: str) -> Iterator[OpenMap | None]:
    fd = generation.open(name)
    if fd is None:
        yield None
        return
    with bpf.closing(fd):
        yield maps.describe(fd, generation.description.maps[name].type)
