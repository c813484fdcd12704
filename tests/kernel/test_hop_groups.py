# SPDX-License-Identifier: Apache-2.0
"""Groups of next hops in the kernel: a balancer that goes takes its own flows along, one that comes takes none that is
in use, and what others made stays."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import HopGroup, Neighbour, Route
from reconciler.kernel.real import RealKernel
from reconciler.live import read_live
from reconciler.model import Fleet, Interface, Node, Role, VipRoutes
from reconciler.plan import Plan, plan
from reconciler.reconcile import node_view

from .test_drift_properties import ip

pytestmark = pytest.mark.kernel

MARK = protocol_of("lbr")
HOPS = tuple(Neighbour(f"10.2.0.{n}", "eth0") for n in (11, 12, 13))
GROUP = HopGroup(0x40000007, HOPS, 128, 120)
ROUTES = [Route("20.20.20.1/32", group=GROUP.number), Route("20.20.20.2/32", group=GROUP.number)]
FLOWS = 300
TICKS_S = 0.05
"""Some ticks of the kernel: a bucket that is used in the tick in which it was given to a member counts as unused."""


@pytest.fixture
def kernel(inside: str, tmp_path: Path) -> Iterator[RealKernel]:
    Path("/proc/sys/net/ipv4/fib_multipath_hash_policy").write_text("1")
    ip("link add eth0 type veth peer far", "addr add 10.2.0.1/24 dev eth0", "link set far up", "link set eth0 up",
       "nexthop add id 7 via 10.2.0.12 dev eth0 proto static", "nexthop add id 8 group 7 proto static")  # fmt: skip
    made = RealKernel("lbr", tmp_path / "run")
    assert made.has_resilient_groups()
    assert made.put_hop_groups([GROUP]) == [None]
    assert made.add_routes(ROUTES) == [None, None]
    yield made


def ways(vip: str = "20.20.20.1") -> list[str]:
    """Where the kernel sends each of some flows to a VIP."""
    lines = "".join(f"route get {vip} ipproto udp sport {20_000 + n} dport 80\n" for n in range(FLOWS))
    done = subprocess.run(["ip", "-batch", "-"], input=lines, capture_output=True, text=True, check=True, timeout=60)
    return re.findall(r"via (\S+)", done.stdout)


def others() -> list[dict[str, object]]:
    found = json.loads(subprocess.run(["ip", "-json", "nexthop"], capture_output=True, check=True).stdout)
    return [hop for hop in found if hop.get("protocol") == "static"]


def test_what_was_written_reads_back_and_goes_without_a_trace(kernel: RealKernel) -> None:
    assert kernel.hop_groups() == [GROUP]
    assert kernel.routes() == ROUTES
    assert len(others()) == 2
    assert kernel.put_hop_groups([GROUP]) == [None]  # once more is no error
    assert kernel.remove_routes(ROUTES[:1]) == [None]
    assert kernel.routes() == ROUTES[1:]
    assert kernel.remove_routes(ROUTES) == [None, None]
    assert kernel.routes() == []
    assert kernel.remove_hop_groups([GROUP.number, GROUP.number, 8]) == [None] * 3
    assert kernel.hop_groups() == []
    assert others() == json.loads(subprocess.run(["ip", "-json", "nexthop"], capture_output=True, check=True).stdout)
    assert len(others()) == 2


def test_one_that_goes_takes_its_own_flows_along_and_one_that_comes_takes_none_in_use(kernel: RealKernel) -> None:
    before = ways()
    assert len(before) == FLOWS
    # Of 300 flows each of three has 100 or so: odds below 3 (2/3)^300, 1e-52, that one has none.
    assert {*before} == {hop.address for hop in HOPS}
    gone = HOPS[0].address
    assert kernel.put_hop_groups([replace(GROUP, hops=HOPS[1:])]) == [None]
    time.sleep(TICKS_S)
    after = ways()
    moved = {was for was, way in zip(before, after, strict=True) if was != way}
    assert moved == {gone} and gone not in after
    assert kernel.put_hop_groups([GROUP]) == [None]
    assert ways() == after


def test_all_routes_follow_their_group(kernel: RealKernel) -> None:
    assert kernel.put_hop_groups([replace(GROUP, hops=HOPS[:1])]) == [None]
    assert {*ways("20.20.20.1"), *ways("20.20.20.2")} == {HOPS[0].address}
    assert kernel.hop_groups() == [replace(GROUP, hops=HOPS[:1])]


def test_somebody_elses_group_is_left_alone(kernel: RealKernel) -> None:
    (outcome,) = kernel.put_hop_groups([replace(GROUP, number=8)])
    assert outcome and "is not lbctl's" in str(outcome)
    assert len(others()) == 2
    (outcome,) = kernel.put_hop_groups([replace(GROUP, hops=(Neighbour("10.2.0.11", "nowhere"),))])
    assert outcome and kernel.hop_groups() == [GROUP]


def test_somebody_elses_group_and_member_are_taken_over_where_that_is_asked_for(kernel: RealKernel) -> None:
    wanted = replace(GROUP, number=GROUP.number + 1, hops=(Neighbour("10.2.0.14", "eth0"),))
    (member,) = [hop["id"] for hop in made_once(kernel, wanted) if "gateway" in hop]
    ip(f"nexthop add id {member} via 10.2.0.15 dev eth0 proto static",
       f"nexthop add id {wanted.number} group {member} proto static",
       f"route add 20.20.20.8 nhid {wanted.number}")  # fmt: skip
    found = kernel.foreign_hop_groups([GROUP, wanted])
    assert found == {wanted.number: f"next hop {wanted.number}, protocol number 4"}
    assert kernel.put_hop_groups([wanted]) != [None]
    kernel.adopts = True
    assert kernel.put_hop_groups([wanted]) == [None]
    assert kernel.hop_groups() == [GROUP, wanted]
    kernel.adopts = False
    assert kernel.foreign_hop_groups([GROUP, wanted]) == {}
    assert {hop["id"] for hop in others()} == {7, 8}


def made_once(kernel: RealKernel, group: HopGroup) -> list[dict[str, object]]:
    """What a group is made of, which is gone afterwards."""
    before = subprocess.run(["ip", "-json", "nexthop"], capture_output=True, check=True).stdout
    assert kernel.put_hop_groups([group]) == [None]
    after = subprocess.run(["ip", "-json", "nexthop"], capture_output=True, check=True).stdout
    kernel.remove_hop_groups([group.number])
    return [hop for hop in json.loads(after) if hop not in json.loads(before)]


def test_a_router_gets_its_routes_from_manifests_and_again_when_an_interface_comes_back(
    kernel: RealKernel, web_fleet: Fleet
) -> None:
    balancer, service = web_fleet.nodes[0], web_fleet.services[0]
    faces = [(Interface("eth0", addresses=(ip_interface(f"10.2.0.{n}/24"),)),) for n in (11, 12, 13, 1)]
    nodes = [replace(balancer, name=f"lb{n}", interfaces=face) for n, face in enumerate(faces[:3])]
    router = Node("r1", faces[3], role=Role.ROUTER, vip_routes=VipRoutes())
    fleet = replace(web_fleet, nodes=(*nodes, router), services=(service,))

    def planned() -> Plan:
        desired = compile_node(node_view(fleet, "r1", kernel))
        return plan(desired, read_live(kernel, desired.resources))

    def bring() -> None:
        apply(planned(), kernel).raise_if_failed()
        assert planned().changes == ()
        assert {*ways()} == {hop.address for hop in HOPS}

    bring()  # what the fixture made is in no manifest, and goes
    assert len(kernel.hop_groups()) == 1 and len(kernel.routes()) == 1
    other = replace(service, name="other", vips=(ip_address("20.20.20.2"),))
    fleet = replace(fleet, services=(service, other))
    bring()
    assert len(kernel.routes()) == 2
    fleet = replace(fleet, services=(service,))
    bring()  # one VIP goes, and its group stays
    assert [route.to for route in kernel.routes()] == ["20.20.20.1/32"]
    ip("link set eth0 down", "link set eth0 up")
    assert kernel.routes() == []
    bring()
