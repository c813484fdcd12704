# SPDX-License-Identifier: Apache-2.0
"""What clients of nat see of a service is written before it, outlives it as long as it has connections, and its number
is nobody else's for so long."""

from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler.dataplane.layout import (
    CONNECTIONS,
    FRONTS,
    RING_NAMES,
    SERVICE_COUNTERS,
    SERVICES,
    ConnectionState,
)
from reconciler.dataplane.rows import Front, Number, RingName, RingNote
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind, numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.fronts import id_of_front
from reconciler.kinds.service import ServiceKind, indexed_rows
from reconciler.kinds.service_row import ServiceRow
from reconciler.limits import Sizes
from reconciler.resource import Change
from tests.connections import connection, put
from tests.rings import write_rings

VIP = IPv4Address("20.20.20.1")
WEB = ServiceRow(VIP, "tcp", 80, "nat", "maglev", "web/maglev", 8080)
DNS = ServiceRow(VIP, "udp", 53, "nat", "maglev", "web/maglev", idle_timeout_s=30)
SSH = ServiceRow(VIP, "tcp", 22, "nat", "maglev", "web/maglev")
OVER = ConnectionState.OVER


@pytest.fixture
def kernel() -> FakeKernel:
    """A node with room for two services and two endpoints."""
    made = FakeKernel()
    made.load_program("lbctl_x", ("MAGLEV", "NAT", "UDP"), Sizes(services=2, endpoints=2))
    write_rings(made, {1: np.array([1], np.uint32)}, known=())
    named = RING_NAMES.pack(RingName(b"web/maglev".ljust(128, b"\0")), RingNote(1, 0, bytes(16)))
    assert made.update(RING_NAMES.name, [named]) == [None]
    return made


def write(kernel: FakeKernel, *changes: tuple[ServiceRow | None, ServiceRow | None]) -> list[Exception | None]:
    return ServiceKind(kernel).write([Change((after or before).key, before, after) for before, after in changes])  # type: ignore[union-attr]


def front(kernel: FakeKernel, number: int) -> Front | None:
    (row,) = kernel.lookup(FRONTS.name, [FRONTS.key.pack(Number(number))])
    held = FRONTS.value.unpack(row or bytes(FRONTS.value_size))
    return held if held.protocol else None


def indexes(kernel: FakeKernel) -> dict[str, int]:
    return {held.row.id: held.index for held in indexed_rows(kernel)}


def clients(kernel: FakeKernel) -> list[int]:
    """The words of connections in the first bucket that say whose they are."""
    words = np.frombuffer(kernel.joined(CONNECTIONS.name)[1], np.uint64)[:4].tolist()
    return [word for word in words if word]


def held(kernel: FakeKernel, *wanted: ServiceRow) -> set[ServiceRow]:
    return set(ServiceKind(kernel).read({row.key: row for row in wanted}).resources)  # type: ignore[arg-type]


def test_a_front_is_written_before_its_service(kernel: FakeKernel) -> None:
    assert write(kernel, (None, WEB), (None, DNS)) == [None, None]
    maps = [what[0] for method, what in kernel.writes if method == "update"]  # type: ignore[index]
    assert maps[-4:] == [FRONTS.name, FRONTS.name, SERVICES.name, SERVICES.name]
    assert front(kernel, indexes(kernel)[WEB.id]) == Front(VIP.packed + bytes(12), 80, 8080, 867, 6, 4, 0)
    assert front(kernel, indexes(kernel)[DNS.id]) == Front(VIP.packed + bytes(12), 53, 0, 4, 17, 4, 30)
    assert held(kernel, WEB, DNS) == {WEB, DNS} == held(kernel)


def test_a_service_whose_front_can_not_be_written_is_not_written(kernel: FakeKernel) -> None:
    del kernel.maps[FRONTS.name]
    (outcome,) = write(kernel, (None, WEB))
    assert isinstance(outcome, KernelError)
    assert kernel.dump(SERVICES.name) == []


@pytest.mark.parametrize("damaged", [None, Front(VIP.packed + bytes(12), 80, 9090, 867, 6, 4)])
def test_a_front_that_is_missing_or_another_ones_is_mended(kernel: FakeKernel, damaged: Front | None) -> None:
    write(kernel, (None, WEB))
    number = FRONTS.key.pack(Number(indexes(kernel)[WEB.id]))
    put(kernel, [connection(1, service=indexes(kernel)[WEB.id])])
    kernel.delete(FRONTS.name, [number])
    if damaged:
        kernel.update(FRONTS.name, [(number, FRONTS.value.pack(damaged))])
    (strange,) = held(kernel, WEB)
    assert strange.damage == "no front, or another one's"
    assert write(kernel, (strange, WEB)) == [None]
    assert held(kernel, WEB) == {WEB}
    assert (indexes(kernel)[WEB.id], front(kernel, indexes(kernel)[WEB.id])) == (
        FRONTS.key.unpack(number).number, Front(VIP.packed + bytes(12), 80, 8080, 867, 6, 4),
    )  # fmt: skip


def test_another_idle_timeout_is_written_in_place_and_breaks_nothing(kernel: FakeKernel) -> None:
    write(kernel, (None, WEB))
    before, patient = indexes(kernel), replace(WEB, idle_timeout_s=14_400)
    put(kernel, [connection(1, service=before[WEB.id])])
    assert held(kernel, patient) == {WEB}
    assert write(kernel, (WEB, patient)) == [None]
    assert indexes(kernel) == before
    assert (held(kernel, patient), front(kernel, before[WEB.id]).idle) == ({patient}, 1_677)  # type: ignore[union-attr]
    assert "idle timeout" in patient.describe()


def test_connections_keep_their_port_when_the_target_port_changes(kernel: FakeKernel) -> None:
    """The service gets another number, and what begins from now on the new port."""
    write(kernel, (None, WEB))
    old, other = indexes(kernel)[WEB.id], replace(WEB, target_port=9090)
    put(kernel, [connection(1, service=old)])
    assert write(kernel, (WEB, other)) == [None]
    new = indexes(kernel)[WEB.id]
    assert new != old
    assert [front(kernel, number).target_port for number in (old, new)] == [8080, 9090]  # type: ignore[union-attr]
    assert held(kernel, other) == {other}


def test_without_connections_a_service_keeps_its_number_and_its_counters(kernel: FakeKernel) -> None:
    write(kernel, (None, WEB))
    before, other = indexes(kernel), replace(WEB, target_port=9090)
    put(kernel, [connection(1, OVER, service=before[WEB.id], silence=5)])
    assert write(kernel, (WEB, other)) == [None]
    assert (indexes(kernel), held(kernel, other)) == (before, {other})


def test_the_number_of_a_former_service_is_nobodys_while_it_has_connections(kernel: FakeKernel) -> None:
    write(kernel, (None, WEB), (None, DNS))
    number = indexes(kernel)[WEB.id]
    put(kernel, [connection(1, service=number), connection(2, OVER, service=number, silence=9)])
    assert write(kernel, (WEB, None)) == [None]
    assert front(kernel, number), "replies go on"
    (outcome,) = write(kernel, (None, SSH))
    assert "no room" in str(outcome)
    put(kernel, [connection(1, service=number, silence=900), connection(2, OVER, service=number, silence=9)])
    kernel.update(SERVICE_COUNTERS.name, [(SERVICE_COUNTERS.key.pack(Number(number)), bytes([1] * 40))])
    assert write(kernel, (None, SSH)) == [None]
    assert (indexes(kernel)[SSH.id], front(kernel, number).port) == (number, 22)  # type: ignore[union-attr]
    assert clients(kernel) == []
    assert kernel.dump(SERVICE_COUNTERS.name) == [], "it begins with counters of its own"


def test_a_front_has_the_name_of_its_service(kernel: FakeKernel) -> None:
    write(kernel, (None, WEB))
    fronts = FRONTS.value.array(kernel.joined(FRONTS.name)[1])
    assert (id_of_front(fronts, 0), id_of_front(fronts, 1)) == (WEB.id, None)


def test_the_number_of_a_former_endpoint_is_nobodys_while_it_has_connections(kernel: FakeKernel) -> None:
    first, second, third = (EndpointRow(IPv4Address(f"10.2.0.{number}")) for number in (1, 2, 3))
    kind = EndpointKind(kernel)
    assert kind.write([Change(row.key, None, row) for row in (first, second)]) == [None, None]
    (number,) = (held.number for held in numbered_rows(kernel) if held.row == first)
    put(kernel, [connection(1, endpoint=number)])
    assert kind.write([Change(first.key, first, None)]) == [None]
    write_rings(kernel, {1: np.array([3 - number], np.uint32)}, known={1})
    (outcome,) = kind.write([Change(third.key, None, third)])
    assert "no room" in str(outcome)
    put(kernel, [connection(1, OVER, endpoint=number, silence=4)])
    assert kind.write([Change(third.key, None, third)]) == [None]
    assert {held.row.id: held.number for held in numbered_rows(kernel)}[third.id] == number
    assert clients(kernel) == [], "it would seem young again"
