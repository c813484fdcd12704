# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.kernel import bpf

CHECKOUT = Path(__file__).resolve().parents[2]
NETNS = f"lbcli-{os.getpid()}"


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


def make_node(name):
    """A namespace with the interfaces and addresses that the manifests declare."""
    ip("netns", "add", name)
    for link, address in (("front", "10.1.0.1/24"), ("back", "10.2.0.1/24")):
        ip("-n", name, "link", "add", link, "type", "veth", "peer", "name", f"{link}-far")
        ip("-n", name, "address", "add", address, "dev", link)
        ip("-n", name, "link", "set", link, "up")
        ip("-n", name, "link", "set", f"{link}-far", "up")


@pytest.fixture
def netns():
    try:
        make_node(NETNS)
        yield NETNS
    finally:
        ip("netns", "del", NETNS)


@pytest.fixture
def manifests(tmp_path):
    return Path(shutil.copytree(CHECKOUT / "examples" / "configs" / "nat-tcp", tmp_path / "manifests"))


@pytest.fixture
def lbctl(netns, tmp_path):
    """Run lbctl in the namespace; what it put there is taken off again."""
    run_dir = tmp_path / "run"

    def call(*words, code=0):
        command = [sys.executable, "-m", "reconciler.cli.main", "--netns", netns, "--run-dir", run_dir, *words]
        done = subprocess.run(
            command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    call.run_dir = run_dir
    yield call
    call("delete", "--auto-approve")
    assert not (run_dir / netns).exists()


@pytest.fixture
def foreign_program(tmp_path):
    """Attach a program of a stranger to an interface; it goes with the namespace."""
    pins = tmp_path / "strangers"
    pins.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", pins], check=True)

    def attach(interface):
        code = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # return XDP_PASS
        with bpf.closing(bpf.load_program("xdp_stranger", code)) as fd:
            bpf.pin(fd, pins / "program")
        subprocess.run(["ip", "-n", NETNS, "link", "set", interface, "xdp", "pinned", pins / "program"], check=True)

    yield attach
    subprocess.run(["umount", pins], check=True)
