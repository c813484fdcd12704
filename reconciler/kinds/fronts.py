# SPDX-License-Identifier: Apache-2.0
"""Fronts: what clients see of services of nat. Connections find theirs by the index of the service's row."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.connections import IDLE_S, idle_units
from reconciler.dataplane.layout import FRONTS
from reconciler.dataplane.rows import Front
from reconciler.kinds.service_row import PROTOCOLS, ServiceRow, protocol_name
from reconciler.model import Mode
from reconciler.served import Place

_MOST_IDLE = 0xFFFF


def is_translating(mode: str) -> bool:
    """Whether the program remembers what clients see of a service in this mode, by its front."""
    return mode in (Mode.NAT, Mode.FULLNAT)


def packed_front(row: ServiceRow) -> bytes:
    """What clients see of a service of nat."""
    number = PROTOCOLS[row.vip.version].get(row.protocol, 0)
    idle_s = row.idle_timeout_s or IDLE_S.get(number, 0)
    vip = row.vip.packed.ljust(16, b"\0")
    idle = min(idle_units(idle_s), _MOST_IDLE) if idle_s else 0  # a damaged front may say anything
    return FRONTS.value.pack(
        Front(vip, row.port, row.target_port, idle, number, row.vip.version, row.idle_timeout_s, row.affinity_s)
    )


def id_of_front(fronts: NDArray[np.void], number: int) -> str | None:
    """The id of the service that a front is, or was, of; None if there is none at this number."""
    if number >= fronts.size or not fronts["protocol"][number]:
        return None
    front = FRONTS.value.unpack(fronts[number].tobytes())
    version = 6 if front.version == 6 else 4
    vip = ip_address(front.vip if version == 6 else front.vip[:4])
    return ServiceRow(vip, protocol_name(version, front.protocol, 0), front.port, "", "", "").id


def front_of(row: ServiceRow) -> Place:
    """The service as rows of sources name it."""
    return row.vip.packed, row.port, PROTOCOLS[row.vip.version].get(row.protocol, 0)
