# SPDX-License-Identifier: Apache-2.0
"""The members of rings with affinity read back as they were written, with one number for as long as they are asked
for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from reconciler.compile import compiled
from reconciler.dataplane.layout import MEMBERS
from reconciler.dataplane.rows import Member, Number
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.base import differing
from reconciler.kinds.endpoint import EndpointKind, EndpointRow
from reconciler.kinds.members import Members, MembersKind
from reconciler.kinds.ring import build
from reconciler.kinds.rings import RingKind
from reconciler.kinds.service import ServiceRow
from reconciler.model import (
    Affinity,
    Algorithm,
    Endpoint,
    EndpointState,
    Fleet,
    Interface,
    Mode,
    Node,
    Pool,
    Protocol,
    Service,
)
from reconciler.resource import Change, Key
from reconciler.ring_names import RingNames
from reconciler.view import view

FEATURES = ("AFFINITY", "IPV6", "NAT", "ROUND_ROBIN")
ADDRESSES = (*(IPv4Address("10.2.0.1") + n for n in range(5)), IPv6Address("2001:db8::1"))
ENDPOINTS = tuple(Endpoint(address, 8080) for address in ADDRESSES)
POOLS = [Pool("web", ENDPOINTS[:4]), Pool("mail", ENDPOINTS[2:])]
WEB, MAIL = (build(pool, Algorithm.ROUND_ROBIN) for pool in POOLS)
NAMES = [EndpointRow(e.address, 8080).id for e in ENDPOINTS]
OF_WEB, OF_MAIL = Members(WEB.name, WEB.members), Members(MAIL.name, MAIL.members)


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.load_program("lbctl_x", FEATURES)
    rows = [EndpointRow(address, 8080) for address in ADDRESSES]
    assert not any(EndpointKind(made).write([Change(row.key, None, row) for row in rows]))
    assert RingKind(made).write([Change(ring.key, None, ring) for ring in (WEB, MAIL)]) == [None, None]
    return made


def write(kernel: FakeKernel, *wanted: Members) -> None:
    before = {item.key: item for item in MembersKind(kernel).read({}).resources}
    changes = [Change(members.key, before.get(members.key), members) for members in wanted]
    assert not any(MembersKind(kernel).write(changes))


def held(kernel: FakeKernel) -> set[object]:
    return set(MembersKind(kernel).read({}).resources)


def numbers(kernel: FakeKernel) -> dict[int, set[int]]:
    """The numbers in the rows of each ring."""
    found: dict[int, set[int]] = {}
    for key, value in MEMBERS.unpack(kernel.dump(MEMBERS.name)):
        found.setdefault(key.ring, set()).add(value.number)
    return found


def test_members_read_back_and_deleted_ones_are_gone(kernel: FakeKernel) -> None:
    write(kernel, OF_WEB, OF_MAIL)
    assert held(kernel) == {OF_WEB, OF_MAIL}
    fewer = replace(OF_WEB, endpoints=OF_WEB.endpoints[1:])
    changes = [Change(OF_WEB.key, OF_WEB, fewer), Change(OF_MAIL.key, OF_MAIL, None)]
    assert MembersKind(kernel).write(changes) == [None, None]
    assert held(kernel) == {fewer}
    assert MembersKind(kernel).write(changes) == [None, None], "again, which changes nothing"
    assert held(kernel) == {fewer}


def test_a_ring_keeps_its_number_while_members_come_and_go_even_all(kernel: FakeKernel) -> None:
    write(kernel, OF_WEB, OF_MAIL)
    first = numbers(kernel)
    assert all(len(of_ring) == 1 and 0 not in of_ring for of_ring in first.values())
    assert len({number for of_ring in first.values() for number in of_ring}) == 2
    write(kernel, replace(OF_WEB, endpoints=()))
    assert held(kernel) == {replace(OF_WEB, endpoints=()), OF_MAIL}
    write(kernel, OF_WEB)
    assert numbers(kernel) == first


def test_who_comes_after_all_services_went_has_another_number(kernel: FakeKernel) -> None:
    write(kernel, OF_WEB)
    first = numbers(kernel)
    assert MembersKind(kernel).write([Change(OF_WEB.key, OF_WEB, None)]) == [None]
    assert numbers(kernel) == {}
    write(kernel, OF_WEB)
    assert numbers(kernel).keys() == first.keys()
    assert numbers(kernel) != first


def test_members_need_their_ring_and_their_endpoints(kernel: FakeKernel) -> None:
    strange = Members("lost/round-robin", ())
    unknown = replace(OF_WEB, endpoints=(*OF_WEB.endpoints, "10.9.9.9:1"))
    first, second = MembersKind(kernel).write([Change(m.key, None, m) for m in (strange, unknown)])
    assert str(first) == "members lost/round-robin needs a ring that is not there"
    assert str(second) == "members web/round-robin needs endpoints that are not there: 10.9.9.9:1"
    assert held(kernel) == set()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (Member(1, 0), Number(9), "rows with different numbers, or none"),
        (Member(1, 3), Number(0), "rows with different numbers, or none"),
    ],
)
def test_damage_is_seen_and_mended(kernel: FakeKernel, key: Member, value: Number, said: str) -> None:
    write(kernel, OF_WEB)
    (ring,) = numbers(kernel)
    kernel.update(MEMBERS.name, [MEMBERS.pack(key._replace(ring=ring), value)])
    (found,) = MembersKind(kernel).read({}).resources
    assert isinstance(found, Members)
    assert found.damage == said
    assert found.flaw
    assert [*MembersKind(kernel).look({OF_WEB.key: OF_WEB})][1] == [OF_WEB.key]
    write(kernel, OF_WEB)
    assert held(kernel) == {OF_WEB}


def test_a_row_that_is_missing_or_of_nobody_is_seen(kernel: FakeKernel) -> None:
    write(kernel, OF_WEB)
    (ring,) = numbers(kernel)
    kernel.delete(MEMBERS.name, [MEMBERS.key.pack(Member(ring, 0))])
    assert held(kernel) != {OF_WEB}
    kernel.update(MEMBERS.name, [MEMBERS.pack(Member(777, 9), Number(5))])
    reading = MembersKind(kernel).read({OF_WEB.key: OF_WEB})
    assert set(differing(reading, {OF_WEB.key: OF_WEB})) == {OF_WEB.key, Key(Members.kind, "lost ring 777")}
    (lost,) = [item for item in reading.resources if item.id == "lost ring 777"]
    assert lost.flaw
    assert MembersKind(kernel).write([Change(lost.key, lost, None), Change(OF_WEB.key, None, OF_WEB)]) == [None, None]
    assert held(kernel) == {OF_WEB}


def test_rows_of_a_lost_ring_whose_number_another_ring_has_by_now_are_that_ones(kernel: FakeKernel) -> None:
    """Nobody who was known by the lost one is known by the other, and removing the former takes nothing from it."""
    number = RingNames(kernel).number(WEB.name)
    assert number
    kernel.update(MEMBERS.name, [MEMBERS.pack(Member(number, endpoint), Number(5)) for endpoint in (0, 9)])
    lost = Members(f"lost ring {number}", ("lost endpoint 9",))
    assert MembersKind(kernel).write([Change(OF_WEB.key, None, OF_WEB), Change(lost.key, lost, None)]) == [None, None]
    assert held(kernel) == {OF_WEB}
    assert numbers(kernel)[number] != {5}


def test_a_look_finds_what_reading_all_finds(kernel: FakeKernel) -> None:
    write(kernel, OF_WEB)
    wanted = {OF_MAIL.key: OF_MAIL, OF_WEB.key: OF_WEB}
    found = {key for part in MembersKind(kernel).look(wanted) for key in part}
    assert found == set(differing(MembersKind(kernel).read(wanted), wanted)) == {OF_MAIL.key}
    assert {key for part in MembersKind(kernel).look({}) for key in part} == {OF_WEB.key}


# --- what asks for them ----------------------------------------------------------------------------------------
NODE = Node("lb1", (Interface("front"), Interface("back")), snat_addresses=(ip_address("10.2.0.9"),))
SERVICE = Service("web", (ip_address("20.20.20.1"),), Protocol.TCP, (80,), "web")


def asked(*services: Service, pool: Pool = POOLS[0]) -> set[Members]:
    desired = compiled(view(Fleet(services, (pool,), (NODE,)), None, "")).desired
    return {item for item in desired.resources.values() if isinstance(item, Members)}


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
def test_a_service_that_remembers_clients_asks_for_them(mode: Mode) -> None:
    plain, own = replace(SERVICE, mode=mode), replace(SERVICE, mode=mode, affinity=Affinity(timeout_s=600))
    assert asked(plain) == set()
    assert asked(own) == {OF_WEB}
    desired = compiled(view(Fleet((own,), (POOLS[0],), (NODE,)), None, "")).desired
    (row,) = [item for item in desired.resources.values() if isinstance(item, ServiceRow)]
    assert row.affinity_s == 600
    assert OF_WEB.key in row.needs


def test_who_is_drained_is_no_member() -> None:
    drained = replace(ENDPOINTS[0], state=EndpointState.DRAINING)
    own = replace(SERVICE, affinity=Affinity())
    assert asked(own, pool=Pool("web", (drained, *ENDPOINTS[1:4]))) == {
        replace(OF_WEB, endpoints=tuple(sorted(NAMES[1:4])))
    }


def test_an_edit_of_affinity_alone_is_seen_by_what_was_compiled_before() -> None:
    fleets = [
        Fleet((replace(SERVICE, affinity=affinity),), (POOLS[0],), (NODE,))
        for affinity in (None, Affinity(), None, Affinity(timeout_s=600))
    ]
    before = None
    for fleet in fleets:
        before = compiled(view(fleet, None, ""), before)
        assert dict(before.desired.resources) == dict(compiled(view(fleet, None, "")).desired.resources)


def test_an_edit_of_stateless_alone_is_seen_by_what_was_compiled_before() -> None:
    one = replace(SERVICE, algorithm=Algorithm.MAGLEV)
    before = None
    for is_stateless in (False, True, False):
        fleet = Fleet((replace(one, stateless=is_stateless),), (Pool("web", ENDPOINTS[:4]),), (NODE,))
        before = compiled(view(fleet, None, ""), before)
        assert dict(before.desired.resources) == dict(compiled(view(fleet, None, "")).desired.resources)
