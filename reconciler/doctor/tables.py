# SPDX-License-Identifier: Apache-2.0
"""Tables of the data plane in which there is not much room left. Of those of connections, and of ports of fullnat,
a plan warns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reconciler.dataplane.layout import (
    PORT_POOLS,
    RING_CHUNKS,
    RINGS,
    SERVED,
    SOURCE_LISTS,
    SOURCES,
    SOURCES6,
    UNPACKED,
)
from reconciler.doctor.finding import Finding
from reconciler.kernel.port import Kernel
from reconciler.kinds.program import NEARLY_FULL_PERCENT
from reconciler.model import Node
from reconciler.readings.occupancy import occupancy
from reconciler.resource import Key, Resource

_REFUSED = "further manifests are refused"
_SOURCES = "fewer or larger networks in `allowedSources`, or fewer services that have some on this node"
_TABLES = {
    RINGS.name: ("rings of pools", _REFUSED, "fewer pools on this node: a `nodeSelector` of their services"),
    RING_CHUNKS.name: ("parts of rings", _REFUSED, "a smaller `ringSize` of large pools, or fewer pools on this node"),
    SOURCES.name: ("networks of IPv4 that may use services", _REFUSED, _SOURCES),
    SOURCES6.name: ("networks of IPv6 that may use services", _REFUSED, _SOURCES),
    SOURCE_LISTS.name: ("lists of sources that may use services", _REFUSED, "the same `allowedSources` for several"),
    UNPACKED.name: ("VIPs whose tunnels end here", _REFUSED, "a kernel with ipip and ip6tnl, which needs no table"),
    SERVED.name: (
        "sources of stateless services", _REFUSED, "a greater `capacity: {endpoints: …}` in the Node, or none",
    ),
    PORT_POOLS.name: (
        "pairs of a source and a server of fullnat", "connections to servers that had none before are refused",
        "a greater `capacity: {flows: …}` in the Node, or fewer of `snatAddresses`",
    ),
}  # fmt: skip
"""Those that manifests fill, but for services and endpoints: what is in them, what comes of it when they are full, and
the way out."""


def of_tables(node: Node, held: Mapping[Key, Resource], kernel: Kernel) -> Iterator[Finding]:
    """`held` is what the node holds of lbctl's."""
    loaded = kernel.loaded_program()
    if loaded is None:
        return
    full = [
        (what, sum(key.kind == kind for key in held), room, _REFUSED,
         f"a greater `capacity: {{{what}: {2 * room}}}` in the Node, or none: then tables grow")
        for what, kind, room in (("services", "service", loaded.sizes.services),
                                 ("endpoints", "endpoint", loaded.sizes.endpoints))
    ]  # fmt: skip
    for rows in occupancy(kernel):
        if rows.map in _TABLES:
            what, consequence, way_out = _TABLES[rows.map]
            full.append((what, rows.used, rows.most, consequence, way_out))
    for what, count, room, consequence, way_out in full:
        if room and count * 100 >= room * NEARLY_FULL_PERCENT:
            yield Finding(
                "table-nearly-full", f"{count:,} {what} in a table for {room:,}", f"once it is full, {consequence}",
                way_out, node.places.get("capacity", node.span),
            )  # fmt: skip
