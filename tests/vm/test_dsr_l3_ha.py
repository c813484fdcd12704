# SPDX-License-Identifier: Apache-2.0
"""The example dsr-l3-ha on a kernel with tunnel devices of its own: routing daemons that lbctl configures, ten
thousand flows by both balancers, and the same flows from the same endpoints when one balancer has died."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, ROUTER, host_of
from tests.lab.conftest import LabMaker, start_lab  # noqa: F401  a fixture
from tests.lab.frr import routers
from tests.lab.test_dsr_l3_ha import (
    FLOWS,
    ROUTERS_OWN,
    VIP,
    apply,
    await_hops,
    counted_flows,
    echoes,
    icmp,
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


def test_ten_thousand_flows_go_by_two_balancers_and_by_one(start_lab: LabMaker, tmp_path: Path) -> None:  # noqa: F811
    manifests = tmp_path / "manifests"
    lab = start_lab(with_names(manifests), node_name="ha1")
    lab.run(CLIENT, "ip", "route", "replace", str(VIP), "via", ROUTERS_OWN)
    with routers(lab, *NODES):
        nodes = NODES | {host_of(address): name for address, name in lab.topology.endpoint_nodes.items()}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda place: apply(lab, manifests, *place), nodes.items()))
        await_hops(lab, "ha1", "ha2")
        with echoes(lab):
            homes = counted_flows(lab, "ha1", "ha2")
            assert unpacked(lab) >= FLOWS
            lab.run("ha1", "ip", "link", "set", "eth0", "down")
            await_hops(lab, "ha2")
            again = counted_flows(lab, "ha2", flows=1_000)
            assert again.items() <= homes.items()
        for host in NODES:
            assert icmp(lab, host, "OutRedirects") == icmp(lab, host, "OutTimeExcds") == 0
