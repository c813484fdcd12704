# SPDX-License-Identifier: Apache-2.0
"""Nat without memory: whose replies an endpoint's are, and how a service gets there and back."""

from __future__ import annotations

from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler import clock
from reconciler.compile import compile_node
from reconciler.dataplane.connections import UNIT_SHIFT
from reconciler.dataplane.layout import RING_NAMES, SERVED, SERVICES, ModeCode
from reconciler.dataplane.rows import RingName, RingNote
from reconciler.errors import UnsupportedError
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.served import ServedKind, Source
from reconciler.kinds.service import ServiceKind, indexed_rows
from reconciler.kinds.service_row import ServiceRow
from reconciler.limits import Sizes
from reconciler.model import Algorithm, Endpoint, Fleet, Interface, Mode, Node, Pool, Protocol, Service
from reconciler.resource import Change, Key, Resource
from reconciler.view import view
from tests.connections import connection, put
from tests.rings import write_rings

VIP, OTHER_VIP = IPv4Address("20.20.20.1"), IPv4Address("20.20.20.2")
WEB = ServiceRow(VIP, "tcp", 80, "nat", "maglev", "web/maglev", 8080)
FREE = ServiceRow(VIP, "tcp", 80, "nat", "maglev", "web/maglev", 8080, is_stateless=True)
ENDPOINT = EndpointRow(IPv4Address("10.2.0.11"))
SOURCE = Source(ENDPOINT.address, 8080, "tcp", VIP, 80, ENDPOINT.id)
OTHER = Source(ENDPOINT.address, 8080, "tcp", OTHER_VIP, 80, ENDPOINT.id)
UNITS = 868
"""Longer than a connection of TCP may be silent."""


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.load_program("lbctl_x", ("MAGLEV", "NAT", "STATELESS"), Sizes(services=4, endpoints=4))
    assert EndpointKind(made).write([Change(ENDPOINT.key, None, ENDPOINT)]) == [None]
    write_rings(made, {1: np.array([1], np.uint32)}, known=())
    named = RING_NAMES.pack(RingName(b"web/maglev".ljust(128, b"\0")), RingNote(1, 0, bytes(16)))
    assert made.update(RING_NAMES.name, [named]) == [None]
    return made


def give(kernel: FakeKernel, before: Source | None, after: Source | None) -> Exception | None:
    (outcome,) = ServedKind(kernel).write([Change((after or before).key, before, after)])  # type: ignore[union-attr]
    return outcome


def write(kernel: FakeKernel, before: ServiceRow | None, after: ServiceRow) -> None:
    assert ServiceKind(kernel).write([Change(after.key, before, after)]) == [None]


def sources(kernel: FakeKernel) -> tuple[Resource, ...]:
    return ServedKind(kernel).read({}).resources


def mode(kernel: FakeKernel) -> int:
    ((_, row),) = SERVICES.unpack(kernel.dump(SERVICES.name))
    return row.mode


def held(kernel: FakeKernel, wanted: ServiceRow) -> ServiceRow:
    (row,) = ServiceKind(kernel).read({wanted.key: wanted}).resources
    assert isinstance(row, ServiceRow)
    return row


def later(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    moment = clock.now_ns() + (units << UNIT_SHIFT)
    monkeypatch.setattr(clock, "now_ns", lambda: moment)


def test_a_source_reads_back_as_it_was_written_until_it_is_given_up(kernel: FakeKernel) -> None:
    assert give(kernel, None, SOURCE) is None
    assert sources(kernel) == (SOURCE,)
    assert give(kernel, SOURCE, None) is None
    assert sources(kernel) == ()
    assert len(kernel.dump(SERVED.name)) == 1, "its connections go on"
    assert give(kernel, None, SOURCE) is None
    assert sources(kernel) == (SOURCE,)


def test_another_service_gets_a_source_only_when_nobody_can_mistake_its_replies(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(kernel, None, SOURCE)
    refused = give(kernel, SOURCE, OTHER)
    assert "still belongs to connections of 20.20.20.1:80" in str(refused)
    assert sources(kernel) == (), "the former one gave it up"
    later(monkeypatch, UNITS)
    assert give(kernel, None, OTHER) is None
    assert sources(kernel) == (OTHER,)


def test_rows_that_are_over_are_removed_with_the_next_write(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(kernel, None, SOURCE)
    give(kernel, SOURCE, None)
    later(monkeypatch, UNITS)
    further = Source(ENDPOINT.address, 9090, "tcp", VIP, 90, ENDPOINT.id)
    assert give(kernel, None, further) is None
    assert len(kernel.dump(SERVED.name)) == 1


def test_a_service_without_connections_is_stateless_at_once(kernel: FakeKernel) -> None:
    give(kernel, None, SOURCE)
    write(kernel, None, FREE)
    assert mode(kernel) == ModeCode.NAT_STATELESS
    assert held(kernel, FREE) == FREE == indexed_rows(kernel)[0].row


def test_from_the_table_a_service_settles_as_long_as_the_table_has_connections_of_it(kernel: FakeKernel) -> None:
    write(kernel, None, WEB)
    put(kernel, [connection(1, endpoint=1, service=indexed_rows(kernel)[0].index)])
    give(kernel, None, SOURCE)
    write(kernel, WEB, FREE)
    assert mode(kernel) == ModeCode.NAT_SETTLING
    assert held(kernel, FREE) == FREE, "as wanted, for now"
    put(kernel, [])
    kernel.maps["connections"].clear()
    stale = held(kernel, FREE)
    assert stale.is_on_its_way and stale != FREE
    write(kernel, stale, FREE)
    assert mode(kernel) == ModeCode.NAT_STATELESS
    assert held(kernel, FREE) == FREE


def test_back_to_the_table_a_service_leaves_as_long_as_its_sources_last(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(kernel, None, SOURCE)
    write(kernel, None, FREE)
    write(kernel, FREE, WEB)
    assert mode(kernel) == ModeCode.NAT_LEAVING
    give(kernel, SOURCE, None)
    assert held(kernel, WEB) == WEB
    later(monkeypatch, UNITS)
    stale = held(kernel, WEB)
    assert stale.is_on_its_way
    write(kernel, stale, WEB)
    assert mode(kernel) == ModeCode.NAT
    assert held(kernel, WEB) == WEB


def test_an_endpoints_number_is_nobody_elses_while_a_source_has_it(kernel: FakeKernel) -> None:
    give(kernel, None, SOURCE)
    give(kernel, SOURCE, None)
    kind = EndpointKind(kernel)
    write_rings(kernel, {1: np.array([], np.uint32)}, known={1})
    assert kind.write([Change(ENDPOINT.key, ENDPOINT, None)]) == [None]
    others = [EndpointRow(IPv4Address(f"10.2.0.{last}")) for last in range(20, 24)]
    outcomes = kind.write([Change(row.key, None, row) for row in others])
    assert [outcome is None for outcome in outcomes] == [True, True, True, False]


def service(name: str, vip: IPv4Address = VIP, *, stateless: bool = True, pool: str = "web") -> Service:
    return Service(
        name, (vip,), Protocol.TCP, (80,), pool, Mode.NAT, Algorithm.MAGLEV, target_port=8080, stateless=stateless
    )


def compiled(*services: Service) -> set[Key]:
    endpoints = tuple(Endpoint(IPv4Address(f"10.2.0.{last}")) for last in (11, 12))
    pools = Pool("web", endpoints), Pool("more", (*endpoints[1:], Endpoint(IPv4Address("10.2.0.13"))))
    fleet = Fleet(services, pools, (Node("lb1", (Interface("eth0"),)),))
    return {key for key in compile_node(view(fleet, "lb1", "")).resources if key.kind == "source"}


def test_a_stateless_service_asks_for_a_source_of_each_endpoint() -> None:
    assert {key.id for key in compiled(service("web"))} == {"10.2.0.11:8080/tcp", "10.2.0.12:8080/tcp"}
    assert compiled(service("web", stateless=False)) == set()


@pytest.mark.parametrize("stateless", [True, False])
def test_a_source_that_two_services_would_share_is_refused(*, stateless: bool) -> None:
    """Whether the other one remembers its connections, or not."""
    with pytest.raises(UnsupportedError, match=r"10\.2\.0\.12:8080/tcp serves 20\.20\.20\.1:80 without memory"):
        compiled(service("web"), service("more", OTHER_VIP, stateless=stateless, pool="more"))
