# SPDX-License-Identifier: Apache-2.0
"""A running agent mends at once what somebody breaks by hand: it looks at the whole node once an hour only."""

import subprocess
import sys
import time

import pytest

from reconciler.kernel.mark import protocol_of
from tests.cli.conftest import CHECKOUT, ip

pytestmark = pytest.mark.kernel

WAIT_S = 60.0
VIP = "10.1.0.100"


@pytest.fixture
def agent(lbctl, manifests, netns, tmp_path):
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", lbctl.run_dir]
    argv += ["run", manifests, "--resync", "1h"]
    with log.open("w") as output:
        process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "Applied" in log.read_text(), log)
        yield log
    finally:
        process.terminate()
        process.wait()


def wait_until(condition, log):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def holds(netns, *words):
    return ip("-n", netns, *words)


def setting(netns, name):
    return subprocess.run(
        ["ip", "netns", "exec", netns, "sysctl", "-n", name], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_what_is_broken_by_hand_and_an_interface_that_comes_anew_are_mended_at_once(agent, lbctl, netns, manifests):
    vip = holds(netns, "route", "show", "table", "local", "proto", str(protocol_of(netns))).split()[1]
    ip("-n", netns, "route", "del", "local", vip, "dev", "lo", "table", "local")
    wait_until(lambda: vip in holds(netns, "route", "show", "table", "local", "proto", str(protocol_of(netns))), agent)
    subprocess.run(["ip", "netns", "exec", netns, "sysctl", "-qw", "net.ipv4.conf.back.rp_filter=1"], check=True)
    wait_until(lambda: setting(netns, "net.ipv4.conf.back.rp_filter") == "2", agent)
    ip("-n", netns, "link", "set", "front", "xdp", "off")
    wait_until(lambda: "xdp" in holds(netns, "link", "show", "front"), agent)
    # Another index, another MAC, settings as they come.
    ip("-n", netns, "link", "del", "front")
    wait_until(lambda: "there is no interface front" in agent.read_text(), agent)
    ip("-n", netns, "link", "add", "front", "type", "veth", "peer", "name", "front-far")
    ip("-n", netns, "address", "add", "10.1.0.1/24", "dev", "front")
    ip("-n", netns, "link", "set", "front", "up")
    wait_until(lambda: "xdp" in holds(netns, "link", "show", "front"), agent)
    wait_until(lambda: setting(netns, "net.ipv4.conf.front.forwarding") == "1", agent)
    wait_until(lambda: "node: recovered" in agent.read_text(), agent)
    assert lbctl("plan", manifests).startswith("No changes.")
