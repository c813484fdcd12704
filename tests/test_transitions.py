# SPDX-License-Identifier: Apache-2.0
"""What people see of transitions, and when they are over."""

from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler.dataplane import slots
from reconciler.dataplane.layout import SERVICES, AlgorithmCode, ModeCode
from reconciler.dataplane.rows import Service, ServiceKey
from reconciler.dataplane.slots import DATAGRAM_IDLE, STREAM_IDLE
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.ring import Ring
from reconciler.kinds.rings import RingKind
from reconciler.readings.transitions import Transition, transitions
from reconciler.resource import Change
from reconciler.ring_store import settle

FIRST, SECOND = (EndpointRow(IPv4Address(f"10.2.0.{i}")) for i in (1, 2))
UDP, TCP = 17, 6


def ring(*members):
    return Ring("web/maglev", (FIRST.id, SECOND.id), np.array(members, "<u4").tobytes())


def node(mode=ModeCode.DSR_L3, protocol=TCP):
    """A node whose one ring has four slots, half of them for each endpoint, and a service that uses it."""
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("NAT", "DSR_L3", "MAGLEV"))
    EndpointKind(kernel).write([Change(row.key, None, row) for row in (FIRST, SECOND)])
    put(kernel, None, ring(0, 1, 0, 1))
    row = SERVICES.pack(ServiceKey(bytes(4), 0, protocol), Service(0, 1, 0, mode, AlgorithmCode.MAGLEV))
    kernel.update(SERVICES.name, [row])
    return kernel


def put(kernel, before, after):
    assert RingKind(kernel).write([Change(after.key, before, after)]) == [None]


def test_a_ring_that_stands_still_has_none():
    kernel = node()
    assert list(transitions(kernel)) == []
    assert settle(kernel, slots.now() + STREAM_IDLE) == 0


@pytest.mark.parametrize(("protocol", "idle"), [(TCP, STREAM_IDLE), (UDP, DATAGRAM_IDLE)])
def test_slots_that_changed_hands_are_shown_with_their_former_endpoints_until_they_settle(protocol, idle):
    kernel = node(protocol=protocol)
    began = slots.now()
    put(kernel, ring(0, 1, 0, 1), ring(0, 1, 0, 0))
    (shown,) = transitions(kernel, began + 6)
    seconds = (idle - 6) * 2**34 / 1e9
    assert shown == Transition("web/maglev", 1, 4, (SECOND.id,), 103, 103, shown.settles_s)
    assert abs(shown.settles_s - seconds) <= 18
    assert settle(kernel, began + idle) == 0
    assert settle(kernel, slots.now() + idle + 1) == 1
    assert list(transitions(kernel)) == []


def test_an_endpoint_that_is_back_is_no_former_one():
    kernel = node()
    put(kernel, ring(0, 1, 0, 1), ring(0, 1, 0, 0))
    put(kernel, ring(0, 1, 0, 0), ring(0, 1, 0, 1))
    (shown,) = transitions(kernel)
    assert (shown.moving, shown.former) == (1, ())


def test_where_connections_are_remembered_one_by_one_nothing_is_in_transition():
    kernel = node(mode=ModeCode.NAT)
    put(kernel, ring(0, 1, 0, 1), ring(0, 1, 0, 0))
    assert list(transitions(kernel)) == []


def test_a_ring_that_is_in_transition_reads_back_as_what_was_asked_for():
    kernel = node()
    put(kernel, ring(0, 1, 0, 1), ring(1, 1, 0, 0))
    assert ring(1, 0).slots in {found.slots for found in RingKind(kernel).read({}).resources}
