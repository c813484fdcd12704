# SPDX-License-Identifier: Apache-2.0
"""Numbers of endpoints are not given to others while a connection may point to them."""

import struct
from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler.dataplane import slots
from reconciler.dataplane.layout import REMEMBERED, SERVICES, AlgorithmCode, ModeCode
from reconciler.dataplane.rows import Service, ServiceKey
from reconciler.dataplane.slots import STREAM_IDLE
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind, numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.limits import Sizes
from reconciler.resource import Change
from reconciler.ring_store import settle
from tests.rings import write_rings

OLD, OTHER, NEW = (EndpointRow(IPv4Address(f"10.2.0.{i}")) for i in (1, 2, 3))


@pytest.fixture
def kernel():
    """A kernel with room for two endpoints. The first is retired; a service without memory uses its ring."""
    made = FakeKernel()
    made.load_program("lbctl_x", ("DSR_L3", "MAGLEV"), Sizes(endpoints=2))
    assert write(made, None, OLD, OTHER) == [None, None]
    row = SERVICES.pack(ServiceKey(bytes(4), 0, 6), Service(0, 1, 0, ModeCode.DSR_L3, AlgorithmCode.MAGLEV))
    made.update(SERVICES.name, [row])
    write_rings(made, {1: np.array([1], np.uint32)}, known=())
    return made


def write(kernel, before, *rows):
    return EndpointKind(kernel).write([Change(row.key, before, row) for row in rows])


def retire(kernel):
    write_rings(kernel, {1: np.array([2], np.uint32)}, known={1})
    assert EndpointKind(kernel).write([Change(OLD.key, OLD, None)]) == [None]


def numbers(kernel):
    return {row.row.id: row.number for row in numbered_rows(kernel)}


def test_the_former_endpoint_of_a_slot_keeps_its_number_until_the_transition_is_over(kernel):
    retire(kernel)
    (outcome,) = write(kernel, None, NEW)
    assert "no room" in str(outcome)
    assert settle(kernel, slots.now() + STREAM_IDLE + 1) == 1
    assert write(kernel, None, NEW) == [None]
    assert numbers(kernel) == {OTHER.id: 2, NEW.id: 1}


@pytest.mark.parametrize(("ago", "is_kept"), [(0, True), (STREAM_IDLE - 2, True), (STREAM_IDLE + 2, False)])
def test_the_endpoint_of_a_remembered_flow_keeps_its_number_until_the_flow_was_silent_for_too_long(
    kernel, ago, is_kept
):
    retire(kernel)
    settle(kernel, slots.now() + STREAM_IDLE + 1)
    seen = slots.now() - ago & 0x1FFF
    flows = [7 << 32 | number << 15 | seen << 2 | 3 for number in (1, 2)]
    kernel.update(REMEMBERED.name, [(struct.pack("=I", 9), struct.pack("=8Q", *flows, *[0] * 6))])
    (outcome,) = write(kernel, None, NEW)
    assert bool(outcome) == is_kept
    ((_, row),) = kernel.dump(REMEMBERED.name)
    left = [flow for flow in struct.unpack("=8Q", row) if flow]
    assert left == (flows if is_kept else flows[1:]), "a flow points to a number that is somebody else's"
