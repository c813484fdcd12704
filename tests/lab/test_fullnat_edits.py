# SPDX-License-Identifier: Apache-2.0
"""FullNAT under load while pools and sources are edited by commands and agents that are killed halfway, and under a
flood of ten times what the table is made for: no connection breaks, no source is used that is not held, and no port
is lost."""

from __future__ import annotations

import json
import random
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from reconciler.config.load import load
from reconciler.dataplane.layout import SNAT, VIPS
from reconciler.dataplane.rows import Number
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT
from tests.packets.fullnat import FOUR, taken

from .conftest import LabMaker
from .test_nat import ENDPOINTS, VIP, write
from .test_nat_flood import MADE_FOR, assert_silent_connections_outlive_a_flood, connected

pytestmark = pytest.mark.kernel

EDITS = 6
FIRST_PORT = 1024


def rewrite(directory: Path, sources: int, *endpoints: str, capacity: str = "") -> None:
    """The mode and so many sources for the manifests of nat."""
    write(directory, "two-arm", "round-robin", *endpoints)
    addresses = ", ".join(f"10.2.0.{201 + number}" for number in range(sources))
    path = directory / "web.yaml"
    text = path.read_text().replace("pool: web}", "mode: fullnat, pool: web}")
    path.write_text(text.replace("  interfaces:", f"{capacity}  snatAddresses: [{addresses}]\n  interfaces:"))


def started(start_lab: LabMaker, directory: Path, **more: str) -> Lab:
    rewrite(directory, 1, *ENDPOINTS, **more)
    lab = start_lab(load(directory).fleet)
    lab.serve_http()
    lab.apply(directory)
    return lab


def kernel_of(lab: Lab) -> RealKernel:
    return RealKernel(lab.balancer, lab.run_dir)


def assert_sources_stand(lab: Lab) -> int:
    """What connections may come from is held, and known to the program; returns how many sources these are."""
    kernel = kernel_of(lab)
    (content,) = kernel.lookup(SNAT.name, [SNAT.key.pack(Number(0))])
    assert content
    row = SNAT.value.unpack(content)
    used = [IPv4Address(row.sources[at * 4 : at * 4 + 4]) for at in range(row.used)]
    routes = json.loads(lab.run(lab.topology.node.name, "ip", "-j", "route", "show", "table", "local"))
    held = {route["dst"] for route in routes}
    assert {str(address) for address in used} <= held
    assert None not in kernel.lookup(VIPS.name, [address.packed for address in used])
    return len(used)


def assert_no_port_is_lost(lab: Lab) -> None:
    """Every port that is taken has a connection, and the other way round, whatever was killed."""
    node = SimpleNamespace(kernel=kernel_of(lab))
    assert taken(node, FIRST_PORT) == FOUR.owned(node)  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", [("apply", "--auto-approve"), ("run",)], ids=["command", "agent"])
def test_edits_that_are_killed_halfway_break_no_connection(
    start_lab: LabMaker, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    """Each edit has another source, and any endpoints."""
    manifests = tmp_path / "manifests"
    lab = started(start_lab, manifests)
    kept = lab.load(VIP, 80, concurrency=8, requests_per_connection=0, rate=150, timeout_s=30, clients=4)
    short = lab.load(VIP, 80, concurrency=4, rate=60, timeout_s=30, clients=16)
    wait_until("connections are open", lambda: len(kept.outcomes()) > 8)
    chance = random.Random(11)
    for edit in range(EDITS):
        rewrite(manifests, 2 + edit, *chance.sample(ENDPOINTS, chance.randint(1, 3)))
        process = lab.start_lbctl(*verb, str(manifests))
        try:
            process.wait(chance.uniform(0.4, 1.6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert_sources_stand(lab)
    lab.apply(manifests)
    assert assert_sources_stand(lab) == 1 + EDITS
    before = len(short.outcomes())
    wait_until("more connections have opened", lambda: len(short.outcomes()) > before + 20)
    for load_ in (kept, short):
        outcomes = load_.stop()
        assert len(outcomes) > 50
        assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert sum(outcome.new_connection for outcome in kept.outcomes()) == 8
    assert_no_port_is_lost(lab)


def test_silent_connections_outlive_a_flood(start_lab: LabMaker, tmp_path: Path) -> None:
    lab = started(start_lab, tmp_path / "manifests", capacity=f"  capacity: {{flows: {MADE_FOR}}}\n")
    assert_silent_connections_outlive_a_flood(lab)
    assert_no_port_is_lost(lab)


def test_a_source_that_cannot_be_held_is_not_used_and_the_others_serve(start_lab: LabMaker, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    lab = started(start_lab, manifests)
    foreign = ("10.2.0.202/32", "dev", "lo")
    lab.run(lab.topology.node.name, "ip", "address", "add", *foreign)
    rewrite(manifests, 2, *ENDPOINTS)
    done = lab.lbctl("apply", str(manifests), "--auto-approve")
    assert done.returncode
    assert "10.2.0.202" in done.stdout + done.stderr
    assert assert_sources_stand(lab) == 1
    netns.inside(lab.netns(CLIENT), connected, 1).close()
    lab.run(lab.topology.node.name, "ip", "address", "del", *foreign)
    lab.apply(manifests)
    assert assert_sources_stand(lab) == 2
