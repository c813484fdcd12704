# SPDX-License-Identifier: Apache-2.0
"""A ring that the kernel holds as it was written is known without being built."""

from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from reconciler.dataplane.layout import RING_CHUNKS
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds import ring as rings
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import row_of
from reconciler.kinds.ring import Ring, build
from reconciler.kinds.rings import RingKind
from reconciler.model import Algorithm, Endpoint, Pool
from reconciler.plan import fingerprint, is_fingerprint
from reconciler.resource import Change
from reconciler.ring_names import RingNames
from reconciler.ring_store import Rings

POOL = Pool("web", tuple(Endpoint(IPv4Address(f"10.2.0.{n}"), weight=n) for n in (1, 2, 3)))


@pytest.fixture(params=[Algorithm.MAGLEV, Algorithm.ROUND_ROBIN])
def held(request):
    """A kernel with the ring of a pool, and the ring as another process would make it, not built yet."""
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("NAT", "MAGLEV", "ROUND_ROBIN"))
    EndpointKind(kernel).write([Change(row.key, None, row) for row in map(row_of, POOL.endpoints)])
    written = build(POOL, request.param)
    assert RingKind(kernel).write([Change(written.key, None, written)]) == [None]
    del written
    return kernel, build(replace(POOL), request.param)


def read(kernel, wanted):
    (found,) = RingKind(kernel).read({wanted.key: wanted}).resources
    return found


def test_what_was_written_is_the_wanted_ring_itself_and_nothing_is_built(held, monkeypatch):
    kernel, wanted = held
    monkeypatch.setattr(rings, "_slots_of", lambda *_: pytest.fail("a ring was built"))
    assert read(kernel, wanted) is wanted


def test_a_slot_that_somebody_overwrote_is_drift(held):
    kernel, wanted = held
    opened = Rings(kernel)
    place = opened.place(RingNames(kernel).number(wanted.name))
    slots = opened.slots(place).copy()
    slots[0] = slots[slots != slots[0]][0]
    opened.write_slots(place, slots)
    found = read(kernel, wanted)
    assert found != wanted
    assert isinstance(found, Ring)


@pytest.mark.parametrize("bit", [2, 6, 7])
def test_a_bit_that_no_slot_has_is_drift(held, bit):
    kernel, wanted = held
    place = Rings(kernel).place(RingNames(kernel).number(wanted.name))
    assert place.form.narrow == 2
    kernel.chunk(RING_CHUNKS.name, place.chunk)[place.first_word :].view(np.uint8)[5] |= 1 << bit
    assert read(kernel, wanted) is not wanted


def test_numbers_that_passed_to_other_endpoints_are_seen(held):
    kernel, wanted = held
    rows = kernel.maps["endpoints"]
    one, two = (number.to_bytes(4, "little") for number in (1, 2))
    rows[one], rows[two] = rows[two], rows[one]
    assert read(kernel, wanted) != wanted


def test_without_its_note_a_ring_is_compared_slot_by_slot(held):
    kernel, wanted = held
    ((name, note),) = kernel.maps["ring_names"].items()
    kernel.maps["ring_names"][name] = note[:4] + bytes(20)
    found = read(kernel, wanted)
    assert found is not wanted
    assert found == wanted


def test_other_weights_make_another_ring_and_the_same_ratios_the_same(held):
    _, wanted = held
    twice = tuple(replace(endpoint, weight=2 * endpoint.weight) for endpoint in POOL.endpoints)
    assert build(replace(POOL, endpoints=twice), wanted.algorithm) == wanted
    equal = tuple(replace(endpoint, weight=1) for endpoint in POOL.endpoints)
    assert build(replace(POOL, endpoints=equal), wanted.algorithm) != wanted


def test_a_ring_is_written_down_as_applied_without_being_built(held, monkeypatch):
    _, wanted = held
    monkeypatch.setattr(rings, "_slots_of", lambda *_: pytest.fail("a ring was built"))
    assert is_fingerprint(fingerprint(wanted), wanted)
    other = build(replace(POOL, endpoints=POOL.endpoints[1:]), wanted.algorithm)
    assert fingerprint(other) != fingerprint(wanted)


def test_a_ring_from_a_saved_plan_has_a_fingerprint_of_the_same_ring_from_manifests(held):
    _, wanted = held
    assert is_fingerprint(fingerprint(Ring(wanted.name, wanted.members, wanted.slots)), wanted)
    assert not is_fingerprint(fingerprint(Ring(wanted.name, wanted.members[:1], bytes(4))), wanted)


def test_rings_name_their_endpoints_however_many_are_asked():
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("NAT", "MAGLEV"))
    pools = [
        Pool(f"web-{n:02}", tuple(Endpoint(IPv4Address(f"10.2.{n}.{m}")) for m in (1, 2))) for n in range(30)
    ]
    rows = [row for pool in pools for row in map(row_of, pool.endpoints)]
    EndpointKind(kernel).write([Change(row.key, None, row) for row in rows])
    written = [build(pool, Algorithm.MAGLEV) for pool in pools]
    RingKind(kernel).write([Change(ring.key, None, ring) for ring in written])
    found = RingKind(kernel).read({}).resources
    assert {ring.id: ring.members for ring in found} == {ring.id: ring.members for ring in written}


def test_an_error_names_some_of_the_endpoints_that_are_not_there():
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("NAT", "MAGLEV"))
    ring = build(Pool("web", tuple(Endpoint(IPv4Address(f"10.2.0.{n}")) for n in range(1, 51))), Algorithm.MAGLEV)
    (error,) = RingKind(kernel).write([Change(ring.key, None, ring)])
    assert "10.2.0.1, " in str(error)
    assert str(error).count("10.2.0.") == 20
    assert "and 30 more" in str(error)
