# SPDX-License-Identifier: Apache-2.0
"""An endpoint, or a router, gets another MAC in silence, while all traffic goes by XDP: whether the data plane hears
of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import AlgorithmCode, ModeCode
from reconciler.kernel.objects import Neighbour
from reconciler.kinds.routers import Routers, RoutersKind
from reconciler.resource import Change
from tests.packets.balancer import CLIENT, VIP, Balancer, inside, ip
from tests.packets.frames import At, tcp

pytestmark = pytest.mark.kernel

KEPT, LEFT, ROUTER = "10.4.0.11", "10.4.0.12", "10.4.0.13"
FAR = "10.90.0.1"
"""An endpoint behind the router."""
OLD, NEW = "02:04:00:00:00:01", "02:04:00:00:00:02"
LIMIT_S = 40
"""The kernel asks every 5 s; an entry needs three turns at most: stale, unreachable, found."""


@pytest.fixture
def endpoint(balancer: Balancer) -> Iterator[str]:
    """A machine with two addresses behind the balancer's `side`, whose entries age within seconds."""
    name = f"lbs-fresh-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", balancer.netns, "link", "add", "side", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", balancer.netns, "addr", "add", "10.4.0.1/24", "dev", "side")
        ip("-n", balancer.netns, "link", "set", "side", "up")
        ip("-n", name, "link", "set", "eth0", "address", OLD)
        for address in (KEPT, LEFT, ROUTER):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", balancer.netns, "route", "add", "10.90.0.0/16", "via", ROUTER)
        with inside(balancer.netns):
            settings = Path("/proc/sys/net/ipv4/neigh/side")
            for setting, value in (
                ("base_reachable_time_ms", 500), ("delay_first_probe_time", 1), ("retrans_time_ms", 100),
            ):  # fmt: skip
                (settings / setting).write_text(str(value))
        yield name
    finally:
        ip("netns", "del", name)


def mac_of(balancer: Balancer, port: int) -> str | None:
    """Where the data plane sends what is for this service, None if it doesn't know."""
    content = tcp(CLIENT, At(VIP, port))
    packet = Ether(balancer.send(content).frame)
    return packet.dst if packet.dst in (OLD, NEW) else None


def wait_for(balancer: Balancer, port: int, mac: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while mac_of(balancer, port) != mac:
        assert time.monotonic() < deadline, f"not in {LIMIT_S} s"
        time.sleep(0.1)


def test_a_kept_neighbour_is_never_stale_for_long(balancer: Balancer, endpoint: str) -> None:
    for port, (id, address) in {80: (1, KEPT), 81: (2, LEFT)}.items():
        balancer.endpoint(id, address)
        balancer.serve(At(VIP, port), [id], index=id, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    balancer.settings("10.4.0.1")
    balancer.endpoint(3, FAR)
    balancer.serve(At(VIP, 82), [3], index=3, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    with inside(balancer.netns):
        assert balancer.kernel.keep_neighbours([Neighbour(KEPT, "side")]) == [None]
        routers = RoutersKind(balancer.kernel)
        assert routers.write([Change(Routers().key, None, Routers())]) == [None]
        assert routers.read({Routers().key: Routers()}).resources == (Routers(),)
        assert Neighbour(ROUTER, "side") in balancer.kernel.neighbours()[0]
    wait_for(balancer, 80, OLD)
    wait_for(balancer, 82, OLD)
    ip("-n", balancer.netns, "neigh", "replace", LEFT, "lladdr", OLD, "dev", "side", "nud", "stale")
    wait_for(balancer, 81, OLD)

    ip("-n", endpoint, "link", "set", "eth0", "address", NEW)
    wait_for(balancer, 80, NEW)
    wait_for(balancer, 82, NEW)
    assert mac_of(balancer, 81) == OLD  # nobody told the kernel, and XDP didn't make it ask
