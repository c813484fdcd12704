# SPDX-License-Identifier: Apache-2.0
"""Interfaces for VLANs whose tag is declared are made before all that stands on them, and go after it."""

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.interface import THIS_NODE
from reconciler.kinds.vlan_link import VlanLink
from reconciler.live import read_live
from reconciler.model import Interface, Role
from reconciler.plan import plan
from reconciler.resource import Desired, Key
from reconciler.view import view
from tests.strategies import fake_source

OWN = "10.1.0.1/24"
TRUNK = Interface("front")
CLIENTS = Interface("front.100", trunk="front", tag=100, addresses=(ip_interface(OWN),))
LINK, FACE = Key("vlan-link", "front.100"), Key("interface", "front.100")


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def fleet(web_fleet):
    (node,) = web_fleet.nodes
    return replace(web_fleet, nodes=(replace(node, interfaces=(TRUNK, CLIENTS)),))


@pytest.fixture
def kernel():
    """A machine without the VLAN, and so without its address."""
    return FakeKernel(lacks={
        ("front.100", OWN): "front.100 has no address of this family", ("(any)", "10.1.0.1"): "no interface has it",
    })  # fmt: skip


def with_tag(fleet, tag):
    (node,) = fleet.nodes
    return replace(fleet, nodes=(replace(node, interfaces=(TRUNK, replace(CLIENTS, tag=tag))),))


def planned(kernel, fleet):
    desired = compile_node(view(fleet, None, "")) if fleet else Desired()
    return plan(desired, read_live(kernel, desired.resources))


def bring(kernel, fleet):
    """What is written, in order."""
    kernel.writes.clear()
    apply(planned(kernel, fleet), kernel).raise_if_failed()
    left = planned(kernel, fleet)
    assert (left.changes, left.blocked) == ((), {})
    return [(name, what) for name, what in kernel.writes if name.endswith(("vlan_link", "sysctl", "vip"))]


def test_a_missing_vlan_is_made_first_and_what_was_made_goes_last(fleet, kernel):
    came = bring(kernel, fleet)
    assert came[0] == ("add_vlan_link", "front.100")
    assert ("write_sysctl", "net/ipv4/conf/front.100/forwarding") in came
    (held,) = kernel.own_vlans.values()
    assert (held.trunk, held.tag, held.addresses) == ("front", 100, (OWN,))
    kernel.own_vlans["front.100"] = replace(held, addresses=(OWN, "10.8.0.1/24"))  # somebody adds another one
    assert planned(kernel, fleet).changes == ()
    gone = bring(kernel, None)
    assert gone[-1] == ("remove_vlan_link", "front.100")
    assert kernel.vlans == {}


@pytest.mark.parametrize("role", Role)
def test_whoever_has_interfaces_has_their_vlans(fleet, role):
    (node,) = fleet.nodes
    for services in (fleet.services, ()):
        changed = replace(fleet, services=services, nodes=(replace(node, role=role),))
        wanted = compile_node(view(changed, None, "")).resources
        assert (LINK in wanted) is (FACE in wanted)
        assert all(need in wanted for key in wanted.keys() & {LINK, FACE} for need in wanted[key].needs)


def test_without_a_tag_it_has_to_be_there(fleet, kernel):
    assert FACE in planned(kernel, with_tag(fleet, None)).blocked


def test_one_of_another_tag_has_to_go_first_since_its_settings_go_with_it(fleet, kernel):
    bring(kernel, fleet)
    found = planned(kernel, with_tag(fleet, 200))
    assert found.blocked[LINK] == "front.100 is VLAN 100 of front: ip link del front.100"
    kernel.remove_vlan_link("front.100")
    kernel.vlans["front.7"] = ("front", 7)  # interfaces have numbers that none had before
    came = bring(kernel, with_tag(fleet, 200))
    assert ("write_sysctl", "net/ipv4/conf/front.100/forwarding") in came
    assert kernel.own_vlans["front.100"].tag == 200


@pytest.mark.parametrize("damage", ["gone", "down", "address"])
def test_what_somebody_changed_is_mended(fleet, kernel, damage):
    bring(kernel, fleet)
    held = kernel.own_vlans["front.100"]
    match damage:
        case "gone":
            kernel.remove_vlan_link("front.100")
            kernel.vlans["front.7"] = ("front", 7)  # interfaces have numbers that none had before
        case "down":
            kernel.own_vlans["front.100"] = replace(held, is_up=False)
        case "address":
            kernel.own_vlans["front.100"] = replace(held, addresses=())
    assert bring(kernel, fleet)[0] == ("add_vlan_link", "front.100")
    assert kernel.own_vlans["front.100"] == held


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (("front", 200), "front.100 is there as VLAN 200 of front, and not lbctl's"),
        (("back", 100), "front.100 is there as VLAN 100 of back, and not lbctl's"),
    ],
)
def test_somebody_elses_interface_must_be_this_vlan(fleet, kernel, held, said):
    kernel.vlans["front.100"] = held
    assert planned(kernel, fleet).blocked[LINK] == said


def test_somebody_elses_interface_stays_his(fleet):
    kernel = FakeKernel(vlans={"front.100": ("front", 100)})
    assert "add_vlan_link" not in dict(bring(kernel, fleet))
    bring(kernel, None)
    assert kernel.vlans == {"front.100": ("front", 100)}


def test_a_trunk_that_is_not_there_is_said_first(fleet, kernel):
    (node,) = fleet.nodes
    lost = replace(fleet, nodes=(replace(node, interfaces=(TRUNK, replace(CLIENTS, trunk="fornt"))),))
    assert any("there is no interface fornt" in text for text in planned(kernel, lost).blocked.values())


def test_another_machine_gets_no_vlan(fleet):
    kernel = FakeKernel(interfaces=("eth7",))
    found = planned(kernel, fleet)
    assert THIS_NODE in found.blocked
    apply(found, kernel)
    assert kernel.vlans == {}


def test_a_failure_takes_all_back(fleet, kernel, monkeypatch):
    monkeypatch.setattr(kernel, "add_local_vips", lambda vips: [OSError("refused") for _ in vips])
    before = dict(kernel.sysctls)
    result = apply(planned(kernel, fleet), kernel)
    assert result.failed
    assert (kernel.vlans, kernel.sysctls, kernel.former) == ({}, before, {})


def test_it_comes_back_from_a_saved_plan_and_nothing_strange_does(fleet, kernel):
    found = planned(kernel, fleet)
    (link,) = (r for r in found.desired.resources.values() if isinstance(r, VlanLink))
    assert link.flaw == ""
    for changed in ({"tag": 0}, {"tag": 4095}, {"mtu_bytes": 1}, {"addresses": ("10.1.0.1/99",)}, {"trunk": "a b"}):
        assert replace(link, **changed).flaw
