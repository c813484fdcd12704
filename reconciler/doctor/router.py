# SPDX-License-Identifier: Apache-2.0
"""A router in front of balancers: the ways that it has to each VIP. Its settings are part of its plan."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.doctor.finding import Finding
from reconciler.kernel.port import Kernel
from reconciler.model import Fleet


def of_router(fleet: Fleet, kernel: Kernel) -> Iterator[Finding]:
    spans = {str(vip): service.span for service in fleet.services for vip in service.vips}
    ways = kernel.ways(list(spans)) if spans else {}
    for vip in sorted(vip for vip, interface in ways.items() if not interface):
        yield Finding(
            "vip-unrouted", f"the router has no route to the VIP {vip}", "clients behind it do not reach the VIP",
            "announce it from the balancers (`announce` of their Nodes), or make a static route", spans[vip],
        )  # fmt: skip
