# SPDX-License-Identifier: Apache-2.0
"""An open connection outlives a change of the mode of XDP, whatever comes in while no program runs."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.build import wait_until
from reconciler.lab.topology import CLIENT
from reconciler.model import Fleet, XdpMode
from reconciler.reconcile import desired_of, plan_node

from .conftest import TWO_ARMS, LabMaker, fleet_of

pytestmark = pytest.mark.kernel

VIP = "20.20.20.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"


class SlowKernel(RealKernel):
    """Does something while an interface runs no program."""

    meanwhile: Callable[[str], None]

    def attach(self, interface: str, mode: str, replaces: int | None) -> None:
        if replaces is None:
            self.meanwhile(interface)
        super().attach(interface, mode, replaces)


def with_modes(fleet: Fleet, **modes: XdpMode) -> Fleet:
    (node,) = fleet.nodes
    faces = tuple(replace(face, xdp=modes[face.name]) for face in node.interfaces)
    return replace(fleet, nodes=(replace(node, interfaces=faces),))


def came_in(interface: str) -> int:
    """The packets that an interface of this thread's namespace has received."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == interface:
            return int(counts.split()[1])
    raise AssertionError(f"no interface {interface}")


def test_an_open_connection_of_nat_outlives_other_modes(start_lab: LabMaker, tmp_path: Path) -> None:
    """Requests come in by the one interface while it runs no program, and are not reset; replies come in by the
    other one, and don't reach the client untranslated."""
    fleet = fleet_of(VIP, ["10.2.0.11"], *TWO_ARMS)
    lab = start_lab(fleet)
    lab.serve_http()
    lab.run(CLIENT, "ip", "route", "replace", "10.2.0.0/24", "via", "10.1.0.1")  # its resets would find their way
    kernel = SlowKernel(lab.balancer, lab.run_dir)
    kernel.meanwhile = lambda interface: None

    def bring(wanted: Fleet) -> None:
        planned = plan_node(desired_of(wanted, None, kernel), kernel, tmp_path)
        apply(planned, kernel).raise_if_failed()

    native, generic = XdpMode.NATIVE, XdpMode.GENERIC
    netns.inside(lab.balancer, bring, with_modes(fleet, front=native, back=native))
    with netns.inside(lab.netns(CLIENT), socket.create_connection, (VIP, 80), 15) as client:
        client.sendall(REQUEST)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        switched = []

        def ask(interface: str) -> None:
            before = came_in(interface)
            client.sendall(REQUEST)
            wait_until("it comes in, and is sent again", lambda: came_in(interface) >= before + 3)
            switched.append(interface)

        kernel.meanwhile = ask
        for front, back in ((generic, native), (generic, generic), (native, generic), (native, native)):
            netns.inside(lab.balancer, bring, with_modes(fleet, front=front, back=back))
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert switched == ["front", "back"] * 2
