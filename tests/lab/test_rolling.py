# SPDX-License-Identifier: Apache-2.0
"""All endpoints are restarted, one after the other, under load: keep-alive connections, large transfers, and datagrams
with numbers. Nothing is lost."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler import children
from reconciler.agent.single import is_running
from reconciler.config.load import load
from reconciler.lab import netns, server
from reconciler.lab.build import await_answer, wait_until
from reconciler.lab.topology import host_of

from .conftest import LabMaker
from .numbered import Echo, Numbers

pytestmark = pytest.mark.kernel

VIP = IPv4Address("20.20.20.1")
ENDPOINTS = FIRST, SECOND = IPv4Address("10.2.0.11"), IPv4Address("10.2.0.12")
PATIENCE_S = 240.0
LARGE = 2_000_000
DEADLINE_PASSED = 3

MANIFESTS = f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [80], pool: web}}
---
apiVersion: lbctl/v1
kind: Service
metadata: {{name: names}}
spec: {{vip: {VIP}, protocol: udp, ports: [53], pool: names}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec: {{endpoints: [{{address: {FIRST}}}, {{address: {SECOND}}}]}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: names}}
spec: {{endpoints: [{{address: {FIRST}, port: 5353}}, {{address: {SECOND}, port: 5353}}]}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
"""


def test_a_rolling_restart_of_all_endpoints_loses_nothing(start_lab: LabMaker, tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "all.yaml").write_text(MANIFESTS)
    fleet = load(directory).fleet
    assert fleet
    lab = start_lab(fleet, node_name="lb1")
    lab.serve_http()
    lab.apply(directory)
    lab.start_lbctl("run", str(directory), "--node", "lb1")
    wait_until("the agent is up", lambda: is_running(lab.run_dir / lab.balancer), PATIENCE_S)
    echoes = {address: Echo(lab, address, 5353) for address in ENDPOINTS}
    kept = lab.load(VIP, 80, requests_per_connection=10, concurrency=4, rate=40, clients=8, timeout_s=30)
    large = lab.load(VIP, 80, concurrency=2, rate=4, clients=8, payload_bytes=LARGE, timeout_s=30)
    numbers = Numbers(lab, VIP, 53)
    numbers.await_home(*ENDPOINTS)

    def lbctl(*args: str, code: int = 0) -> None:
        done = lab.lbctl(*args, timeout_s=PATIENCE_S)
        assert done.returncode == code, done.stdout + done.stderr

    for address, other in ((FIRST, SECOND), (SECOND, FIRST)):
        lbctl("drain", f"web/{address}", "--wait")
        # A client that never pauses has no end that could be waited for: at the deadline it goes on elsewhere.
        done = lab.lbctl("drain", f"names/{address}:5353", "--deadline", "1s", "--wait", timeout_s=PATIENCE_S)
        assert done.returncode in (0, DEADLINE_PASSED), done.stdout + done.stderr
        numbers.await_home(other)

        lab.servers[address].kill()
        lab.servers[address].wait(PATIENCE_S)
        echoes[address].stop()
        echoes[address] = Echo(lab, address, 5353)
        lab.servers[address] = lab.start(host_of(address), *children.script(str(server.__file__), str(address), "80"))
        what = f"the server on {address} is back"
        netns.inside(lab.netns(host_of(address)), await_answer, what, str(address), 80, True)
        lbctl("undrain", f"web/{address}")
        lbctl("undrain", f"names/{address}:5353")

    assert numbers.stop() == []
    assert {*numbers.homes} == set(map(str, ENDPOINTS))
    for load_ in (kept, large):
        outcomes = load_.stop()
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        assert len(outcomes) > 4
    for echo in echoes.values():
        echo.stop()
