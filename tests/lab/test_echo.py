# SPDX-License-Identifier: Apache-2.0
"""Pings of a VIP over the wire: answered where the service says so, and by the program, not by the kernel."""

import socket
from pathlib import Path

import pytest

from reconciler.config.load import load
from reconciler.dataplane.layout import VERDICTS, VIPS, Verdict
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.lab import Lab
from tests.packets.frames import echo, echoed

from .conftest import LabMaker

pytestmark = pytest.mark.kernel

VIP = "20.20.20.1"
PATIENCE_S = 5
ICMP_OFFSET = 34
"""Of an ICMP message in a frame."""


@pytest.fixture
def site(start_lab: LabMaker, tmp_path: Path):
    def start(echo_policy: str) -> Lab:
        (tmp_path / "fleet.yaml").write_text(f"""\
apiVersion: lbctl/v1
kind: Service
metadata: {{name: web}}
spec: {{vip: {VIP}, ports: [80], pool: web, echo: {echo_policy}}}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {{name: web}}
spec: {{endpoints: [{{address: 10.2.0.11}}]}}
---
apiVersion: lbctl/v1
kind: Node
metadata: {{name: lb1}}
spec:
  interfaces: [{{name: front, addresses: [10.1.0.1/24]}}, {{name: back, addresses: [10.2.0.1/24]}}]
""")
        lab = start_lab(load(tmp_path).fleet)
        done = lab.lbctl("apply", str(tmp_path), "--auto-approve")
        assert done.returncode == 0, done.stdout + done.stderr
        return lab

    return start


def ping(lab: Lab, patience_s: float = PATIENCE_S) -> bytes | None:
    """What comes back to the client, None if nothing does."""
    client = str(lab.topology.client[0])
    message = echo(client, VIP)[ICMP_OFFSET:]
    raw = netns.inside(
        netns.name(lab.prefix, "client"),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    )
    with raw:
        raw.settimeout(patience_s)
        raw.sendto(message, (VIP, 0))
        try:
            return raw.recv(2048)[20:]
        except TimeoutError:
            return None


def counted(lab: Lab, verdict: Verdict) -> int:
    rows = RealKernel(lab.balancer, lab.run_dir).dump(VERDICTS.name)
    values = next((value for key, value in rows if int.from_bytes(key, "little") == verdict), b"")
    return sum(int.from_bytes(values[i : i + 8], "little") for i in range(0, len(values), 8))


def test_a_ping_is_answered_by_the_program(site):
    lab = site("reply")
    client = str(lab.topology.client[0])
    assert ping(lab) == echoed(echo(client, VIP))[ICMP_OFFSET:]
    assert counted(lab, Verdict.ECHO_ANSWERED) == 1


def test_a_vip_that_is_gone_answers_nothing(site):
    """The proof fails where the answer does: without its row the VIP is the kernel's, and without that nobody's."""
    lab = site("reply")
    kernel = RealKernel(lab.balancer, lab.run_dir)
    kernel.delete(VIPS.name, [key for key, _ in kernel.dump(VIPS.name)])
    assert ping(lab)
    assert counted(lab, Verdict.ECHO_ANSWERED) == 0
    lab.lbctl("delete", "--auto-approve")
    assert ping(lab, 0.5) is None


def test_a_ping_is_dropped_where_the_service_says_so(site):
    lab = site("drop")
    assert ping(lab, 0.5) is None
    assert counted(lab, Verdict.ECHO_DROPPED) == 1
