# SPDX-License-Identifier: Apache-2.0
"""Direct server return where endpoints know no way to the client but over the balancer, whose kernel then forwards
replies with its own VIPs for sources."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from tests.nft import DROP, FORWARD, IP, accepting, chain, nft

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


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path) -> Callable[[int], Lab]:
    """One endpoint whose only way leads over the balancer, with everything applied; of a family of IP."""

    def start(family: int) -> Lab:
        manifests, text = tmp_path / "manifests", MANIFESTS
        for name, value in FAMILIES[family].items():
            text = text.replace(name, value)
        manifests.mkdir()
        (manifests / "all.yaml").write_text(text)
        fleet = load(manifests).fleet
        assert fleet
        lab = start_lab(fleet, node_name="lb1")
        (server,) = lab.topology.endpoints
        balancer = FAMILIES[family]["SERVERS"] + "1"
        lab.run(host_of(server), "ip", f"-{family}", "route", "replace", "default", "via", balancer)
        lab.serve_http()
        lab.apply(manifests)
        wait_until("the first request is answered", lambda: not failures(lab, 1))
        assert failures(lab) == []
        return lab

    return start


def failures(lab: Lab, count: int = 4) -> list[str]:
    """Why requests were not answered; empty where all of them were."""
    (vip,) = lab.fleet.services[0].vips
    return [o.error for o in lab.load(vip, 80, count=count, timeout_s=4).wait() if o.error]


def plan(lab: Lab, manifests: Path) -> str:
    return lab.lbctl("plan", str(manifests), "--node", "lb1").stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_that_come_back_through_the_balancer_reach_the_client(
    site: Callable[[int], Lab], tmp_path: Path, family: int
) -> None:
    lab, manifests = site(family), tmp_path / "manifests"
    # Requests are asked about at front, replies at back, but for those of IPv6, of which `all` decides.
    for interface in ("front", "back") if family == 4 else ("front",):
        netns.write_sysctls(lab.balancer, {f"net/ipv{family}/conf/{interface}/forwarding": "0"})
        # An answer of the FIB serves for up to 320 ms more.
        wait_until("requests fail", lambda: failures(lab, 1) == ["TimeoutError: timed out"])
        assert f"~ sysctl net/ipv{family}/conf/{interface}/forwarding" in plan(lab, manifests)
        lab.apply(manifests)
        assert failures(lab) == []


def test_a_firewall_that_stops_replies_is_told_of_until_it_lets_them_through(
    site: Callable[[int], Lab], tmp_path: Path
) -> None:
    lab, manifests = site(4), tmp_path / "manifests"
    assert "warning" not in plan(lab, manifests)
    netns.inside(lab.balancer, lambda: nft(*chain(IP, b"filter", b"FORWARD", FORWARD, DROP)))
    assert failures(lab, 1) == ["TimeoutError: timed out"]
    assert "warning: firewall nft ip filter FORWARD: " in plan(lab, manifests)
    for interface in (b"front", b"back"):
        netns.inside(lab.balancer, nft, accepting(IP, b"filter", b"FORWARD", interface))
    assert failures(lab) == []
    assert "warning" not in plan(lab, manifests)
