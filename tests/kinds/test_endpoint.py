# SPDX-License-Identifier: Apache-2.0
"""What a pool asks for: rows of endpoints, and the ids of these rows."""

import gc
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds import ring as rings
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow, row_of, rows_of
from reconciler.kinds.ring import build
from reconciler.live import read_live
from reconciler.model import Algorithm, Endpoint, Pool, text_of
from reconciler.plan import fingerprint
from reconciler.resource import Change
from reconciler.view import view
from tests import big_fleet

POOL = Pool("web", tuple(Endpoint(IPv4Address("10.0.0.1") + i, port=80, weight=1 + i) for i in range(4)))


@given(st.ip_addresses())
def test_the_text_of_an_address_is_that_of_the_standard_library(address):
    assert text_of(address) == str(address)


@pytest.mark.parametrize(("text", "port", "expected"), [
    ("10.0.0.1", 0, "10.0.0.1"), ("10.0.0.1", 80, "10.0.0.1:80"),
    ("2001:db8::1", 0, "2001:db8::1"), ("2001:db8::1", 443, "[2001:db8::1]:443"),
])  # fmt: skip
def test_only_an_ipv6_address_with_a_port_is_in_brackets(text, port, expected):
    address = IPv6Address(text) if ":" in text else IPv4Address(text)
    assert EndpointRow(address, port).id == expected


def test_rows_of_a_pool_are_those_of_its_endpoints_whichever_pool_was_asked_for_before():
    other = replace(POOL, endpoints=POOL.endpoints[:2])
    for pool in (POOL, other, POOL, POOL):
        assert rows_of(pool) == tuple(map(row_of, pool.endpoints))


def test_pools_that_differ_in_other_things_than_members_and_weights_have_one_ring(monkeypatch):
    ring = build(POOL, Algorithm.MAGLEV)
    with monkeypatch.context() as patch:
        patch.setattr(rings, "_slots_of", lambda *_: pytest.fail("a ring was built"))
        assert build(replace(POOL, labels=(("team", "a"),)), Algorithm.MAGLEV) == ring
    first = replace(POOL.endpoints[0], weight=9)
    assert build(replace(POOL, endpoints=(first, *POOL.endpoints[1:])), Algorithm.MAGLEV) != ring
    assert fingerprint(build(replace(POOL, ring_size=64), Algorithm.MAGLEV)) != fingerprint(ring)


@pytest.mark.parametrize("is_on", [True, False])
def test_a_compilation_leaves_garbage_collection_as_it_was(is_on):
    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        compile_node(view(big_fleet.fleet(3), None, ""))
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_many_endpoints_that_nobody_wants_are_found_by_their_names():
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("NAT", "MAGLEV"))
    rows = [EndpointRow(IPv4Address("10.2.0.0") + n) for n in range(200)]
    kind = EndpointKind(kernel)
    kind.write([Change(row.key, None, row) for row in rows])
    kind.write([Change(row.key, row, None) for row in rows[50:]])
    live = read_live(kernel, only=[row.key for row in rows])
    assert live.resources.keys() == {row.key for row in rows[:50]}
