# SPDX-License-Identifier: Apache-2.0
"""VIPs inside a network of the balancer: answered for, and announced when they come."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from reconciler.kernel import objects
from reconciler.kernel.fake import FakeKernel
from reconciler.model import Algorithm, Endpoint, Interface, Mode, Role
from reconciler.reconcile import carry_out, desired_of, plan_node
from tests.strategies import fake_source

NEAR, NEAR6, FAR6 = "10.1.0.100", "2001:db8:1::100", "2001:db8:20::1"
PROXY = objects.Neighbour(NEAR6, "front")


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def kernel():
    made = FakeKernel()
    for setting in ("forwarding", "disable_ipv6", "proxy_ndp"):
        made.sysctls |= {f"net/ipv6/conf/{name}/{setting}": "0" for name in ("lo", "front", "back")}
    return made


def at(fleet, *vips, role=Role.BALANCER):
    (service,), (pool,), (node,) = fleet.services, fleet.pools, fleet.nodes
    front = tuple(ip_interface(text) for text in ("10.1.0.1/24", "2001:db8:1::1/64", "2001:db8:3::1/64"))
    faces = (Interface("front", addresses=front), Interface("back", addresses=(ip_interface("10.2.0.9/24"),)))
    endpoint = Endpoint(ip_address("10.2.0.9" if role is Role.ENDPOINT else "10.2.0.1"))
    endpoint6 = replace(endpoint, address=ip_address("2001:db8:1::1" if role is Role.ENDPOINT else "2001:db8:3::11"))
    members = (endpoint6,) if any(":" in vip for vip in vips) else (endpoint,)
    service = replace(service, vips=tuple(map(ip_address, vips)), mode=Mode.DSR_L2, algorithm=Algorithm.MAGLEV)
    return replace(
        fleet, services=(service,), pools=(replace(pool, endpoints=members),),
        nodes=(replace(node, interfaces=faces, role=role),),
    )  # fmt: skip


def bring(kernel, fleet, directory):
    desired = desired_of(fleet, None, kernel)
    result = carry_out(plan_node(desired, kernel, directory), kernel, directory, lambda change, error: None)
    result.raise_if_failed()
    assert plan_node(desired, kernel, directory).changes == ()
    return [write for write in kernel.writes if write[0] in ("add_vip", "add_proxy", "remove_proxy", "remove_vip")]


def test_a_balancer_answers_for_ipv6_vips_in_its_networks(web_fleet, kernel, tmp_path):
    writes = bring(kernel, at(web_fleet, NEAR6, FAR6), tmp_path)
    assert [name for name, _ in writes] == ["add_vip", "add_vip", "add_proxy"]
    assert kernel.proxies == {PROXY}
    assert kernel.sysctls["net/ipv6/conf/front/proxy_ndp"] == "1"
    assert kernel.sysctls["net/ipv6/conf/back/proxy_ndp"] == "0"
    kernel.writes.clear()
    assert [name for name, _ in bring(kernel, at(web_fleet, FAR6), tmp_path)] == ["remove_proxy", "remove_vip"]
    assert kernel.sysctls["net/ipv6/conf/front/proxy_ndp"] == "0"


def test_what_others_answer_for_is_left_to_them(web_fleet, kernel, tmp_path):
    kernel.others_proxies = {PROXY, objects.Neighbour("2001:db8:1::7", "front")}
    bring(kernel, at(web_fleet, NEAR6), tmp_path)
    bring(kernel, at(web_fleet, FAR6), tmp_path)
    assert kernel.proxies == set()
    assert len(kernel.others_proxies) == 2


@pytest.mark.parametrize("vip", [NEAR, NEAR6])
def test_vips_are_announced_when_they_come_and_not_again(web_fleet, kernel, tmp_path, vip):
    bring(kernel, at(web_fleet, vip), tmp_path)
    bring(kernel, at(web_fleet, vip), tmp_path)
    assert kernel.announced == [[vip]]
    kernel.vips.clear()  # lost and mended
    bring(kernel, at(web_fleet, vip), tmp_path)
    assert kernel.announced == [[vip]] * 2


def test_a_vip_that_does_not_work_is_not_announced(web_fleet, kernel, tmp_path):
    kernel.foreign_vips[NEAR] = "address on front"
    desired = desired_of(at(web_fleet, NEAR), None, kernel)
    carry_out(plan_node(desired, kernel, tmp_path), kernel, tmp_path, lambda change, error: None)
    assert kernel.announced == []


@pytest.mark.parametrize("vip", [NEAR, NEAR6])
def test_an_endpoint_never_speaks_for_a_vip(web_fleet, kernel, tmp_path, vip):
    fleet = at(web_fleet, vip, role=Role.ENDPOINT)
    assert [name for name, _ in bring(kernel, fleet, tmp_path)] == ["add_vip"]
    assert kernel.announced == []
    assert kernel.proxies == set()
