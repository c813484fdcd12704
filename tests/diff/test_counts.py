# SPDX-License-Identifier: Apache-2.0
"""Where nobody counted connections, no number is told."""

from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.ring import Ring
from reconciler.kinds.service_row import ServiceRow
from reconciler.live import read_live, with_connections
from reconciler.resource import Context, Live
from reconciler.snapshot import live_from_json, live_to_json

ROW = EndpointRow(IPv4Address("10.2.0.1"), 8080)
SERVICE = ServiceRow(IPv4Address("20.20.20.1"), "tcp", 80, "nat", "round-robin", "web/round-robin")


def counted(count):
    return Live(connections={(SERVICE.id, ROW.id): count} if count else {})


@pytest.mark.parametrize(
    ("live", "end", "removed"),
    [
        (Live(), "connections on it end", "connections on it go on until they end by themselves"),
        (counted(0), "0 connections end", "no connection uses it"),
        (counted(1), "1 connection ends", "1 connection goes on until it ends by itself"),
        (counted(3), "3 connections end", "3 connections go on until they end by themselves"),
    ],
)
def test_effects(live, end, removed):
    context = Context(live, {SERVICE.key: SERVICE})
    assert ROW.effect(replace(ROW, disabled=True), context) == end
    assert ROW.effect(None, context) == removed
    assert ROW.effect(ROW, context) == ""
    assert SERVICE.effect(None, context) == end


RING = Ring("web/round-robin", (ROW.id,), bytes(4))
HELD = {resource.key: resource for resource in (ROW, RING, SERVICE)}


@pytest.mark.parametrize(("connections", "end"), [(None, "connections on it end"), (3, "3 connections end")])
def test_connections_end_at_the_endpoint_too_if_all_their_services_go_with_it(connections, end):
    live = Live(HELD, connections=None if connections is None else counted(connections).connections)
    assert ROW.effect(None, Context(live)) == end
    assert ROW.effect(None, Context(live, {SERVICE.key: SERVICE})).endswith("by themselves")


def test_of_several_services_only_those_that_stay_keep_their_connections():
    other = replace(SERVICE, port=81)
    live = Live(HELD | {other.key: other}, connections={(SERVICE.id, ROW.id): 2, (other.id, ROW.id): 1})
    assert ROW.effect(None, Context(live, {other.key: other})) == "1 connection goes on until it ends by itself"
    assert ROW.effect(None, Context(live)) == "3 connections end"


@pytest.mark.parametrize("mode", ["dsr-l2", "dsr-l3"])
def test_nobody_counts_connections_that_are_not_remembered(mode):
    service = replace(SERVICE, mode=mode, algorithm="maglev", ring="web/maglev")
    ring = replace(RING, name="web/maglev")
    live = Live({r.key: r for r in (ROW, ring, service)}, connections={})
    context = Context(live, {service.key: service})
    assert ROW.effect(None, context) == "connections on it go on until they end by themselves"
    assert ROW.effect(replace(ROW, disabled=True), context) == "connections on it end"
    assert service.effect(None, context) == "connections on it end"
    idle = replace(ROW, address=IPv4Address("10.2.0.2"))  # in no ring: whose connections it has, nobody knows
    assert idle.effect(None, context) == "connections on it go on until they end by themselves"


def test_a_service_that_forgets_takes_open_connections_along_to_another_ring():
    first, second = ROW.id, "10.2.0.2:8080"
    service = replace(SERVICE, mode="dsr-l3", algorithm="maglev", ring="web/maglev")
    rings = [Ring("web/maglev", (first, second), np.array([0, 1, 0, 1], "<u4").tobytes()),
             Ring("new/maglev", (first, second), np.array([0, 1, 1, 1], "<u4").tobytes())]  # fmt: skip
    moved = replace(service, ring="new/maglev")
    context = Context(Live({rings[0].key: rings[0], service.key: service}), {rings[1].key: rings[1], moved.key: moved})
    text = "25.0% of connections move to another endpoint, and break if they are open"
    assert service.effect(moved, context) == text
    assert service.effect(replace(service, mode="dsr-l2"), context) == ""
    other = replace(service, algorithm="source-hash", ring="web/source-hash")
    # An endpoint that is in the former pool only loses what goes to another pool, and the plan says no other thing.
    live = Live({r.key: r for r in (ROW, rings[0], service)})
    assert ROW.effect(None, Context(live, {moved.key: moved})) == "connections on it end"
    by_nat = replace(service, mode="nat")
    assert ROW.effect(None, Context(live, {by_nat.key: by_nat})) == "connections on it end"
    assert ROW.effect(None, Context(live, {service.key: service})).endswith("until they end by themselves")
    assert service.effect(other, context) == "connections go where another ring says, and open ones break"
    assert service.effect(replace(service, mode="nat"), context) == "connections on it end"
    assert replace(SERVICE, ring="x").effect(SERVICE, context) == "open connections stay, new ones follow the new row"


def test_a_plan_announces_the_transition_of_slots_that_change_hands():
    first, second = ROW.id, "10.2.0.2:8080"
    service = replace(SERVICE, mode="dsr-l3", algorithm="maglev", ring="web/maglev")
    before = Ring("web/maglev", (first,), np.array([0, 0, 0, 0], "<u4").tobytes())
    after = Ring("web/maglev", (first, second), np.array([0, 1, 0, 0], "<u4").tobytes())
    direct, nat = (Context(Live({r.key: r for r in (before, s)})) for s in (service, replace(service, mode="nat")))
    rest = "and their slots are in transition until nobody uses the former endpoints"
    assert before.effect(after, direct) == f"25.0% of new connections move; open connections stay, {rest}"
    assert before.effect(after, nat) == "25.0% of new connections move; open connections stay"


def test_a_kernel_that_was_asked_has_counts_and_one_that_was_not_has_none():
    kernel = FakeKernel()
    assert read_live(kernel).connections is None
    assert with_connections(read_live(kernel), kernel).connections == {}


@pytest.mark.parametrize("live", [Live(), counted(0), counted(3)])
def test_snapshots_keep_what_is_known(live):
    assert live_from_json(live_to_json(live)) == live


def test_a_snapshot_may_leave_the_counts_out():
    data = live_to_json(Live())
    del data["connections"]
    assert live_from_json(data).connections is None
