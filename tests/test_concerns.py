# SPDX-License-Identifier: Apache-2.0
"""What people are warned of, where, and how often; and a mode of XDP that works where nobody said one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.apply import apply
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import Firewall, Neighbour
from reconciler.live import read_live
from reconciler.model import Algorithm, Endpoint, Fleet, Interface, Mode, Node, Role, XdpMode
from reconciler.plan import plan
from reconciler.reconcile import desired_of, plan_node
from reconciler.render.markdown import plan_markdown
from reconciler.render.style import Style
from reconciler.render.text import plan_text
from reconciler.resource import Desired, Key
from reconciler.safe import prose
from reconciler.snapshot import plan_from_json, plan_to_json
from reconciler.target import Target


def with_faces(fleet, *faces):
    return replace(fleet, nodes=(replace(fleet.nodes[0], interfaces=faces),))


def modes(desired: Desired) -> dict[str, str]:
    return {key.id: r.mode for key, r in desired.resources.items() if key.kind == "xdp"}


@pytest.fixture
def lossy() -> FakeKernel:
    """A node whose front is a veth that loses what native XDP sends, and whose back is one that does not."""
    return FakeKernel(veths={"front": False, "back": True}, others_hops={Neighbour("10.1.0.254", "front")})


def test_where_nobody_said_a_mode_a_veth_gets_one_that_works(web_fleet, lossy):
    assert modes(desired_of(web_fleet, None, lossy)) == {"front": "generic", "back": "native"}
    assert modes(desired_of(web_fleet, None, FakeKernel())) == {"front": "native", "back": "native"}
    assert modes(desired_of(web_fleet, None)) == {"front": "native", "back": "native"}
    assert plan_node_of(web_fleet, lossy).concerns == ()


def test_a_snapshot_tells_the_mode_that_the_node_has_where_nobody_said_one(web_fleet, lossy):
    made = read_live_after(web_fleet, lossy)
    desired = desired_of(web_fleet, None, made)
    assert modes(desired) == {"front": "generic", "back": "native"}
    assert plan(desired, made).changes == ()


def test_what_was_said_is_obeyed_with_a_warning(web_fleet, lossy, tmp_path):
    fleet = with_faces(web_fleet, Interface("front", XdpMode.NATIVE), Interface("back", XdpMode.NATIVE))
    planned = plan_node_of(fleet, lossy)
    assert modes(planned.desired) == {"front": "native", "back": "native"}
    (concern,) = planned.concerns
    assert concern.key == Key("xdp", "front")
    assert "veth" in concern.text and "xdp: generic" in concern.hint
    text = plan_text(planned, Style())
    assert concern.text in text and concern.hint in text
    assert prose(f"{concern.text}. {concern.hint}") in plan_markdown(planned, "lb1")
    assert plan_text(planned, Style()).splitlines()[-1].startswith("Plan: ")
    data = json.loads(json.dumps(plan_to_json(planned, Target("lb1"))))
    assert data["warnings"] == [{"address": "xdp front", "text": concern.text, "hint": concern.hint}]
    assert plan_from_json(data).changes == planned.changes
    idle = replace(planned, changes=())
    assert concern.text in plan_text(idle, Style()) and "No changes." in plan_text(idle, Style())
    assert prose(concern.text) in plan_markdown(idle, "lb1")


def test_a_program_that_sends_nothing_may_be_native_anywhere(web_fleet):
    """That of an endpoint only takes packets out of tunnels."""
    endpoint = web_fleet.pools[0].endpoints[0].address
    faces = (Interface("front", XdpMode.NATIVE), Interface("back"))
    node = Node("server", faces, role=Role.ENDPOINT, address=endpoint)
    service = replace(web_fleet.services[0], mode=Mode.DSR_L3, algorithm=Algorithm.MAGLEV)
    pool = replace(web_fleet.pools[0], endpoints=(Endpoint(endpoint),))
    kernel = FakeKernel(veths={"front": False, "back": False}, tunnel_forms=frozenset())
    planned = plan_node_of(Fleet((service,), (pool,), (node,)), kernel)
    assert modes(planned.desired) == {"front": "native", "back": "native"}
    assert planned.concerns == ()


def test_a_question_that_fails_stops_nothing(web_fleet, lossy):
    def refuse(interfaces):
        raise KernelError("no")

    fleet = with_faces(web_fleet, Interface("front", XdpMode.NATIVE))
    desired = desired_of(fleet, None, lossy)
    lossy.far_ends = refuse
    planned = plan_node_with(desired, lossy)
    assert planned.changes and planned.concerns == ()


def plan_node_with(desired, kernel):
    return plan_node(desired, kernel, Path("/nonexistent"))


def plan_node_of(fleet, kernel):
    return plan_node_with(desired_of(fleet, None, kernel), kernel)


def read_live_after(fleet, kernel):
    """As `export DIRECTORY` reads it: settings and offloads that were right before are known from the manifests."""
    planned = plan_node_of(fleet, kernel)
    apply(planned, kernel).raise_if_failed()
    return read_live(kernel, planned.desired.resources)


def test_a_firewall_is_told_of_for_the_interfaces_that_it_stands_in_front_of(web_fleet):
    kernel = FakeKernel(walls=[
        Firewall("nft ip filter FORWARD", (4,), ("front", "back", "side"), "nft insert rule ip filter {} accept"),
        Firewall("nft ip6 filter FORWARD", (6,), ("front",), "…"),
        Firewall("iptables FORWARD", (4,), (), "…"),
    ])  # fmt: skip
    (concern,) = plan_node_of(web_fleet, kernel).concerns
    assert concern.key == Key("firewall", "nft ip filter FORWARD")
    assert "no rule names front, back:" in concern.text
    assert concern.hint.endswith(": nft insert rule ip filter front accept; nft insert rule ip filter back accept")


def test_an_interface_that_is_down_or_a_port_of_another_is_told_of(web_fleet):
    names = ("front", "back", "side", "bond0")
    kernel = FakeKernel(interfaces=names, down={"front", "side"}, masters={"back": "bond0"})
    back, front = plan_node_of(web_fleet, kernel).concerns
    assert (front.key, front.hint) == (Key("xdp", "front"), "ip link set front up")
    assert back.key == Key("xdp", "back")
    assert back.text.startswith("back is a port of bond0:")
    assert back.hint == "name bond0 in the manifests in place of its ports"


def test_a_vip_in_service_that_becomes_an_address_of_the_node_is_told(web_fleet, tmp_path):
    kernel = FakeKernel()
    apply(plan_node_of(web_fleet, kernel), kernel).raise_if_failed()
    kernel.foreign_vips["20.20.20.1"] = "address on eth0"
    planned = plan_node_of(web_fleet, kernel)
    assert planned.changes == () and not planned.blocked
    (concern,) = planned.concerns
    assert concern.key == Key("loopback", "20.20.20.1")
    assert "address on eth0" in concern.text and "ssh" in concern.text
    kernel.vips.clear()
    assert plan_node_of(web_fleet, kernel).concerns == (), "what blocks is said once"
