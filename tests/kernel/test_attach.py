# SPDX-License-Identifier: Apache-2.0
"""The program on interfaces of a namespace: compare-and-swap, other people's programs, both modes."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.dataplane.program import program_name
from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import bpf, netlink, xdp
from reconciler.kernel.objects import AttachedProgram
from reconciler.kernel.real import RealKernel

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("links")]

PLAIN, NAT = (), ("NAT",)
RETURN_PASS = bytes.fromhex("b7000000020000009500000000000000")
RTMGRP_LINK = 1


@pytest.fixture
def links(inside: str) -> None:
    """Two pairs of veth in the namespace that the test runs in: front—away0 and back—away1."""
    for number, name in enumerate(("front", "back")):
        run("ip", "link", "add", name, "type", "veth", "peer", "name", f"away{number}")
        run("ip", "link", "set", name, "up")
        run("ip", "link", "set", f"away{number}", "up")


@pytest.fixture
def stranger() -> Iterator[int]:
    """Somebody else's program."""
    with bpf.closing(bpf.load_program("xdp_pass", RETURN_PASS)) as fd:
        yield fd


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def load(kernel: RealKernel, features: tuple[str, ...] = NAT) -> int:
    kernel.load_program(program_name(features), features)
    program = kernel.loaded_program()
    assert program is not None
    return program.id


def test_what_a_program_was_built_with_is_known(kernel) -> None:
    load(kernel)
    assert kernel.loaded_program().features == NAT
    load(kernel, PLAIN)
    assert kernel.loaded_program().features == PLAIN


def on(kernel: RealKernel, interface: str) -> AttachedProgram | None:
    return next((a for a in kernel.attached_programs([interface]) if a.interface == interface), None)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_the_loaded_program_is_attached_and_detached(kernel: RealKernel, mode: str) -> None:
    number = load(kernel)
    assert kernel.attached_programs(["front"]) == []
    kernel.attach("front", mode, None)
    name = program_name(NAT)
    maps = kernel.loaded_program().maps
    held = AttachedProgram("front", mode, number, name, f"program '{name}', id {number}, loaded by uid 0", maps=maps)
    assert kernel.attached_programs(["front"]) == [held]
    assert kernel.attached_programs([]) == [held], "ours is reported wherever it runs"
    kernel.detach("front", mode, number)
    assert kernel.attached_programs(["front"]) == []


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_swap_never_leaves_the_interface_without_a_program(kernel: RealKernel, mode: str) -> None:
    current = load(kernel, PLAIN)
    kernel.attach("front", mode, None)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        events.bind((0, RTMGRP_LINK))
        allowed = {current}
        for features in (NAT, PLAIN, NAT):
            successor = load(kernel, features)
            kernel.attach("front", mode, current)
            current = successor
            allowed.add(current)
        events.setblocking(False)
        seen = list(programs_announced(events, socket.if_nametoindex("front")))
    assert len(seen) >= 3
    assert set(seen) <= allowed, "an event says that the interface ran nothing"
    held = on(kernel, "front")
    assert held is not None and held.id == current


def programs_announced(events: socket.socket, index: int) -> Iterator[int]:
    """The program that each event of this interface speaks of, 0 for none."""
    while True:
        try:
            data = events.recv(1 << 16)
        except BlockingIOError:
            return
        if struct.unpack_from("=i", data, 20)[0] == index:
            held = netlink.attributes(netlink.attributes(data[32:])[43])
            yield int.from_bytes(held.get(4, b""), "little")


def test_nothing_is_swapped_if_something_else_runs_than_expected(kernel: RealKernel) -> None:
    first = load(kernel, PLAIN)
    kernel.attach("front", "native", None)
    second = load(kernel, NAT)
    for replaces in (None, second):
        with pytest.raises(KernelError, match="front"):
            kernel.attach("front", "native", replaces)
    with pytest.raises(KernelError, match="front"):
        kernel.detach("front", "native", second)
    held = on(kernel, "front")
    assert held is not None and held.id == first
    with pytest.raises(KernelError, match="back"):
        kernel.attach("back", "native", first)
    assert on(kernel, "back") is None


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("own", ["native", "generic"])
def test_somebody_elses_program_is_taken_over_where_that_is_asked_for_and_comes_back_if_it_is_undone(
    kernel: RealKernel, stranger: int, mode: str, own: str
) -> None:
    number = load(kernel)
    xdp.swap("front", mode, stranger, None)
    before = list(xdp.running())
    with pytest.raises(ForeignError, match="xdp_pass"):
        kernel.attach("front", own, None)
    kernel.adopts = True
    with pytest.raises(KernelError):
        kernel.attach("front", own, number)
    assert list(xdp.running()) == before
    kernel.attach("front", own, None)
    held = on(kernel, "front")
    assert held is not None and (held.id, held.mode) == (number, own)
    kernel.detach("front", own, number)
    assert list(xdp.running()) == before
    kernel.attach("front", own, None)
    again = RealKernel(kernel._instance.name, kernel._instance.directory.parent)
    again.detach("front", own, number)
    assert list(xdp.running()) == []


def test_a_program_that_no_longer_exists_is_not_what_runs(kernel: RealKernel) -> None:
    load(kernel)
    with pytest.raises(KernelError, match="no longer runs program 4294967295"):
        kernel.attach("front", "native", 4_294_967_295)


def test_the_kernel_itself_refuses_a_late_swap(kernel: RealKernel, stranger: int) -> None:
    """What slips in between our own look and the swap is caught by the swap."""
    xdp.swap("front", "native", stranger, None)
    with bpf.closing(bpf.load_program("lbk_late", RETURN_PASS)) as late:
        for expected in (None, late):
            with pytest.raises(KernelError) as caught:
                xdp.swap("front", "native", late, expected)
            assert "plan again" in caught.value.hint
    held = on(kernel, "front")
    assert held is not None and held.name == "xdp_pass"


def test_somebody_elses_program_is_named_and_stays(kernel: RealKernel, stranger: int) -> None:
    xdp.swap("front", "native", stranger, None)
    number = bpf.program_info(stranger).id
    load(kernel)
    for attempt in (
        lambda: kernel.attach("front", "native", None),
        lambda: kernel.attach("front", "generic", None),
        lambda: kernel.attach("front", "native", number),
        lambda: kernel.detach("front", "native", number),
    ):
        with pytest.raises(ForeignError, match=f"program 'xdp_pass', id {number}, loaded by uid 0"):
            attempt()
    assert kernel.attached_programs([]) == [], "a stranger on an interface that nobody asked about"
    held = on(kernel, "front")
    assert held is not None and (held.id, held.name) == (number, "xdp_pass")


def test_an_unknown_interface_is_answered_with_those_that_there_are(kernel: RealKernel) -> None:
    load(kernel)
    with pytest.raises(KernelError, match="there is no interface eth9") as caught:
        kernel.attach("eth9", "native", None)
    assert caught.value.hint == "there are: away0, away1, back, front, lo"
    assert kernel.attached_programs(["eth9"]) == []


def test_without_a_loaded_program_there_is_nothing_to_attach(kernel: RealKernel) -> None:
    with pytest.raises(KernelError, match="no program is loaded"):
        kernel.attach("front", "native", None)


def test_the_mode_of_a_running_program_is_not_changed_in_one_step(kernel: RealKernel) -> None:
    number = load(kernel)
    kernel.attach("front", "native", None)
    with pytest.raises(KernelError, match="runs its program in native mode"):
        kernel.attach("front", "generic", number)
    kernel.detach("front", "native", number)
    kernel.attach("front", "generic", None)
    held = on(kernel, "front")
    assert held is not None and held.mode == "generic"


def test_an_mtu_that_is_too_large_for_native_mode_is_explained(kernel: RealKernel) -> None:
    load(kernel)
    for name in ("front", "away0"):
        run("ip", "link", "set", name, "mtu", "9000")
    with pytest.raises(KernelError, match="Peer MTU is too large") as caught:
        kernel.attach("front", "native", None)
    assert "xdp: generic" in caught.value.hint
    kernel.attach("front", "generic", None)


def test_a_device_without_native_xdp_is_explained(kernel: RealKernel) -> None:
    load(kernel)
    run("ip", "link", "add", "bridge", "type", "bridge")
    with pytest.raises(KernelError, match="can't attach to bridge in native mode") as caught:
        kernel.attach("bridge", "native", None)
    assert "xdp: generic" in caught.value.hint


def test_what_is_attached_runs_on_after_unloading_and_is_still_known_as_ours(kernel: RealKernel) -> None:
    number = load(kernel)
    kernel.attach("front", "native", None)
    kernel.unload_program()
    (held,) = kernel.attached_programs([])
    assert held.id == number
    kernel.detach("front", "native", number)
    assert kernel.attached_programs([]) == []


def test_after_the_pins_are_gone_a_new_program_takes_over(kernel: RealKernel, run_dir: Path) -> None:
    first = load(kernel)
    kernel.attach("front", "native", None)
    run("umount", str(run_dir / "lbk/bpf"))
    assert kernel.loaded_program() is None
    second = load(kernel)
    kernel.attach("front", "native", first)
    held = on(kernel, "front")
    assert held is not None and held.id == second


def test_the_program_of_another_instance_is_not_ours(kernel: RealKernel, run_dir: Path) -> None:
    number = load(kernel)
    kernel.attach("front", "native", None)
    other = RealKernel("lbk2", run_dir)
    load(other)
    assert other.attached_programs([]) == []
    with pytest.raises(ForeignError):
        other.attach("front", "native", number)
    with pytest.raises(ForeignError):
        other.detach("front", "native", number)
    assert len(kernel.attached_programs([])) == 1


def test_interfaces_of_other_namespaces_are_out_of_sight(kernel: RealKernel, namespace: str) -> None:
    load(kernel)
    kernel.attach("front", "native", None)
    subprocess.run(["ip", "netns", "add", f"{namespace}-b"], check=True)
    try:
        script = (
            "from pathlib import Path; from reconciler.kernel import netns; "
            "from reconciler.kernel.real import RealKernel; "
            f"kernel = RealKernel('lbk', Path({str(kernel._instance.directory.parent)!r})); "
            "print(len(kernel.attached_programs([]))); "
            f"netns.enter('{namespace}-b'); print(len(kernel.attached_programs(['front'])), kernel.local_vips())"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    finally:
        subprocess.run(["ip", "netns", "del", f"{namespace}-b"], check=True)
    assert done.stdout == "1\n0 []\n"
