# SPDX-License-Identifier: Apache-2.0
"""The flow table, as connections of clients to services."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reconciler import clock
from reconciler.dataplane.layout import FLOWS, Direction, FlowState, word
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import ids_of
from reconciler.kinds.service import service_ids


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection. `idle_s` is the time since the table last saw a packet of it (to a second)."""

    client: str
    service: str
    endpoint: str
    state: str
    idle_s: int
    protocol: str = "tcp"

    @property
    def is_silent(self) -> bool:
        """Whether it was silent for so long that it counts as over. bpf/connection.h has the same times."""
        if self.protocol != "udp":
            return self.idle_s >= MAX_IDLE_S
        return self.idle_s >= (MAX_ONE_WAY_S if self.state == HALF_OPEN else MAX_DATAGRAM_IDLE_S)


def flows(kernel: Kernel) -> Iterator[Flow]:
    """Every connection in the table. Connections that have ended stay in it until their row is needed."""
    rows = kernel.dump(FLOWS.name)
    if not rows:  # mostly, and to name the services of a large fleet takes time
        return
    numbers = FLOWS.value.array(b"".join(value for _, value in rows))["endpoint"]
    endpoints = ids_of(kernel, np.unique(numbers).tolist())
    services = service_ids(kernel)
    now = clock.now_ns()
    for key, row in FLOWS.unpack(rows):
        if row.direction == Direction.REQUEST:
            yield Flow(
                f"{'.'.join(map(str, key.source))}:{key.source_port}",
                services.get(row.service, f"removed service {row.service}"),
                endpoints.get(row.endpoint, f"removed endpoint {row.endpoint}"),
                word(FlowState, row.state),
                max(0, now - row.last_seen) // 1_000_000_000,
                _PROTOCOLS.get(key.protocol, str(key.protocol)),
            )


def open_flows(kernel: Kernel) -> Iterator[Flow]:
    """Open connections: both sides have taken part, neither has closed it, and it is not silent for too long."""
    return (flow for flow in flows(kernel) if flow.state == OPEN and not flow.is_silent)


OPEN, HALF_OPEN = (state.name.lower() for state in (FlowState.OPEN, FlowState.OPENING))
"""States of a flow. A flow is half open while the client has sent SYNs only; of UDP, until the endpoint answers."""


MAX_IDLE_S = 7_440
"""RFC 5382, REQ-5: a NAT keeps an established connection for at least 2 hours 4 minutes."""
MAX_DATAGRAM_IDLE_S, MAX_ONE_WAY_S = 120, 30
"""Of UDP: RFC 4787, REQ-5, and as long as the endpoint has not answered."""
_PROTOCOLS = {6: "tcp", 17: "udp"}
