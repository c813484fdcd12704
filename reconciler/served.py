# SPDX-License-Identifier: Apache-2.0
"""Which service of nat without memory the replies of an endpoint belong to: the map `served`, and how each service of
nat stands between the table of connections and no memory at all (bpf/stateless.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from reconciler import clock, connections
from reconciler.dataplane.connections import IDLE_S, UNIT_SHIFT, idle_units
from reconciler.dataplane.layout import SERVED, ModeCode
from reconciler.dataplane.rows import Served, ServiceKey
from reconciler.kernel.port import Kernel

Place = tuple[bytes, int, int]
"""VIP, port and number of the protocol."""


def now() -> int:
    """The present moment in the unit of `until`."""
    return clock.now_ns() >> UNIT_SHIFT


def given_up(row: Served, protocol: int) -> Served:
    """The row of an endpoint that its service gives up: good for as long as a connection may be silent."""
    return row._replace(until=now() + idle_units(IDLE_S.get(protocol, IDLE_S[6])))


@dataclass(frozen=True)
class Sources:
    """The rows at one moment, those that were given up and are over left out."""

    kernel: Kernel

    @cached_property
    def rows(self) -> Mapping[ServiceKey, Served]:
        if not self.kernel.capacity(SERVED.name):
            return {}
        moment = now()
        found = SERVED.unpack(self.kernel.dump(SERVED.name))
        return {key: row for key, row in found if not row.until or row.until >= moment}

    @cached_property
    def endpoints(self) -> Mapping[Place, set[int]]:
        """The numbers of the endpoints that a service has, or gave up."""
        found: dict[Place, set[int]] = {}
        for key, row in self.rows.items():
            found.setdefault((row.vip, row.port, key.protocol), set()).add(row.endpoint)
        return found

    @cached_property
    def _in_use(self) -> tuple[set[int], set[int]]:
        return connections.numbers_in_use(self.kernel)

    def mode(self, front: Place, index: int, *, is_stateless: bool) -> ModeCode:
        """What the row of a service of nat with this index has to say. While the table has connections of it, or of
        its endpoints, it is asked; while replies come that it doesn't know, endpoints are told by their source."""
        own = self.endpoints.get(front)
        if not is_stateless:
            return ModeCode.NAT_LEAVING if own else ModeCode.NAT
        endpoints, services = self._in_use
        is_settling = index in services or not endpoints.isdisjoint(own or ())
        return ModeCode.NAT_SETTLING if is_settling else ModeCode.NAT_STATELESS


def endpoints_in_use(kernel: Kernel) -> set[int]:
    """The numbers of the endpoints that rows have."""
    return {row.endpoint for row in Sources(kernel).rows.values()}
