# SPDX-License-Identifier: Apache-2.0
"""Whether the far end of a veth runs a native program, wherever it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from reconciler.kernel import bpf, xdp
from reconciler.kernel.real import RealKernel

from .conftest import entered, ip

pytestmark = pytest.mark.kernel

RETURN_PASS = bytes.fromhex("b7000000020000009500000000000000")


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another namespace."""
    name = f"lbk-veth-{os.getpid()}"
    ip("netns", "add", name)
    yield name
    ip("netns", "del", name)


@pytest.mark.parametrize(("mode", "seen"), [("native", True), ("generic", False)])
def test_only_a_native_program_takes_frames_of_native_xdp(
    kernel: RealKernel, inside: str, elsewhere: str, mode: str, seen: bool
) -> None:
    ip("link", "add", "front", "type", "veth", "peer", "name", "away", "netns", elsewhere)
    ip("link", "add", "back", "type", "veth", "peer", "name", "near")
    ip("link", "add", "dull", "type", "bridge")
    asked = ["front", "back", "dull", "gone"]
    assert kernel.far_ends(asked) == {"front": False, "back": False}
    with bpf.closing(bpf.load_program("xdp_pass", RETURN_PASS)) as program:
        xdp.swap("near", mode, program, None)
        with entered(elsewhere):
            xdp.swap("away", mode, program, None)
    assert kernel.far_ends(asked) == {"front": seen, "back": seen}
    assert kernel.far_ends(["back"]) == {"back": seen}


def test_links_say_whether_they_are_up_and_whose_ports_they_are(kernel: RealKernel, inside: str) -> None:
    ip("link", "add", "front", "type", "veth", "peer", "name", "away")
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "set", "front", "up", "master", "br0")
    links = {link.name: link for link in kernel.links()}
    found = {name: (links[name].is_up, links[name].master) for name in ("front", "away", "br0")}
    assert found == {"front": (True, links["br0"].index), "away": (False, None), "br0": (False, None)}


def test_a_name_that_is_no_utf_8_hides_no_other_interface(kernel: RealKernel, inside: str) -> None:
    """The kernel takes nearly any bytes, and whoever runs containers here names some of the interfaces."""
    name = b"odd\xff\x1b"
    words = b"link add front type veth peer name " + name
    subprocess.run([b"ip", *words.split(b" ")], check=True, timeout=30)
    shown = os.fsdecode(name)
    assert {"front", shown} <= {link.name for link in kernel.links()}
    assert kernel.far_ends(["front"]) == {"front": False}
    with bpf.closing(bpf.load_program("xdp_pass", RETURN_PASS)) as program:
        xdp.swap(shown, "generic", program, None)
    assert [held.interface for held in xdp.running()] == [shown]
    assert kernel.tunnels() == []
    kernel.announce(["10.1.0.9"])
