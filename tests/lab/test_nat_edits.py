# SPDX-License-Identifier: Apache-2.0
"""Edits of a pool of nat under load, many of them killed halfway, and changes between the table and no memory: no
connection breaks, since the endpoints of all of them live."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT

from .conftest import LabMaker
from .test_nat import ENDPOINTS, VIP, write
from .test_nat_flood import connected

pytestmark = pytest.mark.kernel

EDITS = 5


def rewrite(directory: Path, algorithm: str, *endpoints: str, stateless: bool) -> None:
    write(directory, "two-arm", algorithm, *endpoints)
    path = directory / "web.yaml"
    path.write_text(path.read_text().replace("pool: web}", f"pool: web, stateless: {str(stateless).lower()}}}"))


def started(start_lab: LabMaker, directory: Path, algorithm: str, *, stateless: bool) -> Lab:
    rewrite(directory, algorithm, *ENDPOINTS, stateless=stateless)
    fleet = load(directory).fleet
    assert fleet
    lab = start_lab(fleet)
    lab.serve_http()
    lab.apply(directory)
    return lab


def flows(lab: Lab) -> int:
    return len(json.loads(lab.lbctl("get", "flows", "-o", "json").stdout)["items"])


@pytest.mark.parametrize(("algorithm", "stateless"), [("round-robin", False), ("maglev", True)])
def test_edits_that_are_killed_halfway_break_no_connection(
    start_lab: LabMaker, tmp_path: Path, algorithm: str, stateless: bool
) -> None:
    manifests = tmp_path / "manifests"
    lab = started(start_lab, manifests, algorithm, stateless=stateless)
    kept = lab.load(VIP, 80, concurrency=8, requests_per_connection=0, rate=200, timeout_s=30)
    short = lab.load(VIP, 80, concurrency=4, rate=100, timeout_s=30)
    wait_until("connections are open", lambda: len(kept.outcomes()) > 8)
    chance = random.Random(5)
    for _ in range(EDITS):
        rewrite(manifests, algorithm, *chance.sample(ENDPOINTS, chance.randint(1, 3)), stateless=stateless)
        edit = lab.start_lbctl("apply", str(manifests), "--auto-approve")
        try:
            edit.wait(chance.uniform(0.2, 1.2))
        except subprocess.TimeoutExpired:
            edit.kill()
            edit.wait()
    lab.apply(manifests)
    for load_ in (kept, short):
        outcomes = load_.stop()
        assert len(outcomes) > 50
        assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert sum(outcome.new_connection for outcome in kept.outcomes()) == 8
    assert (flows(lab) == 0) == stateless


def test_from_the_table_to_no_memory_and_back_with_edits_of_the_pool(start_lab: LabMaker, tmp_path: Path) -> None:
    """A pool loses and gains an endpoint together with each change."""
    manifests = tmp_path / "manifests"
    lab = started(start_lab, manifests, "maglev", stateless=False)
    kept = lab.load(VIP, 80, concurrency=8, requests_per_connection=0, rate=200, timeout_s=30)
    wait_until("connections are open", lambda: len(kept.outcomes()) > 8)
    for stateless, endpoints in ((True, ENDPOINTS[:2]), (False, ENDPOINTS), (True, ENDPOINTS[1:])):
        rewrite(manifests, "maglev", *endpoints, stateless=stateless)
        lab.apply(manifests)
        plan = lab.lbctl("plan", str(manifests))
        assert plan.stdout.startswith("No changes."), plan.stdout
        done = len(kept.outcomes())
        wait_until("requests go on", lambda done=done: len(kept.outcomes()) > done + 20)
    outcomes = kept.stop()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert sum(outcome.new_connection for outcome in outcomes) == 8


def test_a_balancer_that_knows_nothing_goes_on_with_all_connections(start_lab: LabMaker, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    lab = started(start_lab, manifests, "maglev", stateless=True)
    kept = [netns.inside(lab.netns(CLIENT), connected, number) for number in range(10)]
    assert lab.lbctl("delete", "--auto-approve").returncode == 0
    lab.apply(manifests)
    for connection in kept:
        local = connection.sock.getsockname()
        connection.request("GET", "/again")
        assert connection.getresponse().status == 200
        assert connection.sock.getsockname() == local, "it is the same connection"
        connection.close()
    assert flows(lab) == 0
