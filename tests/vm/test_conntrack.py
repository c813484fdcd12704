# SPDX-License-Identifier: Apache-2.0
"""The kernel's own table of connections, which is one machine's affair: here it may be made small, and fills up."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.doctor.host import of_host
from reconciler.kernel.real import RealKernel
from reconciler.model import Interface, Node, Role
from tests.kernel.conftest import inside, namespace  # noqa: F401 - fixtures
from tests.nft import ACCEPT, INPUT, IP, RULE, attribute, chain, nested, nft, u32

MOST = Path("/proc/sys/net/netfilter/nf_conntrack_max")
NODE = Node("web1", (Interface("lo"),), role=Role.ENDPOINT)
TRACKED = nested(1, attribute(1, b"ct\0") + nested(2, u32(1, 1) + u32(2, 0)))
"""What nft makes of `ct state`: who asks for that has connections tracked."""


@pytest.fixture
def tracking(inside: str) -> Iterator[None]:  # noqa: F811
    """A firewall that asks for states of connections, and twenty of those."""
    rule = attribute(1, b"site\0") + attribute(2, b"in\0") + nested(4, TRACKED)
    nft(*chain(IP, b"site", b"in", INPUT, ACCEPT), (RULE, IP, rule))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for port in range(20_000, 20_020):
            sock.sendto(b"", ("127.0.0.1", port))
    former = MOST.read_text()
    yield
    make_room(int(former))


def make_room(connections: int) -> None:
    """Only where the machine itself is can this be written."""
    words = ["nsenter", "-t", "1", "-n", "sysctl", "-qw", f"net.netfilter.nf_conntrack_max={connections}"]
    subprocess.run(words, check=True, timeout=60)


def found(tmp_path: Path) -> list[str]:
    return [each.name for each in of_host(NODE, {}, RealKernel("lbc", tmp_path / "run")) if "clock" not in each.name]


def test_a_full_table_of_the_kernels_is_told_until_there_is_room(tracking: None, tmp_path: Path) -> None:
    assert found(tmp_path) == []
    make_room(21)
    assert found(tmp_path) == ["conntrack-full"]
    make_room(42)
    assert found(tmp_path) == []
