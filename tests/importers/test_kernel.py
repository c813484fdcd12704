# SPDX-License-Identifier: Apache-2.0
"""`lbctl import live` against a real kernel, in a namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

CHECKOUT = Path(__file__).resolve().parents[2]
NETNS = f"lbimp-{os.getpid()}"


def run(*command):
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def lbctl(tmp_path):
    """Run lbctl in the namespace; what it put there is taken off again, and the namespace with it."""

    def call(*words):
        where = ("--netns", NETNS, "--run-dir", tmp_path / "run")
        return run(sys.executable, "-m", "reconciler.cli.main", *where, *words)

    run("ip", "netns", "add", NETNS)
    try:
        for name, address in (("front", "10.1.0.1/24"), ("back", "10.2.0.1/24")):
            run("ip", "-n", NETNS, "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
            run("ip", "-n", NETNS, "address", "add", address, "dev", name)
            run("ip", "-n", NETNS, "link", "set", name, "up")
        yield call
        call("delete", "--auto-approve")
    finally:
        run("ip", "netns", "del", NETNS)


def test_what_is_imported_from_a_node_changes_nothing_on_it(lbctl, tmp_path):
    lbctl("apply", "examples/configs/nat-tcp", "--auto-approve")
    lbctl("import", "live", "--out", tmp_path / "imported")
    planned = lbctl("plan", tmp_path / "imported")
    # Addresses of interfaces are declared, not held: without them nobody is known to be a neighbour.
    assert "Plan: 0 to add, 0 to change, 3 to remove." in planned
    assert planned.count("- neighbour ") == 3
    (node,) = (path for path in (tmp_path / "imported").iterdir() if "kind: Node" in path.read_text())
    declared = node.read_text().replace("name: back", "name: back, addresses: [10.2.0.1/24]")
    node.write_text(declared)
    assert lbctl("plan", tmp_path / "imported").startswith("No changes."), declared
