# SPDX-License-Identifier: Apache-2.0
"""VIPs of both families, announced by real routing daemons: over a session of each family, and over one of IPv4 that
is about both. An IPv6 VIP is told, drained and withdrawn as one of IPv4 is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest

from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, ROUTER

from .conftest import LabMaker
from .direct import applied_on, example
from .frr import Router, routers

pytestmark = pytest.mark.kernel

VIP, VIP6, PORT = ip_address("20.20.20.61"), ip_address("2001:db8:20::61"), 80
LEAVING = 4_000_000
BALANCERS = {"lb9": ("10.61.0.1", "2001:db8:61::1"), "lb10": ("10.61.0.2", "2001:db8:61::2")}
WAIT_S = 240.0
SPEAKS = r"\1\2  bgp: {asn: 65001}\n  announce: {grace: 1s}\n"
OTHERS = """---
{apiVersion: lbctl/v1, kind: Node, metadata: {name: lb10, labels: {site: dsr-l3-ipv6}}, spec: {bgp: {asn: 65002},
  announce: {grace: 30s}, interfaces: [{name: eth0, addresses: [10.61.0.2/24, '2001:db8:61::2/64'], mtu: 1540}]}}
---
{apiVersion: lbctl/v1, kind: Node, metadata: {name: router9}, spec: {role: router, bgp: {asn: 65000}, multipath: 2,
  interfaces: [{name: eth0, addresses: [10.61.0.254/24, '2001:db8:61::fe/64'], mtu: 1540}]}}
"""


def next_hops(lab: Lab, vip: object) -> set[str]:
    """The balancers to which the router's kernel sends packets for a VIP."""
    words = lab.run(ROUTER, "ip", "route", "show", str(vip)).split() if ":" not in str(vip) else lab.run(
        ROUTER, "ip", "-6", "route", "show", str(vip)).split()  # fmt: skip
    return {after for word, after in pairwise(words) if word == "via"}


def await_hops(lab: Lab, *hosts: str) -> None:
    for number, vip in enumerate((VIP, VIP6)):
        wanted = {BALANCERS[host][number] for host in hosts}
        wait_until(f"packets for {vip} go to {hosts}", lambda: next_hops(lab, vip) == wanted, WAIT_S)  # noqa: B023


def told(router: Router, vip: object) -> list[dict[str, object]]:
    family = "ipv6" if ":" in str(vip) else "ipv4"
    routes = router.show(f"show bgp {family} unicast")["routes"]
    return [path for prefix, paths in routes.items() if prefix.startswith(f"{vip}/") for path in paths]


def apply(lab: Lab, manifests: Path) -> None:
    def one(place: tuple[str, str]) -> None:
        applied_on(lab, place[0], "apply", str(manifests), "--node", place[1], "--auto-approve")

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, ((ROUTER, "router9"), ("lb9", "lb9"), ("lb10", "lb10"))))


def test_ipv6_vips_are_announced_drained_and_withdrawn_as_those_of_ipv4(start_lab: LabMaker, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    ours = (r"(?s)(metadata:\n  name: lb9\n.*?)(  tunnelSource.*?\n)", SPEAKS)
    lab = start_lab(example("dsr-l3-ipv6", manifests, ours, (r"(?s)(\A# .*node\.v1.*)\Z", rf"\1{OTHERS}")),
                    node_name="lb9")  # fmt: skip
    lab.serve_http()
    lab.run(CLIENT, "ip", "-6", "route", "replace", str(VIP6), "via", "2001:db8:61::fe")
    with routers(lab, ROUTER, *BALANCERS) as daemons:
        lab.apply(manifests)
        # Somebody else's BGP runs on the router: it is left alone until it is to be taken over.
        words = ("apply", str(manifests), "--node", "router9", "--auto-approve")
        daemons[ROUTER].type("router bgp 64999", "neighbor 10.61.0.77 remote-as 64998")
        refused = lab.lbctl(*words, host=ROUTER)
        assert refused.returncode == 6
        assert "in the way: `router bgp 64999` in FRR" in refused.stdout + refused.stderr
        assert "10.61.0.77" in daemons[ROUTER].configuration()
        applied_on(lab, ROUTER, *words, "--adopt")
        assert "router bgp 65000" in daemons[ROUTER].configuration()
        assert "10.61.0.77" not in daemons[ROUTER].configuration()
        apply(lab, manifests)
        await_hops(lab, *BALANCERS)
        outcomes = lab.load(VIP6, PORT, count=96, concurrency=8, clients=48, timeout_s=30).wait()
        # Of 48 clients and more, each endpoint has a quarter at least: odds below 3 (3/4)^96, 1e-11, to leave one out.
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        assert len({outcome.endpoint for outcome in outcomes}) == 3

        # Leaving: the metric becomes the community, which the router heeds while the balancer still answers.
        applied_on(lab, "lb10", "drain", "--balancer", "--reason", "new kernel")
        agent = lab.start_lbctl("run", str(manifests), "--node", "lb10", host="lb10")
        await_hops(lab, "lb9")
        for vip in (VIP, VIP6):
            paths = {path["metric"]: path.get("locPrf") for path in told(daemons[ROUTER], vip)}
            assert paths.keys() == {100, LEAVING}
            assert paths[LEAVING] == 0, "the router did not hear of it as GRACEFUL_SHUTDOWN (RFC 8326)"
            assert paths[100] != 0
        applied_on(lab, "lb10", "undrain", "--balancer")
        await_hops(lab, *BALANCERS)
        agent.terminate()
        agent.wait(WAIT_S)

        # A worse MED, as of a balancer that is degraded, is enough for routers to turn to the other one.
        nodes = manifests / "nodes.yaml"
        text = nodes.read_text()
        nodes.write_text(text.replace("announce: {grace: 30s}", "announce: {grace: 30s, metric: 900}"))
        applied_on(lab, "lb10", "apply", str(manifests), "--node", "lb10", "--auto-approve")
        await_hops(lab, "lb9")
        for vip in (VIP, VIP6):
            paths = {path["metric"]: path.get("locPrf") for path in told(daemons[ROUTER], vip)}
            assert paths.keys() == {100, 900} and paths[900] != 0
        nodes.write_text(text)
        applied_on(lab, "lb10", "apply", str(manifests), "--node", "lb10", "--auto-approve")
        await_hops(lab, *BALANCERS)

        # One session of IPv4 is enough for both.
        for path in manifests.iterdir():
            path.write_text(path.read_text().replace("bgp: {asn:", "bgp: {multiprotocol: true, asn:"))
        apply(lab, manifests)
        await_hops(lab, *BALANCERS)
        peers = daemons[ROUTER].show("show bgp ipv6 unicast summary")["peers"]
        assert sorted(peers) == [own[0] for own in BALANCERS.values()]
        applied_on(lab, "lb9", "delete", "--auto-approve")
        await_hops(lab, "lb10")
