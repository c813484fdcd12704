# SPDX-License-Identifier: Apache-2.0
"""Offloads of real interfaces, and the file that says which were on."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import offloads, xdp
from reconciler.kernel.bpf import closing, load_program
from reconciler.kernel.objects import GRO, GRO_HW, LRO, RX_VLAN, OffloadState
from reconciler.kernel.real import RealKernel
from reconciler.kinds.offload import OFF, ON, Offload, OffloadKind, offload_key
from reconciler.lab.build import _PASS
from reconciler.resource import Change

from .conftest import entered, ip

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("inside")]

WORDS = {GRO: "gro", RX_VLAN: "rxvlan"}


def ethtool(interface: str, word: str, state: str) -> None:
    subprocess.run(["ethtool", "-K", interface, word, state], check=True, capture_output=True, timeout=30)


def shown(interface: str) -> dict[str, str]:
    done = subprocess.run(["ethtool", "-k", interface], check=True, capture_output=True, text=True, timeout=30)
    lines = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): state.strip() for name, _, state in lines}


@pytest.fixture
def veth() -> str:
    ip("link", "add", "front", "type", "veth", "peer", "name", "far")
    for name in ("front", "far"):
        ip("link", "set", name, "up")
    return "front"


def test_they_are_read_as_ethtool_shows_them(kernel: RealKernel, veth: str) -> None:
    ip("link", "add", "eth0.7", "type", "bridge")
    for state in ("on", "off"):
        for word in WORDS.values():
            ethtool(veth, word, state)
        for interface in (veth, "eth0.7"):
            found, told = kernel.offloads([interface]), shown(interface)
            assert {name for _, name in found} == {GRO, LRO, GRO_HW, RX_VLAN}
            for (_, name), held in found.items():
                assert held.is_on == told[name].startswith("on"), (interface, name)
                assert held.is_free == ("[fixed]" not in told[name]), (interface, name)


def test_an_interface_that_is_not_there_has_none(kernel: RealKernel) -> None:
    assert kernel.offloads(["nothing"]) == {}
    with pytest.raises(KernelError, match=f"{GRO} of nothing: No such device"):
        kernel.write_offload("nothing", GRO, False)


@pytest.mark.parametrize("name", WORDS)
def test_one_alone_is_written(kernel: RealKernel, veth: str, name: str) -> None:
    ethtool(veth, WORDS[name], "on")
    before = shown(veth)
    kernel.write_offload(veth, name, False)
    now = shown(veth)
    assert {each for each in now if now[each] != before[each]} == {name}
    assert kernel.offloads([veth])[veth, name] == OffloadState(False, is_asked_for=False)
    kernel.write_offload(veth, name, True)
    assert shown(veth) == before


def test_what_a_driver_can_not_change_says_so(kernel: RealKernel, veth: str) -> None:
    assert "[fixed]" in shown(veth)[LRO]
    with pytest.raises(KernelError, match=f"can't change {LRO}"):
        kernel.write_offload(veth, LRO, True)


def test_the_kind_turns_it_off_and_on_again(kernel: RealKernel, veth: str) -> None:
    ethtool(veth, "rxvlan", "on")
    kind, key = OffloadKind(kernel), offload_key(veth, RX_VLAN)
    wanted = {key: Offload(veth, RX_VLAN)}
    assert kind.read(wanted).resources == (Offload(veth, RX_VLAN, ON),)
    assert kind.write([Change(key, Offload(veth, RX_VLAN, ON), Offload(veth, RX_VLAN, OFF))]) == [None]
    assert kind.read(wanted).resources == kind.read({}).resources == (Offload(veth, RX_VLAN, OFF),)
    assert shown(veth)[RX_VLAN].startswith("off")
    assert kind.write([Change(key, Offload(veth, RX_VLAN, OFF), None)]) == [None]
    assert shown(veth)[RX_VLAN].startswith("on")
    assert kind.read({}).resources == ()


FRAME_BYTES, SENT_BYTES = 1514, 1_000_000


@pytest.fixture
def sender(inside: str) -> Iterator[str]:
    """Another namespace, from which packets come in by `port`, one by one, as they would from a wire."""
    name = f"{inside}-far"
    ip("netns", "add", name)
    try:
        ip("link", "add", "port", "type", "veth", "peer", "far", "netns", name)
        ip("link", "set", "port", "up")
        with entered(name):
            ethtool("far", "tx", "off")
            ip("addr", "add", "10.9.0.2/24", "dev", "far")
            ip("link", "set", "far", "up")
        ethtool("port", "gro", "on")
        yield name
    finally:
        ip("netns", "del", name)


def longest(sender: str, interface: str) -> int:
    """The longest packet that comes out of a generic program at an interface, of some hundred."""
    with (
        closing(load_program("lbk_pass", _PASS)) as program,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as capture,
        socket.create_server(("10.9.0.1", 0)) as server,
    ):
        xdp.swap(interface, "generic", program, None)
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        capture.bind((interface, 0x0800))
        with entered(sender):
            client = socket.create_connection(server.getsockname(), 60)
        taken, _ = server.accept()
        with client, taken:
            thread = threading.Thread(target=client.sendall, args=(bytes(SENT_BYTES),))
            thread.start()
            left = SENT_BYTES
            while left:
                left -= len(taken.recv(left))
            thread.join()
        capture.setblocking(False)
        found = 0
        with suppress(BlockingIOError):
            while True:
                found = max(found, len(capture.recv(1 << 17)))
    ip("link", "set", interface, "xdpgeneric", "off")
    return found


def test_the_kernel_merges_nothing_at_the_interface_of_a_generic_program(kernel: RealKernel, sender: str) -> None:
    ip("addr", "add", "10.9.0.1/24", "dev", "port")
    assert kernel.offloads(["port"])["port", GRO].is_on
    assert longest(sender, "port") <= FRAME_BYTES
    assert OffloadKind(kernel).read({offload_key("port", GRO): Offload("port", GRO)}).resources == (
        Offload("port", GRO, OFF),
    )


def test_what_is_merged_at_a_port_of_a_bridge_is_so_no_more(kernel: RealKernel, sender: str) -> None:
    ip("link", "add", "bridge", "type", "bridge")
    ip("link", "set", "port", "master", "bridge")
    ip("addr", "add", "10.9.0.1/24", "dev", "bridge")
    ip("link", "set", "bridge", "up")
    assert longest(sender, "bridge") > FRAME_BYTES
    kind, off = OffloadKind(kernel), Offload("bridge", GRO)
    (held,) = kind.read({off.key: off}).resources
    assert held == replace(off, state="on, by port")
    assert kind.write([Change(off.key, held, off)]) == [None]
    assert kind.read({off.key: off}).resources == (off,)
    assert longest(sender, "bridge") <= FRAME_BYTES
    (gone,) = kind.read({}).resources
    assert kind.write([Change(gone.key, gone, None)]) == [None]
    assert shown("port")[GRO] == "on"


def test_what_was_on_outlives_the_process_beside_settings(kernel: RealKernel, run_dir: Path) -> None:
    kernel.remember_sysctl("net/ipv4/ip_forward", "0")
    kernel.remember_offload("eth0.7", GRO)
    kernel.remember_offload("eth0.7", RX_VLAN)
    other = RealKernel("lbk", run_dir)
    assert other.former_offloads() == {("eth0.7", GRO), ("eth0.7", RX_VLAN)}
    assert other.former_sysctls() == {"net/ipv4/ip_forward": "0"}
    other.forget_sysctl("net/ipv4/ip_forward")
    other.forget_offload("eth0.7", GRO)
    with pytest.raises(KernelError, match="not restored yet"):
        kernel.remove_instance()
    other.forget_offload("eth0.7", RX_VLAN)
    kernel.remove_instance()
    assert not (run_dir / "lbk").exists()


@pytest.mark.parametrize("content", [
    '{"ethtool/eth0/tx-checksumming": "on"}', '{"ethtool/../rx-gro-hw": "on"}', '{"ethtool/eth0/rx-gro-hw": "1"}',
])  # fmt: skip
def test_a_file_with_what_lbctl_never_changes_is_refused(kernel: RealKernel, run_dir: Path, content: str) -> None:
    kernel.remember_offload("eth0", GRO)
    (run_dir / "lbk/former.json").write_text(content)
    with pytest.raises(KernelError, match=r"former\.json"):
        kernel.former_offloads()


def test_the_kernels_names_are_all_known() -> None:
    assert offloads._places().keys() == offloads.FEATURES.keys()
