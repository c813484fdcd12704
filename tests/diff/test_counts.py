# SPDX-License-Identifier: Apache-2.0
"""Where nobody counted connections, no number is told."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointRow
from reconciler.kinds.service import ServiceRow
from reconciler.live import read_live, with_connections
from reconciler.resource import Live
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
    assert ROW.effect(replace(ROW, disabled=True), live) == end
    assert ROW.effect(None, live) == removed
    assert ROW.effect(ROW, live) == ""
    assert SERVICE.effect(None, live) == end


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
