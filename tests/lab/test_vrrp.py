# SPDX-License-Identifier: Apache-2.0
"""Two balancers without BGP, and real daemons of VRRP, which lbctl configures itself: the router sends to an address
that the balancer has which works best. One is drained and one dies under load, and connections go on."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from reconciler.kernel import keepalived
from reconciler.kernel.real import RealKernel
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, ROUTER
from reconciler.readings.tables import services

from .direct import applied_on, example
from .keepalived import daemons
from .test_dsr_l3_ha import diagnosis

pytestmark = pytest.mark.kernel

VIP, PORT, SHARED = IPv4Address("20.20.20.1"), 2020, "10.71.0.100"
ENDPOINTS = {f"{address}:{PORT}" for address in ("31.31.31.1", "32.32.32.1", "33.33.33.1")}
WAIT_S = 240.0


def has_shared(lab: Lab, host: str) -> bool:
    return SHARED in lab.run(host, "ip", "-o", "address", "show", "dev", "eth0")


def await_shared(lab: Lab, host: str) -> None:
    other = {"ha1": "ha2", "ha2": "ha1"}[host]
    wait_until(f"{host} has {SHARED}", lambda: has_shared(lab, host) and not has_shared(lab, other), WAIT_S)


def requests(lab: Lab, host: str) -> int:
    return sum(s.traffic.request_packets for s in services(RealKernel(lab.netns(host), lab.run_dir)))


def sharing(name: str, priority: int) -> tuple[str, str]:
    vrrp = f"vrrp: {{id: 51, addresses: [{SHARED}/24], priority: {priority}}}"
    return rf"(name: {name}\n(?:.*\n)*?  announce: {{grace: )10s", rf"\g<1>1s, {vrrp}"


def test_the_shared_address_is_at_the_balancer_that_works_and_connections_go_on(start_lab, tmp_path):
    manifests = tmp_path / "manifests"
    fleet = example("dsr-l3-ha", manifests, (r"(?m)^  bgp: .*\n", ""), sharing("ha1", 150), sharing("ha2", 100))
    lab = start_lab(fleet, node_name="ha1")
    lab.serve_http()
    lab.run(CLIENT, "ip", "route", "replace", str(VIP), "via", "10.71.0.254")
    lab.run(ROUTER, "ip", "route", "replace", str(VIP), "via", SHARED)
    lab.apply(manifests)
    assert "no keepalived runs here" in applied_on(lab, "ha1", "plan", str(manifests), "--node", "ha1")
    assert "vrrp-concern" in diagnosis(lab, manifests, "ha1", "ha1")
    applied_on(lab, "ha2", "apply", str(manifests), "--node", "ha2", "--auto-approve")
    with daemons(lab, "ha1", "ha2"):
        await_shared(lab, "ha1")
        # Somebody gives the other one precedence by hand.
        lab.run("ha2", "sed", "-i", "s/priority 100/priority 200/", str(keepalived.path(lab.netns("ha2"))))
        assert "vrrp-differs" in diagnosis(lab, manifests, "ha2", "ha2")
        applied_on(lab, "ha2", "apply", str(manifests), "--node", "ha2", "--auto-approve")
        assert "No changes" in applied_on(lab, "ha2", "plan", str(manifests), "--node", "ha2")
        await_shared(lab, "ha1")
        # Each of 300 requests and more has a connection of its own: odds below 1e-50 that an endpoint is left out.
        load = lab.load(VIP, PORT, concurrency=16, rate=100, clients=16, timeout_s=30)
        wait_until("requests are answered", lambda: len(load.outcomes()) > 100, WAIT_S)
        assert requests(lab, "ha1") > 0 and requests(lab, "ha2") == 0

        applied_on(lab, "ha1", "drain", "--balancer", "--reason", "new kernel")
        applied_on(lab, "ha1", "apply", str(manifests), "--node", "ha1", "--auto-approve")
        await_shared(lab, "ha2")
        before = len(load.outcomes())
        wait_until("requests are answered by way of ha2", lambda: len(load.outcomes()) > before + 100, WAIT_S)
        assert requests(lab, "ha2") > 0
        applied_on(lab, "ha1", "undrain", "--balancer")
        applied_on(lab, "ha1", "apply", str(manifests), "--node", "ha1", "--auto-approve")
        await_shared(lab, "ha1")

        lab.run("ha1", "ip", "link", "set", "eth0", "down")  # it dies
        wait_until(f"ha2 has {SHARED}", lambda: has_shared(lab, "ha2"), WAIT_S)
        before = len(load.outcomes())
        wait_until("requests are answered again", lambda: len(load.outcomes()) > before + 100, WAIT_S)
        outcomes = load.stop()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert {outcome.endpoint for outcome in outcomes} == ENDPOINTS
