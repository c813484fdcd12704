# SPDX-License-Identifier: Apache-2.0
import struct
import subprocess

import pytest

from reconciler.kernel import bpf
from tests.cli.test_verbs import NETNS


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
