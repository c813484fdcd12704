# SPDX-License-Identifier: Apache-2.0
"""What 10,000 checks through VIPs cost, every two seconds: a real balancer and its agent, two endpoints that unpack
tunnels, and 5,000 VIPs on each. The process that checks is measured; what the kernel does for it is its time, too."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from reconciler.config.load import load
from reconciler.health import store
from reconciler.health.checker import LATENESS_S
from reconciler.health.state import Health
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from tests.bench.health import BAR_LATE_S, BAR_MB, BAR_SHARE, TCP_PORT, Figure

ENDPOINTS = IPv4Address("10.2.0.11"), IPv4Address("10.2.0.12")
FIRST_VIP = IPv4Address("20.20.0.1")
PATIENCE_S = 300.0
TICKS = os.sysconf("SC_CLK_TCK")


def manifests(vips: int) -> str:
    endpoints = ", ".join(f"{{address: {address}}}" for address in ENDPOINTS)
    documents = [
        f"apiVersion: lbctl/v1\nkind: Service\nmetadata: {{name: s{number}}}\n"
        f"spec: {{vip: {FIRST_VIP + number}, ports: [{TCP_PORT}], mode: dsr-l3, algorithm: maglev, pool: web}}\n"
        for number in range(vips)
    ]
    documents.append(
        f"apiVersion: lbctl/v1\nkind: Pool\nmetadata: {{name: web}}\n"
        f"spec: {{endpoints: [{endpoints}], healthCheck: {{type: tcp, through: vip}}}}\n"
    )
    faces = "{name: front, addresses: [10.1.0.1/24]}, {name: back, addresses: [10.2.0.1/24]}"
    documents.append(
        f"apiVersion: lbctl/v1\nkind: Node\nmetadata: {{name: lb1}}\n"
        f"spec: {{healthAddress: {{ipv4: 10.1.0.9}}, interfaces: [{faces}]}}\n"
    )
    documents += [
        f"apiVersion: lbctl/v1\nkind: Node\nmetadata: {{name: e{address.packed[3]}}}\n"
        f"spec: {{role: endpoint, interfaces: [{{name: eth0, addresses: [{address}/24]}}]}}\n"
        for address in ENDPOINTS
    ]
    return "---\n".join(documents)


def figures(targets: int = 10_000, for_s: float = 10.0) -> Iterator[Figure]:
    """Share of a CPU, memory, lateness. Needs root."""
    with tempfile.TemporaryDirectory(prefix="lbv-") as directory:
        path = Path(directory) / "manifests"
        path.mkdir()
        (path / "all.yaml").write_text(manifests(targets // len(ENDPOINTS)))
        fleet = load(path).fleet
        assert fleet
        with Lab(fleet, node_name="lb1", prefix=f"lbv-{os.getpid()}", run_dir=Path(directory) / "run") as lab:
            yield from _measured(lab, path, targets, for_s)


def _measured(lab: Lab, path: Path, targets: int, for_s: float) -> Iterator[Figure]:
    lab.apply(path)
    serve = [sys.executable, "-c", "from tests.bench.health import serve; serve()"]
    servers = [
        subprocess.Popen(netns.command(lab.netns(host_of(address)), serve), stdout=subprocess.DEVNULL)
        for address in ENDPOINTS
    ]
    try:
        lab.start_lbctl("run", str(path), "--node", "lb1")
        place = lab.run_dir / lab.balancer / store.FILE

        def count_up() -> int:
            return sum(entry.state.health is Health.UP for entry in store.read(place).entries.values())

        wait_until("all are up", lambda: count_up() >= targets, PATIENCE_S)
        time.sleep(2 * LATENESS_S)  # then what is told of lateness is of after that
        before, began_s, began_cpu_s = store.read(place).progress, time.monotonic(), _cpu_s(place)
        time.sleep(for_s)
        after, share = store.read(place).progress, (_cpu_s(place) - began_cpu_s) / (time.monotonic() - began_s)
        begun = (after.checks - before.checks) * 2.0 / targets / (after.written_s - before.written_s)
        assert count_up() >= targets, "somebody is down"
    finally:
        for server in servers:
            server.kill()
            server.wait()
    what = f"{targets:,} targets every 2 s, TCP through VIPs"
    yield Figure(f"{what}: share of a CPU", share, "CPU", f"≤ {BAR_SHARE}", share <= BAR_SHARE)
    yield Figure(f"{what}: begun of what was due", 100 * begun, "%", "≥ 97", begun >= 0.97)
    mb = int(Path(f"/proc/{after.pid}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 1e6
    yield Figure(f"{what}: memory", mb, "MB", f"≤ {BAR_MB}", mb <= BAR_MB)
    late_ms, bar = after.late_p99_s * 1000, f"< {BAR_LATE_S * 1000:g}"
    yield Figure(f"{what}: lateness, 99 %", late_ms, "ms", bar, after.late_p99_s < BAR_LATE_S)


def _cpu_s(place: Path) -> float:
    """User and system time of the process that checks."""
    pid = store.read(place).progress.pid
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
