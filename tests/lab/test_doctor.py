# SPDX-License-Identifier: Apache-2.0
"""Each misconfiguration that people meet, made one at a time: `doctor` names it, and nothing else; `apply` mends it
where that is said, else the way out does; then nothing is found, and traffic flows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.doctor.examine import examine
from reconciler.doctor.finding import FOUND, Finding
from reconciler.errors import LbctlError
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import ROUTER, SWITCH
from reconciler.model import Fleet
from reconciler.reconcile import carry_out, desired_of, plan_node
from tests.doctor.cases import APPLY, BASE, CASES, FIRST, VIP, YOU, Case
from tests.nft import ACCEPT, DROP, FORWARD, IP, chain, nft

from .direct import applied_on, example, forget_services
from .test_dsr_l3_ha import run_pass

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


def run_drain(lab: Lab, word: str, manifests: str) -> None:
    applied_on(lab, "lb4", word, "--balancer")
    applied_on(lab, "lb4", "apply", manifests, "--node", "lb4", "--auto-approve")


def at_the_far_end(lab: Lab, attach: bool) -> None:
    """Somebody ends or starts what the switch runs on the port of lb4."""
    port = lab.topology.link("lb4").port
    if attach:
        netns.inside(lab.netns(SWITCH), run_pass, port)
    else:
        lab.run(SWITCH, "ip", "link", "set", port, "xdpdrv", "off")


def run_another(lab: Lab) -> None:
    lab.run("lb4", "ip", "link", "set", "eth0", "xdp", "off")
    netns.inside(lab.netns("lb4"), run_pass, "eth0")


def forward(lab: Lab, policy: int) -> None:
    """A firewall that drops what is forwarded, or lets it pass."""
    netns.inside(lab.netns("lb4"), nft, *chain(IP, b"filter", b"FORWARD", FORWARD, policy))


HANDS: dict[str, Callable[[Lab], None]] = {
    "forget the services": forget_services,
    "run another program": run_another,
    "end the program at the far end": lambda lab: at_the_far_end(lab, False),
    "run one at the far end": lambda lab: at_the_far_end(lab, True),
    "drop what is forwarded": lambda lab: forward(lab, DROP),
    "forward again": lambda lab: forward(lab, ACCEPT),
    "drain the balancer": lambda lab: run_drain(lab, "drain", str(lab.run_dir.parent / "manifests")),
    "undrain the balancer": lambda lab: run_drain(lab, "undrain", str(lab.run_dir.parent / "manifests")),
}


def by_hand(lab: Lab, case: Case, what: str) -> None:
    if what in HANDS:
        HANDS[what](lab)
        return
    mark = protocol_of(lab.netns(HOSTS.get(case.node, case.host)))
    for line in what.format(mark=mark).split("; ") if what else ():
        lab.run(case.host, *line.split())


def edited(manifests: Path, pattern: str, replacement: str, to: Path) -> Fleet:
    """The fleet of a copy of the manifests with one change."""
    shutil.copytree(manifests, to)
    nodes = to / "nodes.yaml"
    text, count = re.subn(pattern, replacement, nodes.read_text())
    assert count == 1, pattern
    nodes.write_text(text)
    fleet = load(to).fleet
    assert fleet
    return fleet


def test_each_misconfiguration_is_found_alone_and_mended(start_lab, tmp_path, monkeypatch):
    manifests = tmp_path / "manifests"
    fleet = example("dsr-l3", manifests, *BASE)
    lab = start_lab(fleet, node_name="lb4")
    lab.serve_http()
    lab.apply(manifests)
    applied_on(lab, ROUTER, "apply", str(manifests), "--node", "router1", "--auto-approve")
    monkeypatch.setattr("reconciler.doctor.ways.TRIES", 2)
    monkeypatch.setattr("reconciler.doctor.counters.LOOK_S", 0.0)
    monkeypatch.setattr("reconciler.kernel.counters.is_clock_kept", lambda: True)  # that is the machine's own affair
    monkeypatch.setattr("reconciler.kernel.counters._OF_ROUTES", Path("/nonexistent"))  # and so is this
    monkeypatch.setattr("reconciler.kernel.arp_probe._WAIT_S", 0.05)  # most have no answer to wait for
    nothing: dict[str, list[Finding]] = {node: [] for node in HOSTS}
    assert {node: found(lab, fleet, node) for node in HOSTS} == nothing
    works(lab)
    walked = {node: applied_on(lab, host, "doctor", str(manifests), "--node", node, "--from", "198.51.100.7")
              for node, host in HOSTS.items()}  # fmt: skip
    assert all(f"198.51.100.7 → {VIP}:80/tcp (service portal, dsr-l3)" in told for told in walked.values())
    assert "1. this router sends it out by eth0" in walked["router1"]
    assert "request: forwarded to an endpoint" in walked["lb4"]
    assert "1. the VIP is this endpoint's own" in walked["portal1"]
    assert "3. the reply leaves by eth0" in walked["portal1"]
    for number, case in enumerate(case for case in CASES if case.node):
        asked = fleet
        if any(case.edit):
            asked = edited(manifests, *case.edit, tmp_path / f"edit{number}")
            mend(lab, asked, case.node)
        by_hand(lab, case, case.do)
        if "neighbour-unresolved" in case.names:  # the kernel asks again, rather than wait until what it knows is old
            lab.run(case.node, "ip", "neigh", "flush", "to", "10.31.0.254")
            mend(lab, asked, case.node)
        told = await_found(lab, asked, case)
        names = {each.name for each in told}
        assert names & {*case.names} and names <= {*case.names, *case.also}, (case, told)
        assert all(each.evidence and each.consequence and each.way_out for each in told)
        if case.mended == APPLY:
            mend(lab, asked, case.node)
            assert found(lab, asked, case.node) == [], case
        elif case.mended == YOU:
            with suppress(LbctlError):
                mend(lab, asked, case.node)
            assert {each.name for each in found(lab, asked, case.node)} & {*case.names}, f"apply mends it: {case}"
        by_hand(lab, case, case.undo)
        for node in HOSTS:
            mend(lab, fleet, node)
        assert {node: found(lab, fleet, node) for node in HOSTS} == nothing, case
        works(lab)
    lab.run("lb4", "ip", "link", "set", "eth0", "down")  # nothing can be asked there any more
    done = lab.lbctl("doctor", str(manifests), "--node", "lb4", "--format", "json", host="lb4")
    assert done.returncode == FOUND, done.stdout + done.stderr
    data = json.loads(done.stdout)["findings"]
    assert "xdp-concern" in {each["name"] for each in data}
    assert any("eth0 is down" in each["evidence"] and each["place"] for each in data)
