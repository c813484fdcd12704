# SPDX-License-Identifier: Apache-2.0
"""User, router, three balancers, three endpoints: the example dsr-l3-ha and one more, with real routing daemons, which
lbctl configures itself. Balancers come, leave, get another version of lbctl and die under load, and established
connections go on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.dataplane.layout import Verdict
from reconciler.doctor.finding import FOUND
from reconciler.kernel import bpf, echo, xdp
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, ROUTER
from reconciler.lab.traffic import Outcome
from reconciler.model import Fleet, Protocol
from reconciler.peers import PREFIXES
from reconciler.readings.counters import verdicts
from reconciler.readings.tables import services

from .direct import applied_on, example
from .flows import Flow, answers
from .frr import Router, routers
from .numbered import Echo
from .versions import WIDER, Version

pytestmark = pytest.mark.kernel

VIP, PORT = IPv4Address("20.20.20.1"), 2020
BALANCERS = {f"ha{n}": f"10.71.0.{n}" for n in (1, 2, 3)}
THIRD = """---
{apiVersion: lbctl/v1, kind: Node, metadata: {name: ha3, labels: {site: dsr-l3-ha}}, spec: {bgp: {asn: 65003},
  announce: {grace: 1s}, healthAddress: {ipv4: 10.71.0.10},
  interfaces: [{name: eth0, addresses: [10.71.0.3/24], mtu: 1520}]}}
"""
ROUTERS_OWN = "10.71.0.254"
ENDPOINTS = {f"{address}:{PORT}" for address in ("31.31.31.1", "32.32.32.1", "33.33.33.1")}
WAIT_S = 240.0
REQUESTS = 400
FLOWS = 10_000
UDP_PORT = 2053
PAYLOAD_BYTES = 20_000
"""Each request and each answer takes many packets, so that who dies does so in the middle of transfers."""
NAMES = f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: names}}
spec:
  vip: {VIP}
  protocol: udp
  ports: [{UDP_PORT}]
  mode: dsr-l3
  algorithm: maglev
  pool: app
  nodeSelector: {{site: dsr-l3-ha}}
"""
PASS = bytes.fromhex("b7000000020000009500000000000000")
"""r0 = XDP_PASS; exit"""


def next_hops(lab: Lab) -> set[str]:
    """The balancers to which the router's kernel sends packets for the VIP."""
    words = lab.run(ROUTER, "ip", "route", "show", f"{VIP}/32").split()
    return {after for word, after in pairwise(words) if word == "via"}


def await_hops(lab: Lab, *hosts: str) -> None:
    wanted = {BALANCERS[host] for host in hosts}
    wait_until(f"packets for the VIP go to {hosts}", lambda: next_hops(lab) == wanted, WAIT_S)


def requests(lab: Lab, host: str) -> int:
    """How many packets of TCP a balancer has sent to endpoints."""
    return packets(lab, host, Protocol.TCP)


def packets(lab: Lab, host: str, protocol: Protocol) -> int:
    found = services(RealKernel(lab.netns(host), lab.run_dir))
    return sum(service.traffic.request_packets for service in found if service.row.protocol == protocol)


def with_names(manifests: Path, *changes: tuple[str, str]) -> Fleet:
    """The example with these changes, and a service of UDP besides."""
    example("dsr-l3-ha", manifests, *changes)
    (manifests / "names.yaml").write_text(NAMES)
    fleet = load(manifests).fleet
    assert fleet
    return fleet


@contextmanager
def echoes(lab: Lab) -> Iterator[None]:
    """Servers of UDP at the VIP, on all endpoints."""
    started = [Echo(lab, address, UDP_PORT, at=VIP) for address in lab.topology.endpoints]
    try:
        yield
    finally:
        for one in started:
            one.stop()


def counted_flows(lab: Lab, *hosts: str, flows: int = FLOWS) -> dict[Flow, str]:
    """Who answers each of so many flows: they pass these balancers, none twice, and each of them takes part; of
    two to three balancers and three endpoints, the odds are below 1e-100 that chance leaves one out."""
    before = {host: packets(lab, host, Protocol.UDP) for host in hosts}
    found = answers(lab, VIP, UDP_PORT, flows)
    carried = [packets(lab, host, Protocol.UDP) - before[host] for host in hosts]
    assert sum(carried) == flows == len(found)
    assert min(carried) > 0
    assert {*found.values()} == {str(address) for address in lab.topology.endpoints}
    return found


def counted(lab: Lab, host: str, counter: str, group: str = "Icmp") -> int:
    """What the kernel of a host counts, by its name in /proc/net/snmp."""
    lines = lab.run(host, "cat", "/proc/net/snmp").splitlines()
    names, values = [line.split() for line in lines if line.startswith(f"{group}: ")]
    return int(values[names.index(counter)])


def check_undefined(lab: Lab, *hosts: str) -> None:
    """What matches no service of the VIP is dropped by these balancers: nobody answers, no kernel of theirs forwards
    it, and none of it goes round in a loop."""

    def dropped() -> int:
        return sum(verdicts(RealKernel(lab.netns(host), lab.run_dir)).get(Verdict.UNDEFINED, 0) for host in hosts)

    def forwarded() -> dict[str, int]:
        return {host: counted(lab, host, "ForwDatagrams", "Ip") for host in hosts}

    before = dropped(), forwarded()
    outcomes = lab.load(VIP, PORT + 1, count=4, concurrency=4, clients=4, timeout_s=0.5).wait()
    assert all(outcome.error for outcome in outcomes)
    assert dropped() >= before[0] + 4 and forwarded() == before[1]
    check_quiet(lab, *hosts)


def check_quiet(lab: Lab, *hosts: str) -> None:
    """No redirect was ever sent, and no packet went round until its TTL was used up."""
    for host in (ROUTER, *hosts):
        assert counted(lab, host, "OutRedirects") == counted(lab, host, "OutTimeExcds") == 0


def await_ping(lab: Lab) -> None:
    wait_until("the VIP answers pings", lambda: netns.inside(lab.netns(CLIENT), echo.answers, VIP, 100), WAIT_S)


def apply(lab: Lab, manifests: Path, host: str, node: str) -> str:
    return applied_on(lab, host, "apply", str(manifests), "--node", node, "--auto-approve")


def diagnosis(lab: Lab, manifests: Path, host: str, node: str) -> str:
    """What doctor finds."""
    done = lab.lbctl("doctor", str(manifests), "--node", node, host=host)
    assert done.returncode == FOUND, done.stdout + done.stderr
    return done.stdout


def check(outcomes: list[Outcome]) -> None:
    """Every request was answered, all endpoints took part (of 64 clients and more: odds below 1e-10 that chance leaves
    one out)."""
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert {outcome.endpoint for outcome in outcomes} == ENDPOINTS


def run_pass(interface: str) -> None:
    with bpf.closing(bpf.load_program("stranger", PASS)) as program:
        xdp.swap(interface, "native", program, None)


def test_balancers_come_leave_and_die_and_connections_go_on(start_lab, tmp_path):
    manifests = tmp_path / "manifests"
    third = (r"\A(# yaml-language-server: .*/node\.v1\.json(?:.|\n)*)\Z", rf"\1{THIRD}")
    changes = ("grace: 10s", "grace: 1s"), ("multipath: 2", "multipath: 3"), third
    lab = start_lab(with_names(manifests, *changes), node_name="ha1")
    lab.serve_http()
    lab.run(CLIENT, "ip", "route", "replace", str(VIP), "via", ROUTERS_OWN)
    with routers(lab, ROUTER, *BALANCERS) as daemons:
        agent = lab.start_lbctl("run", str(manifests), "--node", "ha2", host="ha2")
        # Somebody else's program runs on ha1: nothing of it is announced, though all else is in place.
        netns.inside(lab.netns("ha1"), run_pass, "eth0")
        with ThreadPoolExecutor() as pool:
            others = [pool.submit(apply, lab, manifests, *on) for on in ((ROUTER, "router2"), ("ha3", "ha3"))]
            done = lab.lbctl("apply", str(manifests), "--node", "ha1", "--auto-approve", host="ha1")
            for other in others:
                other.result()
        assert done.returncode == 6
        assert "waits for xdp eth0" in done.stdout + done.stderr
        assert "No changes" in lab.lbctl("plan", str(manifests), "--node", "router2", host=ROUTER).stdout
        await_hops(lab, "ha2", "ha3")
        lab.run("ha1", "ip", "link", "set", "eth0", "xdp", "off")
        lab.apply(manifests)  # the endpoints, and ha1
        await_hops(lab, *BALANCERS)

        # Replies are real ones, from all three, past the balancers, and all of those take part.
        check(lab.load(VIP, PORT, count=REQUESTS, concurrency=32, clients=64, timeout_s=30).wait())
        carried = {host: requests(lab, host) for host in BALANCERS}
        assert min(carried.values()) > 0
        assert sum(carried.values()) >= 4 * REQUESTS  # a SYN, an ACK, the request, a FIN
        with echoes(lab):
            homes = counted_flows(lab, *BALANCERS)
        await_ping(lab)
        check_undefined(lab, *BALANCERS)

        # Connections that are open all the while: a drain and a return cost nothing.
        load = lab.load(VIP, PORT, concurrency=16, requests_per_connection=0, rate=100, clients=16, timeout_s=30,
                        payload_bytes=PAYLOAD_BYTES)  # fmt: skip
        wait_until("all connections are in use", lambda: len(load.outcomes()) > 100, WAIT_S)
        done = applied_on(lab, "ha2", "drain", "--balancer", "--wait", "--reason", "new kernel")
        assert "withdrawn, and quiet" in done
        await_hops(lab, "ha1", "ha3")
        wait_until("the VIP is withdrawn", lambda: not heard(daemons["ha2"], "65002"), WAIT_S)
        carried = requests(lab, "ha2")
        assert "drained until" in applied_on(lab, "ha2", "get", "announcements")
        told = diagnosis(lab, manifests, ROUTER, "router2")
        assert "announced-otherwise" in told
        assert f"announces the VIP {VIP}, and not ha2 ({BALANCERS['ha2']})" in told
        assert requests(lab, "ha2") == carried, "packets came to who said to be quiet"
        applied_on(lab, "ha2", "undrain", "--balancer")
        await_hops(lab, *BALANCERS)

        # One after the other gets a version of lbctl with other maps.
        agent.terminate()
        agent.wait()
        newer = Version(tmp_path / "newer", WIDER)
        for host in BALANCERS:
            before = len(load.outcomes())
            said = newer.lbctl(lab, "apply", str(manifests), "--node", host, "--auto-approve", host=host)
            assert "~ program data-plane" in said
            wait_until(f"{host} works on", lambda: len(load.outcomes()) > before + 100, WAIT_S)  # noqa: B023
        await_hops(lab, *BALANCERS)

        # One dies without a word, in the middle of transfers.
        before = len(load.outcomes())
        lab.run("ha1", "ip", "link", "set", "eth0", "down")
        await_hops(lab, "ha2", "ha3")
        wait_until("the connections go on", lambda: len(load.outcomes()) > before + 100, WAIT_S)
        check(load.stop())
        with echoes(lab):
            assert counted_flows(lab, "ha2", "ha3") == homes
        check(lab.load(VIP, PORT, count=200, clients=64).wait())

        # Somebody takes a line off a daemon by hand: it is missed, and comes back.
        daemons["ha2"].type(f"no ip prefix-list {PREFIXES}")
        assert "vip-not-let-through" in diagnosis(lab, manifests, "ha2", "ha2")
        apply(lab, manifests, "ha2", "ha2")
        daemons["ha2"].type("no router bgp 65002")
        assert "routing-differs" in diagnosis(lab, manifests, "ha2", "ha2")
        apply(lab, manifests, "ha2", "ha2")
        await_hops(lab, "ha2", "ha3")
        check(lab.load(VIP, PORT, count=200, clients=64).wait())
        check_quiet(lab, *BALANCERS)


def heard(router: Router, asn: str) -> bool:
    """Whether a daemon announces the VIP itself."""
    routes = router.show("show bgp ipv4 unicast")["routes"].get(f"{VIP}/32", [])
    return any(not route["path"] for route in routes)
