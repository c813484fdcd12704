# SPDX-License-Identifier: Apache-2.0
"""Both balancers behind a router are taken down and set up anew, one after the other, under load: keep-alive
connections, large transfers, and datagrams with numbers. Nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.lab.build import wait_until
from reconciler.lab.topology import CLIENT, ROUTER

from .conftest import LabMaker
from .direct import applied_on
from .frr import routers
from .numbered import Echo, Numbers
from .test_dsr_l3_ha import PORT, ROUTERS_OWN, UDP_PORT, VIP, WAIT_S, await_hops, with_names

pytestmark = pytest.mark.kernel

LARGE = 1_000_000
NODES = {"ha1": "ha2", "ha2": "ha1"}
PATIENT = r"bgp: \{asn: (\d+)\}", r"bgp: {asn: \1, bfd: false, holdTime: 60s}"
"""Who leaves says so. A busy machine must not make routers think that the other one is dead."""


def test_a_rolling_restart_of_all_balancers_loses_nothing(start_lab: LabMaker, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    lab = start_lab(with_names(manifests, ("grace: 10s", "grace: 1s"), PATIENT), node_name="ha1")
    lab.serve_http()
    lab.run(CLIENT, "ip", "route", "replace", str(VIP), "via", ROUTERS_OWN)
    with routers(lab, ROUTER, *NODES):
        agents = {host: lab.start_lbctl("run", str(manifests), "--node", host, host=host) for host in NODES}
        applied_on(lab, ROUTER, "apply", str(manifests), "--node", "router2", "--auto-approve")
        lab.apply(manifests)  # the endpoints
        await_hops(lab, *NODES)
        echoes = [Echo(lab, address, UDP_PORT, at=VIP) for address in lab.topology.endpoints]
        kept = lab.load(VIP, PORT, concurrency=12, requests_per_connection=0, rate=60, clients=12, timeout_s=30)
        large = lab.load(VIP, PORT, concurrency=2, rate=4, clients=12, payload_bytes=LARGE, timeout_s=30)
        numbers = Numbers(lab, VIP, UDP_PORT)
        wait_until("datagrams are answered", lambda: len(numbers.homes) > 10, WAIT_S)
        for host, other in NODES.items():
            applied_on(lab, host, "drain", "--balancer")
            await_hops(lab, other)
            before = len(numbers.homes)
            wait_until("the other one has all of it", lambda before=before: len(numbers.homes) > before + 50, WAIT_S)
            agents[host].terminate()
            agents[host].wait(WAIT_S)
            applied_on(lab, host, "delete", "--auto-approve")
            agents[host] = lab.start_lbctl("run", str(manifests), "--node", host, host=host)
            await_hops(lab, *NODES)
        assert numbers.stop() == []
        assert len({*numbers.homes}) == 1  # one port of one client: the same ring on both
        for one in (kept, large):
            outcomes = one.stop()
            assert [outcome.error for outcome in outcomes if outcome.error] == []
            assert len(outcomes) > 20
        for echo in echoes:
            echo.stop()
