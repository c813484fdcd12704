# SPDX-License-Identifier: Apache-2.0
"""The guest is what it claims to be, and can't do the host any harm."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from pathlib import Path

import pytest

from tests.vm.machine import release


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)


def test_the_kernel_is_debians_own() -> None:
    assert platform.release() == release() == os.environ["LBCTL_TEST_VM"]
    assert "Debian" in platform.version()


WORDS = [
    "type ipip local 192.0.2.1", "type sit local 192.0.2.1", "type ip6tnl local 2001:db8::1",
    "link lbv-dummy type vlan id 7",
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_the_kernel_has_the_devices_that_the_tests_are_here_for(words: str) -> None:
    ip("link add lbv-dummy type dummy")
    try:
        ip(f"link add name lbv-device {words}")
        ip("link del lbv-device")
    finally:
        ip("link del lbv-dummy")


def test_the_kernel_speaks_sctp() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as speaker:
        speaker.bind(("::1", 0))


def test_what_the_guest_writes_stays_in_the_guest() -> None:
    mounts = Path("/proc/mounts").read_text().splitlines()
    assert [line.split()[2] for line in mounts if line.split()[1] == "/"][-1] == "overlay"
