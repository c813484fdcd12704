# SPDX-License-Identifier: Apache-2.0
"""Where tunnels come from, nothing goes to: but only what is not on a network of the node."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.objects import Route
from reconciler.kinds.blackhole import Blackhole
from reconciler.live import read_live
from reconciler.model import Algorithm, Mode, TunnelSource
from reconciler.plan import plan
from reconciler.view import view
from tests.strategies import fake_source

NETWORK, NETWORK6 = "10.200.0.0/24", "2001:db8:f::/64"


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def tunnels(fleet, ipv4=None, ipv6=None, mode=Mode.DSR_L3):
    (node,), (service,), (pool,) = fleet.nodes, fleet.services, fleet.pools
    source = TunnelSource(ipv4 and ip_network(ipv4), ipv6 and ip_network(ipv6))
    members = tuple(replace(endpoint, port=None) for endpoint in pool.endpoints)
    return replace(
        fleet, nodes=(replace(node, tunnel_source=source),), pools=(replace(pool, endpoints=members),),
        services=(replace(service, mode=mode, algorithm=Algorithm.MAGLEV),),
    )  # fmt: skip


def bring(kernel, fleet):
    desired = compile_node(view(fleet, None, ""))
    planned = plan(desired, read_live(kernel, desired.resources))
    apply(planned, kernel).raise_if_failed()
    assert plan(desired, read_live(kernel, desired.resources)).changes == ()
    return {change.key.id for change in planned.changes if change.key.kind == Blackhole.kind}


def test_what_is_sent_to_the_sources_of_tunnels_ends_here(web_fleet):
    kernel = FakeKernel()
    assert bring(kernel, tunnels(web_fleet, NETWORK, mode=Mode.DSR_L2)) == set()
    assert bring(kernel, tunnels(web_fleet, NETWORK, NETWORK6)) == {NETWORK, NETWORK6}
    assert kernel.routes() == [Route(NETWORK), Route(NETWORK6)]
    assert bring(kernel, tunnels(web_fleet, "10.200.1.7")) == {NETWORK, NETWORK6, "10.200.1.7/32"}
    assert kernel.routes() == [Route("10.200.1.7/32")]
    assert bring(kernel, tunnels(web_fleet, "10.200.1.7", mode=Mode.DSR_L2)) == {"10.200.1.7/32"}
    assert kernel.routes() == []


def test_a_lost_black_hole_is_drift(web_fleet):
    kernel = FakeKernel()
    bring(kernel, tunnels(web_fleet, NETWORK))
    kernel.held_routes.clear()
    assert bring(kernel, tunnels(web_fleet, NETWORK)) == {NETWORK}


@pytest.mark.parametrize("attached", ["10.200.0.0/16", NETWORK])
def test_a_source_inside_a_network_of_the_node_needs_none(web_fleet, attached):
    kernel = FakeKernel(own_networks={attached, "2001:db8::/32"})
    assert bring(kernel, tunnels(web_fleet, NETWORK)) == set()
    assert kernel.routes() == []


@pytest.mark.parametrize("attached", ["10.200.0.128/28", "10.201.0.0/24", "::/0"])
def test_other_networks_of_the_node_are_no_reason(web_fleet, attached):
    kernel = FakeKernel(own_networks={attached})
    assert bring(kernel, tunnels(web_fleet, NETWORK)) == {NETWORK}
