# SPDX-License-Identifier: Apache-2.0
"""How much one node can hold with this version of the data plane.

The maps are made in these sizes (`dataplane/layout.py`), and `config/rules` checks manifests against them. Each VIP
and each ring has at least one service row, so a node with room for its services has room for its VIPs and rings.
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
    """Slots of a hash ring without `ringSize`: 64 for each member, rounded to a power of two from 4,096 to 65,536."""
    return min(MAX_HASH_SLOTS, max(MIN_HASH_SLOTS, 1 << (64 * members - 1).bit_length()))
