# SPDX-License-Identifier: Apache-2.0
"""Rows of VLANs say what the kernel says about interfaces, also when that changes."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.dataplane.layout import TRUNKS, VLANS
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.attachment import Attachment
from reconciler.kinds.vlan import Vlan
from reconciler.live import read_live
from reconciler.model import Interface
from reconciler.plan import plan
from reconciler.view import view
from tests.strategies import fake_source

TRUNK = Interface("front")
CLIENTS = Interface("front.100", trunk="front", addresses=(ip_interface("10.1.0.1/24"),))
SERVERS = Interface("front.200", trunk="front", gateway=ip_address("10.2.0.254"))


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def kernel():
    return FakeKernel(vlans={"front.100": ("front", 100), "front.200": ("front", 200), "other.7": ("back", 7)})


def on(fleet, *interfaces):
    (node,) = fleet.nodes
    return replace(fleet, nodes=(replace(node, interfaces=interfaces),))


def planned(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    return plan(desired, read_live(kernel, desired.resources))


def bring(kernel, fleet):
    result = apply(planned(kernel, fleet), kernel)
    result.raise_if_failed()
    assert planned(kernel, fleet).changes == ()
    return {(v.interface, v.trunk, v.tag) for v in read_live(kernel).resources.values() if isinstance(v, Vlan)}


def tags(kernel):
    return sorted(int.from_bytes(key[4:6], "little") for key in kernel.maps[VLANS.name])


def test_vlans_come_and_go_with_the_tags_that_the_kernel_has(web_fleet, kernel):
    both = on(web_fleet, TRUNK, CLIENTS, SERVERS)
    assert bring(kernel, both) == {("front.100", "front", 100), ("front.200", "front", 200)}
    assert tags(kernel) == [100, 200]
    assert bring(kernel, on(web_fleet, TRUNK, SERVERS)) == {("front.200", "front", 200)}
    assert tags(kernel) == [200]
    assert bring(kernel, on(web_fleet, TRUNK)) == set()
    assert not kernel.maps[VLANS.name]
    assert not kernel.maps[TRUNKS.name]


def test_a_vlan_that_gets_another_tag_gets_other_rows(web_fleet, kernel):
    fleet = on(web_fleet, TRUNK, CLIENTS)
    bring(kernel, fleet)
    kernel.vlans["front.100"] = ("front", 101)
    (change,) = planned(kernel, fleet).changes
    assert change.before.describe() == {"trunk": "front", "tag": "100", "state": "differs from the interface"}
    assert bring(kernel, fleet) == {("front.100", "front", 101)}
    assert tags(kernel) == [101]


@pytest.mark.parametrize("lost", [VLANS.name, TRUNKS.name])
def test_lost_rows_are_written_again(web_fleet, kernel, lost):
    fleet = on(web_fleet, TRUNK, CLIENTS)
    bring(kernel, fleet)
    kernel.maps[lost].clear()
    assert bring(kernel, fleet) == {("front.100", "front", 100)}


def test_the_rows_of_an_interface_that_is_gone_are_removed(web_fleet, kernel):
    bring(kernel, on(web_fleet, TRUNK, CLIENTS, SERVERS))
    del kernel.vlans["front.200"]
    assert bring(kernel, on(web_fleet, TRUNK, CLIENTS)) == {("front.100", "front", 100)}
    assert tags(kernel) == [100]


@pytest.mark.parametrize(
    ("interface", "problem"),
    [
        (Interface("front.300", trunk="front"), "there is no interface front.300"),
        (Interface("other.7", trunk="front"), "other.7 is no VLAN of front"),
        (Interface("back", trunk="front"), "back is no VLAN of front"),
    ],
)
def test_what_is_no_vlan_of_its_trunk_is_refused(web_fleet, kernel, interface, problem):
    with pytest.raises(Exception, match=problem):
        bring(kernel, on(web_fleet, TRUNK, interface))
    assert not kernel.maps.get(TRUNKS.name)


def test_the_program_runs_on_the_trunk_alone(web_fleet):
    resources = compile_node(view(on(web_fleet, TRUNK, CLIENTS, SERVERS), None, "")).resources.values()
    assert [r.interface for r in resources if isinstance(r, Attachment)] == ["front"]
    assert "VLAN" in view(on(web_fleet, TRUNK, CLIENTS), None, "").features
    assert "VLAN" not in view(web_fleet, None, "").features
