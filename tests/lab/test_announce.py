# SPDX-License-Identifier: Apache-2.0
"""Two balancers announce a VIP by BGP, and a router shares it out among them by equal paths: user, router, balancers,
endpoints, and replies past the balancers. The daemons are real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest

from reconciler.kernel import bpf, xdp
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, ROUTER
from reconciler.lab.traffic import Outcome
from reconciler.readings.tables import services

from .conftest import LabMaker
from .direct import applied_on, example
from .frr import Router, bgp, routers

pytestmark = pytest.mark.kernel

VIP, PORT = IPv4Address("20.20.20.31"), 443
BALANCERS = {"lb4": "10.31.0.1", "lb5": "10.31.0.2"}
ROUTERS_OWN = "10.31.0.254"
WAIT_S = 60.0
PASS = bytes.fromhex("b7000000020000009500000000000000")
"""r0 = XDP_PASS; exit"""
ANNOUNCE = (r"(addresses: \[10.31.0..(?<!254)/24\], mtu: 1520.*\}\n)", r"\1  announce: {}\n")


@contextmanager
def site(start_lab: LabMaker, directory: Path) -> Iterator[tuple[Lab, dict[str, Router]]]:
    """The lab with its daemons. The client's way to the VIP is the router, and what routers it knows are real."""
    lab = start_lab(example("dsr-l3", directory / "manifests", ANNOUNCE), node_name="lb4")
    lab.serve_http()
    lab.run(CLIENT, "ip", "route", "replace", str(VIP), "via", ROUTERS_OWN)
    netns.write_sysctls(lab.netns(ROUTER), {"net/ipv4/fib_multipath_hash_policy": "1"})
    configs = {ROUTER: bgp(65000, ROUTERS_OWN, {BALANCERS["lb4"]: 65004, BALANCERS["lb5"]: 65005}, announces=False)}
    configs |= {
        name: bgp(65000 + int(name[2:]), own, {ROUTERS_OWN: 65000}, announces=True) for name, own in BALANCERS.items()
    }
    with routers(lab, configs) as daemons:
        for host in BALANCERS:
            wait_until(f"{host} and the router talk", lambda host=host: is_established(daemons[host]), WAIT_S)
        yield lab, daemons


def is_established(router: Router) -> bool:
    peers = router.show("show bgp ipv4 unicast summary")["peers"]
    return {peer["state"] for peer in peers.values()} == {"Established"}


def next_hops(lab: Lab) -> set[str]:
    """The balancers to which the router's kernel sends packets for the VIP."""
    words = lab.run(ROUTER, "ip", "route", "show", f"{VIP}/32").split()
    return {after for word, after in pairwise(words) if word == "via"}


def await_hops(lab: Lab, *hosts: str) -> None:
    wanted = {BALANCERS[host] for host in hosts}
    wait_until(f"packets for the VIP go to {hosts}", lambda: next_hops(lab) == wanted, WAIT_S)


def requests(lab: Lab, host: str) -> int:
    """How many packets a balancer has sent to endpoints."""
    return sum(s.traffic.request_packets for s in services(RealKernel(lab.netns(host), lab.run_dir)))


def apply(lab: Lab, directory: Path, host: str) -> str:
    return applied_on(lab, host, "apply", str(directory / "manifests"), "--node", host, "--auto-approve")


ENDPOINTS = {f"{address}:{PORT}" for address in ("10.32.0.11", "10.32.0.12", "10.33.0.11")}


def check(outcomes: list[Outcome]) -> None:
    """Every request was answered, all endpoints took part."""
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert {outcome.endpoint for outcome in outcomes} == ENDPOINTS


def run_pass(interface: str) -> None:
    with bpf.closing(bpf.load_program("stranger", PASS)) as program:
        xdp.swap(interface, "native", program, None)


def test_routers_learn_of_a_balancer_once_it_works_and_leave_it_when_it_is_taken_off_or_dies(start_lab, tmp_path):
    with site(start_lab, tmp_path) as (lab, daemons):
        lab.apply(tmp_path / "manifests")  # the endpoints, and lb4
        await_hops(lab, "lb4")
        apply(lab, tmp_path, "lb5")
        await_hops(lab, "lb4", "lb5")
        (path, _) = daemons[ROUTER].show(f"show bgp ipv4 unicast {VIP}/32")["paths"]
        assert path["metric"] == 100
        check(lab.load(VIP, PORT, count=200, clients=32).wait())
        assert min(requests(lab, host) for host in BALANCERS) > 0

        # Connections that are open all the while: none breaks, since both balancers have the same ring.
        load = lab.load(VIP, PORT, concurrency=48, requests_per_connection=0, rate=200, clients=48, timeout_s=30)
        wait_until("all connections are in use", lambda: len(load.outcomes()) > 150, WAIT_S)
        applied_on(lab, "lb5", "delete", "--auto-approve")
        await_hops(lab, "lb4")
        apply(lab, tmp_path, "lb5")
        await_hops(lab, "lb4", "lb5")
        before = len(load.outcomes())
        lab.run("lb4", "ip", "link", "set", "eth0", "down")  # it says good-bye to nobody
        await_hops(lab, "lb5")
        wait_until("the connections go on", lambda: len(load.outcomes()) > before + 150, WAIT_S)
        check(load.stop())
        check(lab.load(VIP, PORT, count=100, clients=32).wait())


def test_routers_hear_of_no_vip_that_does_not_work(start_lab, tmp_path):
    """Somebody else's program runs on the interface of lb4, so that its packets would not be balanced."""
    with site(start_lab, tmp_path) as (lab, daemons):
        netns.inside(lab.netns("lb4"), run_pass, "eth0")
        done = lab.lbctl("apply", str(tmp_path / "manifests"), "--node", "lb4", "--auto-approve", host="lb4")
        assert done.returncode == 6
        assert "waits for xdp eth0" in done.stdout + done.stderr
        apply(lab, tmp_path, "lb5")
        await_hops(lab, "lb5")
        assert daemons["lb4"].show("show bgp ipv4 unicast")["routes"].keys() == {f"{VIP}/32"}  # that of lb5
