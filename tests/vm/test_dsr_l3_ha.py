# SPDX-License-Identifier: Apache-2.0
"""The example dsr-l3-ha on a kernel with tunnel devices of its own: routing daemons that lbctl configures, ten
thousand flows by both balancers; connections that outlive a drain, a return and a death of one of them, and the same
flows from the same endpoints after that."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, ROUTER, host_of
from tests.lab.conftest import LabMaker, start_lab  # noqa: F401  a fixture
from tests.lab.frr import routers
from tests.lab.test_dsr_l3_ha import (
    ENDPOINTS,
    FLOWS,
    PORT,
    ROUTERS_OWN,
    VIP,
    WAIT_S,
    applied_on,
    apply,
    await_hops,
    await_ping,
    check_quiet,
    check_undefined,
    counted_flows,
    echoes,
    requests,
    with_names,
)

NODES = {ROUTER: "router2", "ha1": "ha1", "ha2": "ha2"}


def unpacked(lab: Lab) -> int:
    """How many packets came out of the kernel's own tunnels, on all endpoints."""
    found = 0
    for address in lab.topology.endpoints:
        links = json.loads(lab.run(host_of(address), "ip", "-json", "-statistics", "-details", "link"))
        of_tunnels = [link for link in links if link.get("linkinfo", {}).get("info_kind") == "ipip"]
        found += sum(link["stats64"]["rx"]["packets"] for link in of_tunnels)
    return found


def test_flows_and_connections_go_by_two_balancers_and_by_one(start_lab: LabMaker, tmp_path: Path) -> None:  # noqa: F811
    manifests = tmp_path / "manifests"
    lab = start_lab(with_names(manifests, ("grace: 10s", "grace: 1s")), node_name="ha1")
    lab.serve_http()
    lab.run(CLIENT, "ip", "route", "replace", str(VIP), "via", ROUTERS_OWN)
    with routers(lab, *NODES):
        nodes = NODES | {host_of(address): name for address, name in lab.topology.endpoint_nodes.items()}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda place: apply(lab, manifests, *place), nodes.items()))
        await_hops(lab, "ha1", "ha2")
        with echoes(lab):
            homes = counted_flows(lab, "ha1", "ha2")
            assert unpacked(lab) >= FLOWS
            await_ping(lab)
            check_undefined(lab, "ha1", "ha2")

            # Connections of TCP that are open all the while.
            load = lab.load(VIP, PORT, concurrency=32, requests_per_connection=0, rate=20, clients=32, timeout_s=60)
            wait_until("requests are answered", lambda: len(load.outcomes()) > 100, WAIT_S)
            # Of 32 connections: odds below 1e-9 that chance leaves one out.
            assert min(requests(lab, host) for host in ("ha1", "ha2")) > 0
            for word, left in (("drain", ("ha1",)), ("undrain", ("ha1", "ha2"))):
                applied_on(lab, "ha2", word, "--balancer")
                apply(lab, manifests, "ha2", "ha2")
                await_hops(lab, *left)
                before = len(load.outcomes())
                wait_until("the connections go on", lambda: len(load.outcomes()) > before + 20, WAIT_S)  # noqa: B023
            lab.run("ha1", "ip", "link", "set", "eth0", "down")
            await_hops(lab, "ha2")
            before = len(load.outcomes())
            wait_until("the connections go on", lambda: len(load.outcomes()) > before + 40, WAIT_S)
            outcomes = load.stop()
            assert [outcome.error for outcome in outcomes if outcome.error] == []
            again = counted_flows(lab, "ha2", flows=1_000)
            assert again.items() <= homes.items()
        # Each of three has a third of the clients: odds below 1e-10 that chance leaves one out.
        outcomes = lab.load(VIP, PORT, count=64, concurrency=4, clients=64, timeout_s=60).wait()
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        assert {outcome.endpoint for outcome in outcomes} == ENDPOINTS
        check_quiet(lab, "ha1", "ha2")
