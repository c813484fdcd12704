# SPDX-License-Identifier: Apache-2.0
"""A router's own routes to VIPs: by groups of the balancers that carry them, as far as those answer."""

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.concerns import concerns_of
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import Neighbour, Route
from reconciler.live import read_live
from reconciler.model import Node, Role, VipRoutes
from reconciler.plan import plan
from reconciler.reconcile import node_view
from reconciler.resource import Desired, Key, Live
from reconciler.snapshot import plan_from_json, plan_to_json
from reconciler.target import Target

from .test_routing import face


@pytest.fixture
def site(web_fleet):
    """Two balancers and a router in 10.1.0.0/24; the service `web` runs on both, another one on lb2 alone."""
    (node,), (service,) = web_fleet.nodes, web_fleet.services
    balancers = [
        replace(node, name=f"lb{n}", interfaces=(face("front", f"10.1.0.{n}/24"), face("back", f"10.2.0.{n}/24")),
                labels=(("number", str(n)),))
        for n in (1, 2)
    ]  # fmt: skip
    router = Node("r1", (face("front", "10.1.0.254/24"),), role=Role.ROUTER, vip_routes=VipRoutes(64, 30))
    other = replace(service, name="other", vips=(ip_address("20.20.20.2"),), node_selector=(("number", "2"),))
    return replace(web_fleet, nodes=(*balancers, router), services=(service, other))


def plan_for(fleet, kernel):
    desired = compile_node(node_view(fleet, "r1", kernel))
    return plan(desired, read_live(kernel, desired.resources))


def bring(fleet, kernel):
    planned = plan_for(fleet, kernel)
    apply(planned, kernel).raise_if_failed()
    assert plan_for(fleet, kernel).changes == ()
    return planned


def concerns(fleet, kernel):
    return concerns_of(kernel, compile_node(node_view(fleet, "r1", kernel)))


def hops(kernel):
    """VIP → the addresses that its route leads to."""
    groups = {group.number: sorted(hop.address for hop in group.hops) for group in kernel.hop_groups()}
    return {route.to: groups[route.group] for route in kernel.routes()}


BOTH = {"20.20.20.1/32": ["10.1.0.1", "10.1.0.2"], "20.20.20.2/32": ["10.1.0.2"]}


def test_each_vip_goes_to_the_balancers_that_carry_it(site):
    kernel = FakeKernel()
    bring(site, kernel)
    assert hops(kernel) == BOTH
    assert {(group.buckets, group.idle_s) for group in kernel.hop_groups()} == {(64, 30)}
    names = [name for name, _ in kernel.writes]
    assert names.index("put_hop_group") < names.index("add_route")  # a route needs its group
    assert kernel.sysctls["net/ipv4/fib_multipath_hash_policy"] == "1"
    kept, _ = kernel.neighbours()
    assert Neighbour("10.1.0.1", "front") in kept  # so that its silence is noticed


def test_a_balancer_that_goes_is_a_change_of_the_group_alone(site):
    kernel = FakeKernel()
    bring(site, kernel)
    without = replace(site, nodes=tuple(replace(n, labels=(("number", "9"),)) if n.name == "lb1" else n
                                        for n in site.nodes if n.name != "lb1"))  # fmt: skip
    planned = bring(without, kernel)
    assert {change.key.kind for change in planned.changes} == {"hop-group", "neighbour"}
    assert hops(kernel) == {vip: ["10.1.0.2"] for vip in BOTH}


def test_one_that_does_not_answer_is_left_out_until_it_does_and_named(site):
    kernel = FakeKernel()
    bring(site, kernel)
    kernel.mute = {"10.1.0.1"}
    bring(site, kernel)
    assert hops(kernel)["20.20.20.1/32"] == ["10.1.0.2"]
    (concern,) = concerns(site, kernel)
    assert concern.text == "no VIP goes to lb1 (10.1.0.1), which does not answer on its network"
    kernel.mute = {"10.1.0.1", "10.1.0.2"}  # then it is the router that is at fault
    bring(site, kernel)
    assert hops(kernel) == BOTH
    kernel.mute = set()
    bring(site, kernel)
    assert concerns(site, kernel) == ()
    assert hops(kernel) == BOTH


def test_another_number_of_buckets_is_another_group_and_routes_move_first(site):
    kernel = FakeKernel()
    bring(site, kernel)
    nodes = tuple(replace(n, vip_routes=n.vip_routes and VipRoutes(128, 30)) for n in site.nodes)
    kernel.writes.clear()
    bring(replace(site, nodes=nodes), kernel)
    names = [name for name, _ in kernel.writes]
    assert names[-1] == "remove_hop_group" and "remove_route" not in names
    assert hops(kernel) == BOTH


def test_kernels_without_resilient_groups_get_plain_ones_and_are_named(site):
    kernel = FakeKernel(knows_resilient=False)
    bring(site, kernel)
    assert hops(kernel) == BOTH
    assert [concern.text.partition(":")[0] for concern in concerns(site, kernel)] == [
        "this kernel has no resilient groups of next hops"
    ]


def test_all_of_it_goes(site):
    kernel = FakeKernel()
    bring(site, kernel)
    empty = Desired()
    kernel.held_routes["10.9.0.0/16"] = Route("10.9.0.0/16", "10.1.0.9", "front")
    apply(plan(empty, read_live(kernel, {})), kernel).raise_if_failed()
    assert kernel.hop_groups() == [] and not any(route.group for route in kernel.routes())


def test_resources_of_a_saved_plan_are_checked(site):
    resources = compile_node(node_view(site, "r1")).resources
    group = resources[Key("hop-group", "ipv4 all")]
    assert group.flaw == "" and replace(group, hops=(("x", "front"),)).flaw and replace(group, buckets=0).flaw
    assert all(r.flaw == "" for r in resources.values())


def test_a_saved_plan_of_a_router_comes_back_from_its_file(site):
    desired = compile_node(node_view(site, "r1"))
    planned = plan(desired, Live())
    back = plan_from_json(json.loads(json.dumps(plan_to_json(planned, Target("r1", "default", "")))))
    assert (back.changes, back.desired.resources) == (planned.changes, desired.resources)
