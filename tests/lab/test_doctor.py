# SPDX-License-Identifier: Apache-2.0
"""Each misconfiguration that people meet, made by hand one at a time: `doctor` names it, and nothing else; after the
way out, it finds nothing, and traffic flows."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.doctor.examine import examine
from reconciler.doctor.finding import FOUND, Finding
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import ROUTER
from reconciler.model import Fleet
from reconciler.reconcile import carry_out, desired_of, plan_node
from tests.doctor.cases import CASES, FIRST, NEAR, VIP, Case

from .direct import applied_on, example

pytestmark = pytest.mark.kernel

HOSTS = {"lb4": "lb4", "portal1": FIRST, "router1": ROUTER}


def kernel_of(lab: Lab, node: str) -> tuple[RealKernel, Path, str]:
    name = lab.netns(HOSTS[node])
    return RealKernel(name, lab.run_dir, netns=name), lab.run_dir / name, name


def found(lab: Lab, fleet: Fleet, node: str) -> list[Finding]:
    kernel, directory, name = kernel_of(lab, node)
    return netns.inside(name, lambda: list(examine(fleet, node, kernel, directory, name)))


def await_found(lab: Lab, fleet: Fleet, case: Case) -> list[Finding]:
    told: list[Finding] = []

    def is_found() -> bool:
        told[:] = found(lab, fleet, case.node)
        return bool(told)

    wait_until(f"`{case.do}` is found", is_found)
    return told


def mend(lab: Lab, fleet: Fleet, node: str) -> None:
    """As `lbctl apply` does."""
    kernel, directory, name = kernel_of(lab, node)

    def apply() -> None:
        planned = plan_node(desired_of(fleet, node, kernel), kernel, directory)
        carry_out(planned, kernel, directory, lambda change, error: None).raise_if_failed()

    netns.inside(name, apply)


def works(lab: Lab) -> None:
    outcomes = lab.load(IPv4Address(VIP), 443, count=20, clients=8, timeout_s=30).wait()
    assert [outcome.error for outcome in outcomes if outcome.error] == []


def test_each_misconfiguration_is_found_alone_and_mended(start_lab, tmp_path, monkeypatch):
    manifests = tmp_path / "manifests"
    fleet = example("dsr-l3", manifests, (r"vip: 20\.20\.20\.31", f"vips: [{VIP}, {NEAR}]"))
    lab = start_lab(fleet, node_name="lb4")
    lab.serve_http()
    lab.apply(manifests)
    applied_on(lab, ROUTER, "apply", str(manifests), "--node", "router1", "--auto-approve")
    lab.run(ROUTER, "ip", "route", "replace", VIP, "via", "10.31.0.1")
    monkeypatch.setattr("reconciler.doctor.ways.TRIES", 2)
    monkeypatch.setattr("reconciler.doctor.counters.LOOK_S", 0.0)
    monkeypatch.setattr("reconciler.kernel.counters.is_clock_kept", lambda: True)  # that is the machine's own affair
    monkeypatch.setattr("reconciler.kernel.arp_probe._WAIT_S", 0.05)  # most have no answer to wait for
    assert {node: found(lab, fleet, node) for node in HOSTS} == {node: [] for node in HOSTS}
    walked = applied_on(lab, "lb4", "doctor", str(manifests), "--node", "lb4", "--from", "198.51.100.7")
    assert f"198.51.100.7 → {VIP}:80/tcp (service portal, dsr-l3)" in walked
    assert "request: forwarded to an endpoint" in walked
    for case in (case for case in CASES if case.node):
        mark = protocol_of(lab.netns(HOSTS.get(case.node, case.host)))
        lab.run(case.host, *case.do.format(mark=mark).split())
        if "neighbour-unresolved" in case.names:  # the kernel asks again, rather than wait until what it knows is old
            lab.run(case.node, "ip", "neigh", "flush", "to", "10.31.0.254")
            mend(lab, fleet, case.node)
        told = await_found(lab, fleet, case)
        assert {each.name for each in told} <= set(case.names), case  # and so nothing is left of the case before
        assert all(each.evidence and each.consequence and each.way_out for each in told)
        if case.undo:
            lab.run(case.host, *case.undo.split())
        else:
            mend(lab, fleet, case.node)
    lab.run("lb4", "ip", "link", "set", "eth0", "down")  # nothing can be asked there any more
    done = lab.lbctl("doctor", str(manifests), "--node", "lb4", "--format", "json", host="lb4")
    assert done.returncode == FOUND, done.stdout + done.stderr
    data = json.loads(done.stdout)["findings"]
    assert "xdp-concern" in {each["name"] for each in data}
    assert any("eth0 is down" in each["evidence"] and each["place"] for each in data)
    lab.run("lb4", "ip", "link", "set", "eth0", "up")
    lab.run(ROUTER, "ip", "route", "replace", VIP, "via", "10.31.0.1")
    lab.run("lb4", "ip", "route", "replace", "default", "via", "10.31.0.254")
    mend(lab, fleet, "lb4")
    assert {node: found(lab, fleet, node) for node in HOSTS} == {node: [] for node in HOSTS}
    works(lab)
