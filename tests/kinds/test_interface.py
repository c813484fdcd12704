# SPDX-License-Identifier: Apache-2.0
"""What the node must have by itself: what it lacks is said by the plan, and holds back what stands on it."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_interface

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.errors import BlockedError
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.interface import THIS_NODE
from reconciler.live import read_live
from reconciler.model import Endpoint, Interface, Mode
from reconciler.plan import plan
from reconciler.resource import Key
from reconciler.snapshot import live_from_json, live_to_json
from reconciler.view import view
from tests.strategies import fake_source


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def planned(kernel, fleet):
    desired = compile_node(view(fleet, None, "host"))
    return plan(desired, read_live(kernel, desired.resources))


def with_interfaces(fleet, *interfaces):
    return replace(fleet, nodes=(replace(fleet.nodes[0], interfaces=interfaces),))


def test_a_missing_interface_is_named_with_those_that_there_are_and_nothing_is_written(web_fleet):
    kernel = FakeKernel()
    found = planned(kernel, with_interfaces(web_fleet, Interface("front"), Interface("bakc")))
    assert found.blocked == {Key("interface", "bakc"): "there is no interface bakc; there are: back, front"}
    assert found.changes == ()
    result = apply(found, kernel)
    assert kernel.writes == []
    assert result.skipped[Key("xdp", "bakc")] == "waits for interface bakc"
    with pytest.raises(BlockedError, match="there is no interface bakc") as caught:
        result.raise_if_failed()
    assert caught.value.exit_code == 6


def test_an_interface_mistyped_on_a_node_that_works_takes_nothing_off_it_and_stops_no_edit(web_fleet):
    kernel = FakeKernel()
    apply(planned(kernel, web_fleet), kernel).raise_if_failed()
    kernel.writes.clear()
    pool = web_fleet.pools[0]
    other = replace(pool, endpoints=(pool.endpoints[0], Endpoint(IPv4Address("10.2.0.9"))))
    typo = with_interfaces(replace(web_fleet, pools=(other,)), Interface("front"), Interface("bakc"))
    result = apply(planned(kernel, typo), kernel)
    assert set(kernel.attached) == {"front", "back"}
    assert {change.key.kind for change in result.done} == {"endpoint", "ring"}
    assert result.skipped[Key("xdp", "back")] == "kept until there is interface bakc"
    apply(planned(kernel, with_interfaces(web_fleet, Interface("front"))), kernel).raise_if_failed()
    assert set(kernel.attached) == {"front"}


def two_services(fleet):
    other = replace(fleet.services[0], name="api", vips=(IPv4Address("20.20.20.2"),))
    return replace(fleet, services=(*fleet.services, other))


def vips_of(kernel):
    return sorted(vip.address for vip in kernel.vips)


def test_a_service_that_nobody_wants_any_more_goes_though_an_interface_is_lost(web_fleet):
    kernel = FakeKernel()
    apply(planned(kernel, two_services(web_fleet)), kernel).raise_if_failed()
    typo = with_interfaces(web_fleet, Interface("front"), Interface("bakc"))
    result = apply(planned(kernel, typo), kernel)
    assert vips_of(kernel) == ["20.20.20.1"]
    assert {key.kind for key in result.skipped} <= {"xdp", "sysctl"}


def test_a_service_that_moves_while_an_interface_is_lost_stays_where_it_was_with_all_that_it_stands_on(web_fleet):
    kernel = FakeKernel()
    apply(planned(kernel, two_services(web_fleet)), kernel).raise_if_failed()
    moved = replace(web_fleet.services[0], vips=(IPv4Address("20.20.20.7"),))
    fleet = replace(two_services(web_fleet), services=(moved,))
    result = apply(planned(kernel, with_interfaces(fleet, Interface("front"), Interface("bakc"))), kernel)
    assert vips_of(kernel) == ["20.20.20.1", "20.20.20.2"]
    assert result.done == []


def test_another_machine_keeps_the_services_too_that_the_manifests_mean_for_none(web_fleet):
    kernel = FakeKernel()
    apply(planned(kernel, two_services(web_fleet)), kernel).raise_if_failed()
    result = apply(planned(kernel, with_interfaces(web_fleet, Interface("eno1"))), kernel)
    assert vips_of(kernel) == ["20.20.20.1", "20.20.20.2"]
    assert result.done == []


def test_of_several_declared_addresses_one_that_is_missing_is_said_and_the_rest_goes_on(web_fleet):
    face = Interface("front", addresses=(ip_interface("10.1.0.1/24"), ip_interface("10.9.0.1/24")))
    kernel = FakeKernel(lacks={("front", "10.9.0.1/24"): "front has 10.1.0.1/24"})
    found = planned(kernel, with_interfaces(web_fleet, face))
    assert found.blocked == {Key("interface", "front 10.9.0.1/24"): "it isn't there: front has 10.1.0.1/24"}
    apply(found, kernel)
    assert kernel.vips


def test_the_part_of_another_machine_is_recognized_and_nothing_is_done_or_removed(web_fleet):
    here = Interface("front", addresses=(ip_interface("10.1.0.1/24"),))
    kernel = FakeKernel()
    apply(planned(kernel, with_interfaces(web_fleet, here, Interface("back"))), kernel).raise_if_failed()
    kernel.writes.clear()
    kernel.lacks = {("front", "10.1.0.2/24"): "front has 10.1.0.1/24", ("(any)", "10.1.0.2"): "no interface has it"}
    there = Interface("front", addresses=(ip_interface("10.1.0.2/24"),))
    found = planned(kernel, with_interfaces(replace(web_fleet, services=web_fleet.services), there))
    assert "is --node the right one?" in found.blocked[THIS_NODE]
    assert found.changes == ()
    assert {held.change.key.id for held in found.held} >= {"back", "net/ipv4/conf/back/rp_filter"}
    apply(found, kernel)
    assert kernel.writes == []


def test_where_no_addresses_are_declared_the_interfaces_tell_the_machine(web_fleet):
    found = planned(FakeKernel(), with_interfaces(web_fleet, Interface("ens3"), Interface("ens4")))
    assert "interfaces (ens3, ens4)" in found.blocked[THIS_NODE]


@pytest.mark.parametrize(("declared", "is_blocked"), [(1500, False), (9000, True), (8000, False)])
def test_an_mtu_that_is_declared_must_be_there(web_fleet, monkeypatch, declared, is_blocked):
    kernel = FakeKernel()
    links = [replace(link, mtu_bytes=8000) for link in kernel.links()]
    monkeypatch.setattr(kernel, "links", lambda: links)
    found = planned(kernel, with_interfaces(web_fleet, Interface("front", mtu_bytes=declared), Interface("back")))
    assert (Key("interface", f"front mtu {declared}") in found.blocked) == is_blocked


def test_where_packets_get_longer_by_a_tunnel_the_usual_mtu_must_be_there_too(web_fleet, monkeypatch):
    kernel = FakeKernel()
    links = [replace(link, mtu_bytes=1400) for link in kernel.links()]
    monkeypatch.setattr(kernel, "links", lambda: links)
    face = Interface("front", addresses=(ip_interface("10.1.0.1/24"),))
    assert planned(kernel, with_interfaces(web_fleet, face)).blocked == {}
    pool = replace(web_fleet.pools[0], endpoints=(Endpoint(IPv4Address("10.2.0.1")),))
    service = replace(web_fleet.services[0], mode=Mode.DSR_L3)
    found = planned(kernel, with_interfaces(replace(web_fleet, pools=(pool,), services=(service,)), face))
    assert "front takes packets of 1,400 bytes at most" in found.blocked[Key("interface", "front mtu 1500")]


def test_a_vlan_must_be_one_of_its_trunk(web_fleet):
    fleet = with_interfaces(web_fleet, Interface("back"), Interface("front.7", trunk="front"), Interface("front"))
    key = Key("interface", "front.7 vlan of front")
    kernel = FakeKernel(vlans={"front.7": ("back", 7)})
    assert "front.7 is no VLAN of front: ip link add link front" in planned(kernel, fleet).blocked[key]
    assert planned(FakeKernel(vlans={"front.7": ("front", 7)}), fleet).blocked == {}


def test_a_setting_that_the_kernel_has_not_is_said_beforehand(web_fleet):
    kernel = FakeKernel()
    name = "net/ipv4/conf/all/send_redirects"
    del kernel.sysctls[name]
    found = planned(kernel, web_fleet)
    assert found.blocked == {Key("sysctl", name): f"the kernel has no setting {name}"}
    assert found.changes == ()


def test_a_snapshot_carries_what_the_node_lacks(web_fleet):
    desired = compile_node(view(with_interfaces(web_fleet, Interface("front"), Interface("bakc")), None, "host"))
    live = live_from_json(live_to_json(read_live(FakeKernel(), desired.resources)))
    assert list(plan(desired, live).blocked) == [Key("interface", "bakc")]
