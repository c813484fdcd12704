# SPDX-License-Identifier: Apache-2.0
"""How much one node can hold with this version of the data plane.

The maps are made in these sizes (`kernel/layout.py`), and `config/rules` count against them before anybody writes. A
VIP and a ring have at least one service row each, so what has room for its services has room for those.
"""

from __future__ import annotations

SERVICES = 16_384
"""Pairs of a VIP and a port, of both families of IP together: each has counters."""

ENDPOINTS = 131_071
"""Addresses with a port. Number 0 stands for no endpoint."""

FLOW_ROWS = 262_144
CONNECTIONS = FLOW_ROWS // 2
"""Of NAT: a connection has a row for each direction."""

MIN_HASH_SLOTS = 4_096
MAX_HASH_SLOTS = 65_536


def default_size(members: int) -> int:
    """Slots of a hash ring unless asked for otherwise: 64 a member, a power of two of 4,096 to 65,536."""
    return min(MAX_HASH_SLOTS, max(MIN_HASH_SLOTS, 1 << (64 * members - 1).bit_length()))
