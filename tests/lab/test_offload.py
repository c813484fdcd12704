# SPDX-License-Identifier: Apache-2.0
"""A program in generic mode on a bridge sees packets that a port merged: an upload stalls until that is ended, and
then goes on."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.doctor.state import of_plan
from reconciler.kernel.objects import GRO
from reconciler.kernel.offloads import read
from reconciler.kernel.real import RealKernel
from reconciler.lab import netns
from reconciler.lab.lab import Lab
from reconciler.lab.topology import CLIENT, SWITCH
from reconciler.model import XdpMode
from reconciler.plan import Plan
from reconciler.reconcile import desired_of, plan_node
from reconciler.resource import Action, Desired

from .conftest import TWO_ARMS, LabMaker, fleet_of

pytestmark = pytest.mark.kernel

VIP, LIMIT_S, STALL_S = "20.20.20.1", 240, 3
BODY = bytes(200_000)
REQUEST = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@contextmanager
def upload(lab: Lab) -> Iterator[threading.Thread]:
    """One that is under way; at the end it has been answered whole."""
    client = netns.inside(lab.netns(CLIENT), socket.create_connection, (VIP, 80), LIMIT_S)
    answer: list[bytes] = []

    def post() -> None:
        client.sendall(REQUEST + BODY)
        with client.makefile("rb") as file:
            answer.append(file.readline())

    with client:
        sender = threading.Thread(target=post)
        sender.start()
        try:
            yield sender
            sender.join(LIMIT_S)
            assert answer == [b"HTTP/1.1 200 OK\r\n"]
        finally:
            client.shutdown(socket.SHUT_RDWR)
            sender.join(LIMIT_S)


def make_bridge(lab: Lab) -> None:
    """The balancer's interface of clients becomes a bridge, whose port may merge what comes from the wire."""
    (wire,) = (link.port for link in lab.topology.links if link.device == "front")
    lab.run(SWITCH, "ethtool", "-K", wire, "tx", "off")
    for line in (
        "link set front down", "link set front name port", "link add front type bridge", "link set port master front",
        "link set port up", "link set front up", "addr flush dev port", "addr add 10.1.0.1/24 dev front",
    ):  # fmt: skip
        lab.run("lb1", "ip", *line.split())


def merges(lab: Lab) -> bool:
    return netns.inside(lab.balancer, read, ["port"])["port", GRO].is_on


def test_an_upload_stalls_while_packets_are_merged_and_goes_on_after_apply(
    start_lab: LabMaker, tmp_path: Path
) -> None:
    # No program in native mode can send packets to a bridge.
    fleet = fleet_of(VIP, ["10.2.0.11"], *(replace(face, xdp=XdpMode.GENERIC) for face in TWO_ARMS))
    lab = start_lab(fleet)
    make_bridge(lab)
    lab.serve_http()
    kernel = RealKernel(lab.balancer, lab.run_dir)

    def planned(desired: Desired | None = None) -> Plan:
        wanted = desired_of(fleet, None, kernel) if desired is None else desired
        return netns.inside(lab.balancer, plan_node, wanted, kernel, tmp_path)

    def bring(plan: Plan) -> None:
        netns.inside(lab.balancer, lambda: apply(plan, kernel).raise_if_failed())

    lab.run("lb1", "ethtool", "-K", "port", "gro", "on")
    bring(planned())
    assert not merges(lab)
    with upload(lab):
        pass
    lab.run("lb1", "ethtool", "-K", "port", "gro", "on")
    with upload(lab) as sender:
        sender.join(STALL_S)
        assert sender.is_alive(), "nothing was merged"
        found = planned()
        (change,) = found.changes
        assert (str(change.key), change.action) == (f"offload front {GRO}", Action.UPDATE)
        assert [finding.name for finding in of_plan(found)] == ["packets-merged"]
        bring(found)
    assert planned().changes == ()
    bring(planned(Desired()))
    assert merges(lab), "as before"
