# SPDX-License-Identifier: Apache-2.0
"""What others put in the place of ours blocks a plan, and is taken over where that is asked for."""

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import AttachedProgram
from reconciler.kinds.hop_group import HopGroup
from reconciler.live import read_live
from reconciler.model import Interface, Node, Role, VipRoutes
from reconciler.plan import plan
from reconciler.resource import Key
from reconciler.view import view
from tests.strategies import fake_source


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def planned(kernel, fleet, name=None):
    desired = compile_node(view(fleet, name, ""))
    return plan(desired, read_live(kernel, desired.resources))


def test_a_program_on_an_interface(web_fleet):
    kernel = FakeKernel(foreign_programs={
        "front": AttachedProgram("front", "native", 77, "stranger", "program 'stranger', id 77", is_loaded=False)
    })  # fmt: skip
    key = Key("xdp", "front")
    assert planned(kernel, web_fleet).blocked[key].startswith("in the way: program 'stranger'")
    kernel.adopts = True
    assert planned(kernel, web_fleet).blocked == {}
    apply(planned(kernel, web_fleet), kernel).raise_if_failed()
    assert kernel.attached["front"].name == kernel.program.name
    kernel.adopts = False
    assert planned(kernel, web_fleet).changes == ()


def test_a_group_of_next_hops(web_fleet):
    (node,) = web_fleet.nodes
    balancer = replace(node, interfaces=(Interface("front", addresses=(ip_interface("10.1.0.1/24"),)),))
    face = Interface("front", addresses=(ip_interface("10.1.0.254/24"),))
    router = Node("r", (face,), role=Role.ROUTER, vip_routes=VipRoutes())
    fleet = replace(web_fleet, nodes=(balancer, router))
    kernel = FakeKernel()
    (group,) = (r for r in planned(kernel, fleet, "r").desired.resources.values() if isinstance(r, HopGroup))
    kernel.others_groups[group.number] = "next hop 7, protocol number 4"
    found = planned(kernel, fleet, "r")
    assert found.blocked == {group.key: "in the way: next hop 7, protocol number 4, which is not lbctl's"}
    assert [str(held.waits_for) for held in found.held] == [str(group.key)]
    kernel.adopts = True
    apply(planned(kernel, fleet, "r"), kernel).raise_if_failed()
    assert list(kernel.held_groups) == [group.number]
    kernel.adopts = False
    assert planned(kernel, fleet, "r").changes == ()
