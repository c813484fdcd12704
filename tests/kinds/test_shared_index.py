# SPDX-License-Identifier: Apache-2.0
"""Rows of services that share an index, since somebody wrote to the map: the row whose index it is keeps it, and so
its counters, its connections, and the flows that transitions remember."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler.dataplane.layout import RING_NAMES, SERVICES
from reconciler.dataplane.rows import RingName, RingNote
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.service import ServiceKind, indexed_rows
from reconciler.kinds.service_row import ServiceRow
from reconciler.limits import Sizes
from reconciler.resource import Change, Key, Resource
from tests.rings import write_rings

OURS = ServiceRow(IPv4Address("20.20.20.9"), "tcp", 80, "dsr-l3", "maglev", "web/maglev")
"""The fake kernel gives rows by their keys, so this one comes after those of lower addresses."""
OTHER = replace(OURS, vip=IPv4Address("20.20.20.1"))
MODES = pytest.mark.parametrize("mode", ["dsr-l3", "nat"])


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.load_program("lbctl_x", ("MAGLEV", "NAT", "UDP"), Sizes(services=4, endpoints=4))
    write_rings(made, {1: np.array([1], np.uint32)}, known=())
    named = RING_NAMES.pack(RingName(b"web/maglev".ljust(128, b"\0")), RingNote(1, 0, bytes(16)))
    assert made.update(RING_NAMES.name, [named]) == [None]
    return made


def write(kernel: FakeKernel, *changes: tuple[Resource | None, Resource | None]) -> None:
    made = [Change((after or before).key, before, after) for before, after in changes]  # type: ignore[union-attr]
    assert ServiceKind(kernel).write(made) == [None] * len(made)


def read(kernel: FakeKernel, *wanted: ServiceRow) -> dict[Key, ServiceRow]:
    found = ServiceKind(kernel).read({row.key: row for row in wanted}).resources
    return {row.key: row for row in found if isinstance(row, ServiceRow)}


def index_of(kernel: FakeKernel, row: ServiceRow) -> int:
    (found,) = (held.index for held in indexed_rows(kernel) if held.row.key == row.key)
    return found


def damage(kernel: FakeKernel, row: ServiceRow, like: ServiceRow) -> None:
    """Write `row` as somebody might: with all that the map says of `like`, the index, too. It comes first."""
    rows = dict(kernel.dump(SERVICES.name))
    kernel.delete(SERVICES.name, list(rows))
    made = {row.packed(): rows[like.packed()]} | {key: value for key, value in rows.items() if key != row.packed()}
    assert kernel.update(SERVICES.name, list(made.items())) == [None] * len(made)


@MODES
def test_a_row_that_nobody_wants_takes_no_index_from_one_that_is_wanted(kernel: FakeKernel, mode: str) -> None:
    ours = replace(OURS, mode=mode)
    write(kernel, (None, ours))
    index = index_of(kernel, ours)
    damage(kernel, OTHER, ours)
    found = read(kernel, ours)
    assert found[ours.key] == ours
    assert found[OTHER.key].damage == "no counters of its own"
    edited = replace(ours, algorithm="source-hash")  # at the same time
    write(kernel, (ours, edited), (found[OTHER.key], None))
    assert read(kernel, edited) == {edited.key: edited}
    assert index_of(kernel, edited) == index


@MODES
def test_a_wanted_row_that_was_damaged_gets_an_index_of_its_own_and_the_other_keeps_its(
    kernel: FakeKernel, mode: str
) -> None:
    ours, other = replace(OURS, mode=mode), replace(OTHER, mode=mode, algorithm="source-hash")
    write(kernel, (None, ours), (None, other))
    index = index_of(kernel, ours)
    damage(kernel, other, ours)
    found = read(kernel, ours, other)
    assert (found[ours.key], bool(found[other.key].damage)) == (ours, True)
    write(kernel, (found[other.key], other))
    assert read(kernel, ours, other) == {ours.key: ours, other.key: other}
    assert index_of(kernel, ours) == index != index_of(kernel, other)


def test_connections_say_whose_index_it_is_where_two_rows_are_as_they_are_wanted(kernel: FakeKernel) -> None:
    ours, other = replace(OURS, mode="nat"), replace(OTHER, mode="nat")
    write(kernel, (None, ours), (None, other))
    index = index_of(kernel, ours)
    damage(kernel, other, ours)
    assert read(kernel, ours, other)[ours.key] == ours
    assert {held.row.key: held.row.damage for held in indexed_rows(kernel)}[ours.key] == ""
    write(kernel, (read(kernel, ours, other)[other.key], other))
    assert index_of(kernel, ours) == index
    assert read(kernel, ours, other) == {ours.key: ours, other.key: other}


def test_a_row_of_which_nothing_makes_sense_keeps_nobody_from_being_mended(kernel: FakeKernel) -> None:
    write(kernel, (None, OURS), (None, OTHER))
    index = index_of(kernel, OURS)
    damage(kernel, OTHER, OURS)
    rows = dict(SERVICES.unpack(kernel.dump(SERVICES.name)))
    rows = {key: value._replace(algorithm=200, mode=99) if key.vip == OTHER.vip.packed else value
            for key, value in rows.items()}  # fmt: skip
    kernel.update(SERVICES.name, [SERVICES.pack(key, value) for key, value in rows.items()])
    found = read(kernel, OURS, OTHER)
    write(kernel, (found[OTHER.key], OTHER))
    assert read(kernel, OURS, OTHER) == {OURS.key: OURS, OTHER.key: OTHER}
    assert index_of(kernel, OURS) == index
    edited = replace(OURS, algorithm="source-hash")
    damage(kernel, OTHER, OURS)
    ((key, value),) = [row for row in SERVICES.unpack(kernel.dump(SERVICES.name)) if row[0].vip == OURS.vip.packed]
    kernel.update(SERVICES.name, [SERVICES.pack(key, value._replace(algorithm=200))])
    found = read(kernel, edited, OTHER)
    write(kernel, (found[OURS.key], edited), (found[OTHER.key], OTHER))
    assert read(kernel, edited, OTHER) == {edited.key: edited, OTHER.key: OTHER}


def test_an_index_that_counters_lack_is_nobodys(kernel: FakeKernel) -> None:
    write(kernel, (None, OURS))
    ((key, value),) = SERVICES.unpack(kernel.dump(SERVICES.name))
    kernel.update(SERVICES.name, [SERVICES.pack(key, value._replace(index=9))])
    assert read(kernel, OURS)[OURS.key].damage == "no counters of its own"
