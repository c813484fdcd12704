# SPDX-License-Identifier: Apache-2.0
"""From one layout of the maps to another and back, under traffic, by two versions of lbctl."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.kernel import bpf
from reconciler.kernel.real import RealKernel
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab

from .conftest import LabMaker
from .sequence import sequence
from .test_nat import ENDPOINTS, VIP, write
from .versions import NEWER, WIDER, Version

pytestmark = pytest.mark.kernel


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path) -> Lab:
    write(tmp_path / "manifests", "two-arm", "round-robin", *ENDPOINTS)
    (tmp_path / "manifests" / "names.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: names}}
spec: {{vip: {VIP}, protocol: udp, ports: [53], targetPort: 8080, pool: web}}
""")
    fleet = load(tmp_path / "manifests").fleet
    assert fleet
    lab = start_lab(fleet)
    lab.serve_http()
    lab.apply(tmp_path / "manifests")
    return lab


def test_from_one_layout_to_another_and_back_no_connection_breaks_and_nothing_is_lost(
    site: Lab, tmp_path: Path
) -> None:
    manifests = str(tmp_path / "manifests")
    ours, wider = Version(tmp_path / "ours"), Version(tmp_path / "wider", WIDER)
    kept = site.load(VIP, 80, concurrency=8, requests_per_connection=0, rate=400, timeout_s=30)
    short = site.load(VIP, 80, concurrency=8, rate=400, timeout_s=30)
    held = [rows(ours, site)]
    with sequence(site, str(VIP), 53) as datagrams:
        for version in (wider, ours, wider, ours):
            plan = version.lbctl(site, "plan", manifests)
            assert "~ program data-plane" in plan
            assert "0 to add, 3 to change, 0 to remove" in plan, plan
            assert rows(version, site) == held[0], "the rows of the other layout"
            version.lbctl(site, "apply", manifests, "--auto-approve")
            assert version.lbctl(site, "plan", manifests).startswith("No changes.")
            assert rows(version, site) == held[0], "the rows that were taken over"
        sent, missing = datagrams.stop()
    assert sent > 100 and missing == [], f"{len(missing)} of {sent} datagrams"
    for one in (kept, short):
        outcomes = one.stop()
        assert len(outcomes) > 100
        assert [outcome for outcome in outcomes if outcome.error] == []
    ours.lbctl(site, "delete", "--auto-approve")


def rows(version: Version, lab: Lab) -> list[object]:
    """What the version sees of services and endpoints."""
    return [
        [{key: row[key] for key in ("service", "endpoint", "mode", "state", "number") if key in row}
         for row in json.loads(version.lbctl(lab, "get", what, "-o", "json"))["items"]]
        for what in ("services", "endpoints")
    ]  # fmt: skip


def test_an_older_version_changes_nothing_and_says_why(site: Lab, tmp_path: Path) -> None:
    manifests = str(tmp_path / "manifests")
    newer = Version(tmp_path / "newer", WIDER, NEWER)
    newer.lbctl(site, "apply", manifests, "--auto-approve")
    held = rows(newer, site)
    for words in (("plan", manifests), ("apply", manifests, "--auto-approve"), ("delete", "--auto-approve"),
                  ("get", "services"), ("export", manifests)):  # fmt: skip
        done = site.lbctl(*words)
        assert done.returncode == 1, done.stdout
        assert "a newer version of lbctl runs this node" in done.stderr
        assert "nothing was changed" in done.stderr
    assert newer.lbctl(site, "plan", manifests).startswith("No changes.")
    assert rows(newer, site) == held
    newer.lbctl(site, "delete", "--auto-approve")
    assert not (site.run_dir / site.balancer).exists()


def test_what_another_version_made_can_be_deleted(site: Lab, tmp_path: Path) -> None:
    Version(tmp_path / "wider", WIDER).lbctl(site, "apply", str(tmp_path / "manifests"), "--auto-approve")
    program = RealKernel(site.balancer, site.run_dir).loaded_program()
    assert program
    with bpf.closing(bpf.open_program(program.id) or -1) as fd:
        made = bpf.program_info(fd).map_ids
    done = site.lbctl("delete", "--auto-approve")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (site.run_dir / site.balancer).exists()
    wait_until("the maps are freed", lambda: not any(map(is_there, made)))


def is_there(map_id: int) -> bool:
    fd = bpf.open_map(map_id)
    if fd is not None:
        os.close(fd)
    return fd is not None
