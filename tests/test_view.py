# SPDX-License-Identifier: Apache-2.0
"""Which part of a fleet a node takes, and what services with several VIPs and ports become."""

import random
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.compile import compile_node
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.service_row import ServiceRow
from reconciler.kinds.sysctl import Sysctl
from reconciler.kinds.vip import VipRow
from reconciler.model import Affinity, Algorithm, Echo, IcmpRedirects, Interface, Mode, Node, Role, Undefined
from reconciler.view import renewed, view
from tests.strategies import fake_source, fleets
from tests.test_compile import mixed


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def labelled(name, role=Role.BALANCER, **labels):
    return Node(name, (Interface("front"),), role=role, labels=tuple(sorted(labels.items())))


def rows(desired, kind):
    return {row for row in desired.resources.values() if isinstance(row, kind)}


def test_a_balancer_takes_the_services_that_select_it_and_their_pools(two_services):
    red, blue = two_services.services  # of these, blue selects
    nodes = (labelled("lb1", site="north", tier="edge"), labelled("lb2", site="south"), labelled("lb3"))
    services = (red, replace(blue, node_selector=(("site", "north"), ("tier", "edge"))))
    fleet = replace(two_services, nodes=nodes, services=services)
    assert {n.name: set(view(fleet, n.name, "").pools) for n in nodes} == {
        "lb1": {red.pool, blue.pool}, "lb2": {red.pool}, "lb3": {red.pool},
    }  # fmt: skip
    assert view(fleet, "lb1", "").services == services
    assert view(fleet, "lb2", "").services == view(fleet, "lb3", "").services == (red,)


@pytest.mark.parametrize("role", [Role.ENDPOINT, Role.ROUTER])
def test_nodes_of_other_roles_carry_no_service(two_services, role):
    fleet = replace(two_services, nodes=(labelled("web1", role),))
    assert view(fleet, "web1", "").services == ()


def test_each_vip_has_a_row_for_each_port(web_fleet):
    vips, ports = (IPv4Address("20.20.20.1"), IPv4Address("20.20.20.2")), (80, 443, 8000)
    (service,) = web_fleet.services
    fleet = replace(web_fleet, services=(replace(service, vips=vips, ports=ports),))
    desired = compile_node(view(fleet, None, ""))
    assert {(row.vip, row.port) for row in rows(desired, ServiceRow)} == set(product(vips, ports))
    assert {row.address for row in rows(desired, VipRow)} == set(vips)
    loopback = {row.address: len(row.services) for row in rows(desired, LoopbackVip)}
    assert loopback == dict.fromkeys(vips, 3)


def test_redirects_are_turned_off_unless_they_are_wanted(web_fleet):
    def redirects(setting):
        (node,) = web_fleet.nodes
        desired = compile_node(view(replace(web_fleet, nodes=(replace(node, icmp_redirects=setting),)), None, ""))
        return {row.name: row.value for row in rows(desired, Sysctl) if row.name.endswith("/send_redirects")}

    assert redirects(IcmpRedirects.OFF) == {
        f"net/ipv4/conf/{name}/send_redirects": "0" for name in ("all", "front", "back")
    }
    assert redirects(IcmpRedirects.ON) == {}


def test_the_program_rejects_undefined_traffic_only_where_a_node_asks_for_it(web_fleet):
    (node,) = web_fleet.nodes
    asks = replace(web_fleet, nodes=(replace(node, undefined_traffic=Undefined.REJECT),))
    assert "REJECT" not in view(web_fleet, None, "host").features
    assert "REJECT" in view(asks, None, "host").features
    assert "REJECT" not in view(replace(asks, services=()), None, "host").features


@pytest.mark.parametrize(("red", "blue", "expected"), [
    (None, None, "reply"), (None, Echo.DROP, "drop"), (Echo.REPLY, None, "reply"), (Echo.ENDPOINT, None, "endpoint"),
])  # fmt: skip
def test_pings_of_a_vip_are_what_any_of_its_services_says(two_services, red, blue, expected):
    first, second = two_services.services
    second = replace(second, vips=first.vips, echo=blue, mode=Mode.DSR_L3)
    asks = view(replace(two_services, services=(replace(first, echo=red, mode=Mode.DSR_L3), second)), None, "host")
    desired = compile_node(asks)
    assert {row.echo for row in rows(desired, VipRow)} == {expected}
    pings = {row.id: row for row in rows(desired, ServiceRow) if row.protocol == "icmp"}
    if red is Echo.ENDPOINT:
        assert pings.keys() == {f"{vip}/icmp" for vip in first.vips}
        assert {row.ring for row in pings.values()} == {f"{first.pool}/{first.algorithm}"}
    else:
        assert not pings
    assert ("FORWARD_ECHO" in asks.features) == (red is Echo.ENDPOINT)


def test_the_program_knows_pings_where_there_are_vips(web_fleet):
    assert "ECHO" in view(web_fleet, None, "host").features
    assert "ECHO" not in view(replace(web_fleet, services=()), None, "host").features


@given(st.lists(fleets(), min_size=2, max_size=3), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_what_differs_of_a_fleet_leads_to_the_view_that_all_of_it_does(several, seed):
    chance = random.Random(seed)
    before = several[0]
    for _ in range(8):
        only_pools = replace(before, pools=mixed(before, chance.choice(several), chance).pools)
        after = only_pools if chance.random() < 0.7 else mixed(before, chance.choice(several), chance)
        if {service.pool for service in after.services} <= {pool.name for pool in after.pools}:
            found = renewed(after, before, view(before, None, "host"))
            assert found is None or found == view(after, None, "host")
            before = after


def test_an_edited_pool_is_no_reason_to_look_at_all_services(web_fleet):
    edited = replace(web_fleet, pools=tuple(replace(pool, endpoints=pool.endpoints[:1]) for pool in web_fleet.pools))
    assert renewed(edited, web_fleet, view(web_fleet, None, "host")) == view(edited, None, "host")


@pytest.mark.parametrize(
    ("mode", "written", "used"),
    [
        (Mode.DSR_L2, Algorithm.MAGLEV, Algorithm.SOURCE_HASH),
        (Mode.DSR_L3, Algorithm.SOURCE_HASH, Algorithm.SOURCE_HASH),
    ],
)
def test_affinity_without_memory_is_a_hash_of_the_clients_address_alone(web_fleet, mode, written, used):
    (service,) = web_fleet.services
    fleet = replace(web_fleet, services=(replace(service, mode=mode, algorithm=written, affinity=Affinity()),))
    part = view(fleet, None, "")
    (row,) = rows(compile_node(part), ServiceRow)
    assert (row.algorithm, row.ring) == (used, f"{service.pool}/{used}")
    assert used.name in part.features
    assert written is used or written.name not in part.features
