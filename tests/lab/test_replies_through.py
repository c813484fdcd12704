# SPDX-License-Identifier: Apache-2.0
"""Direct server return where endpoints know no way to the client but over the balancer, whose kernel then forwards
replies with its own VIPs for sources."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

MANIFESTS = """\
apiVersion: lbctl/v1
kind: Node
metadata: {name: lb1}
spec: {interfaces: [{name: front, addresses: [CLIENTS1/MASK]}, {name: back, addresses: [SERVERS1/MASK]}]}
---
apiVersion: lbctl/v1
kind: Node
metadata: {name: server}
spec: {role: endpoint, address: 'SERVERS11', interfaces: [{name: eth0}]}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec: {endpoints: [{address: 'SERVERS11'}]}
---
apiVersion: lbctl/v1
kind: Service
metadata: {name: web}
spec: {vip: 'VIP', ports: [80], mode: dsr-l2, pool: web}
"""
FAMILIES = {
    4: {"CLIENTS": "10.1.0.", "SERVERS": "10.2.0.", "MASK": "24", "VIP": "20.20.20.1"},
    6: {"CLIENTS": "2001:db8:1::", "SERVERS": "2001:db8:2::", "MASK": "64", "VIP": "2001:db8:20::1"},
}


def failures(lab: Lab, vip: IPv4Address | IPv6Address, count: int = 4) -> list[str]:
    """Why requests were not answered; empty where all of them were."""
    return [o.error for o in lab.load(vip, 80, count=count, timeout_s=4).wait() if o.error]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_that_come_back_through_the_balancer_reach_the_client(
    start_lab: LabMaker, tmp_path: Path, family: int
) -> None:
    manifests, text = tmp_path / "manifests", MANIFESTS
    for name, value in FAMILIES[family].items():
        text = text.replace(name, value)
    manifests.mkdir()
    (manifests / "all.yaml").write_text(text)
    fleet = load(manifests).fleet
    assert fleet
    lab = start_lab(fleet, node_name="lb1")
    (server,), (vip,) = lab.topology.endpoints, fleet.services[0].vips
    over_the_balancer = FAMILIES[family]["SERVERS"] + "1"
    lab.run(host_of(server), "ip", f"-{family}", "route", "replace", "default", "via", over_the_balancer)
    lab.serve_http()
    lab.apply(manifests)
    wait_until("the first request is answered", lambda: not failures(lab, vip, 1))
    assert failures(lab, vip) == []

    # Requests are asked about at front, replies at back, but for those of IPv6, of which `all` decides.
    for interface in ("front", "back") if family == 4 else ("front",):
        netns.write_sysctls(lab.balancer, {f"net/ipv{family}/conf/{interface}/forwarding": "0"})
        assert failures(lab, vip, 1) == ["TimeoutError: timed out"]
        shown = lab.lbctl("plan", str(manifests), "--node", "lb1").stdout
        assert f"~ sysctl net/ipv{family}/conf/{interface}/forwarding" in shown
        lab.apply(manifests)
        assert failures(lab, vip) == []
