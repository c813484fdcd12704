# SPDX-License-Identifier: Apache-2.0
"""The table of connections of earlier versions: an LRU hash with a row for each direction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from reconciler import clock
from reconciler.dataplane.description import MapDescription
from reconciler.dataplane.layout import MapType
from reconciler.kernel import bpf, maps
from reconciler.kernel.maps import OpenMap, Shape

FLOWS = "flows"
KEY = (("source", "V4"), ("destination", "V4"), ("source_port", ">u2"), ("destination_port", ">u2"),
       ("protocol", "u1"), ("pad", "V3"))  # fmt: skip
VALUE = (("address", "V4"), ("port", ">u2"), ("direction", "u1"), ("state", "u1"), ("endpoint", "u4"),
         ("service", "u4"), ("last_seen", "u8"), ("acknowledged", ">u4"), ("pad", "V4"))  # fmt: skip
REQUEST, REPLY = 0, 1


@dataclass(frozen=True)
class FlowRows:
    """A map, and how it is described."""

    opened: OpenMap
    description: MapDescription

    def connect(
        self, number: int, vip: str, vip_port: int, *, endpoint: int, port: int, state: int, protocol: int = 6,
        halves: str = "both", age_s: int = 0,
    ) -> int:  # fmt: skip
        """A connection of client 10.9.0.0 and so many further from port 40000, to endpoint 10.2.0.`endpoint`; returns
        the client's address as a number."""
        client, seen = bytes((10, 9, 0, number)), clock.now_ns() - age_s * 1_000_000_000
        server, front = bytes((10, 2, 0, endpoint)), bytes(map(int, vip.split(".")))
        request = (client, front, 40_000, vip_port, protocol, b""), (server, port, REQUEST, state)
        reply = (server, client, port, 40_000, protocol, b""), (front, vip_port, REPLY, state)
        for half, (key, row) in (("request", request), ("reply", reply)):
            if halves in ("both", half):
                maps.update_one(
                    self.opened, np.array([key], np.dtype(list(KEY))).tobytes(),
                    np.array([(*row, endpoint, 0, seen % 2**64, 0, b"")], np.dtype(list(VALUE))).tobytes(),
                )  # fmt: skip
        return int.from_bytes(client, "big")


@contextmanager
def flow_rows(capacity: int) -> Iterator[FlowRows]:
    """An empty table."""
    sizes = [np.dtype(list(fields)).itemsize for fields in (KEY, VALUE)]
    with bpf.closing(maps.create(FLOWS, Shape(MapType.LRU_HASH, *sizes, capacity))) as fd:
        yield FlowRows(maps.describe(fd), MapDescription(MapType.LRU_HASH, 0, capacity, KEY, VALUE))
