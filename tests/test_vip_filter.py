# SPDX-License-Identifier: Apache-2.0
"""One bit for each hash of an address, and how it is kept in step with the rows."""

from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.dataplane.layout import MAPS, VIP_FILTER, VIPS
from reconciler.dataplane.vip_filter import filter_of, let_pass
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.vip import VipKind, VipRow
from reconciler.resource import Change
from tests.packets.test_ipv6 import folded
from tests.packets.test_schedule import mixed

packed = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(lambda address: address.packed)


def number_of(address):
    """As the program computes it, from scratch."""
    found = ip_address(address)
    return mixed(int(found) if found.version == 4 else folded(str(found))) >> 16


@given(packed)
def test_an_address_sets_the_bit_of_its_hash(address):
    content = filter_of([address])
    number = number_of(address)
    assert content[number >> 3] == 1 << (number & 7)
    assert sum(map(bool, content)) == 1


@given(st.sets(packed, max_size=50), st.sets(packed, max_size=50))
def test_a_filter_lets_its_addresses_pass_and_others_only_if_they_share_a_bit(own, others):
    content = filter_of(own)
    numbers = {number_of(address) for address in own}
    assert let_pass(own, content) == own
    assert let_pass(others, content) == {address for address in others if number_of(address) in numbers}


def row(address, undefined="drop"):
    return VipRow(ip_address(address), undefined)


def put(*rows):
    return [Change(r.key, None, r) for r in rows]


def drop(*rows):
    return [Change(r.key, r, None) for r in rows]


def filter_in(kernel):
    return kernel.maps[VIP_FILTER.name].get(bytes(4), bytes(VIP_FILTER.value_size))


A, B, C = row("20.20.20.1"), row("2001:db8:20::1"), row("20.20.20.3")


@pytest.fixture
def kernel():
    return FakeKernel(maps={name: {} for name in MAPS})


@pytest.fixture
def kind(kernel):
    return VipKind(kernel)


def test_the_filter_comes_before_rows_and_goes_after_them_in_one_write(kernel, kind):
    assert kind.write(put(A, B, C)) == [None] * 3
    assert [what[0] for _, what in kernel.writes] == ["vip_filter", "vips", "vips", "vips6"]
    assert filter_in(kernel) == filter_of([r.address.packed for r in (A, B, C)])
    kernel.writes.clear()
    assert kind.write(drop(A, B)) == [None] * 2
    assert [what[0] for _, what in kernel.writes] == ["vips", "vips6", "vip_filter"]
    assert filter_in(kernel) == filter_of([C.address.packed])
    assert kind.write(drop(C)) == [None]
    assert not any(filter_in(kernel))


def test_another_policy_leaves_the_filter_alone(kernel, kind):
    kind.write(put(A))
    kernel.writes.clear()
    kind.write([Change(A.key, A, row("20.20.20.1", "pass"))])
    assert [what[0] for _, what in kernel.writes] == ["vips"]


def test_a_row_that_the_filter_holds_back_is_absent_and_comes_back_with_its_bit(kernel, kind):
    kind.write(put(A, B))
    kernel.maps[VIP_FILTER.name] = {bytes(4): filter_of([B.address.packed])}
    assert kind.read({}).resources == (B,)
    assert kind.write(put(A)) == [None]
    assert set(kind.read({}).resources) == {A, B}
    kernel.maps[VIP_FILTER.name] = {}
    assert kind.read({}).resources == ()
    assert kind.write(put(A)) == [None]
    assert kind.read({}).resources == (A,)  # what nobody asked for again doesn't come back with it


def test_two_vips_of_one_bit_share_it_until_both_are_gone(kernel, kind):
    """Of 65,536 bits and a thousand addresses, some are shared."""
    addresses = sorted((ip_address("30.0.0.0") + i for i in range(1_000)), key=lambda a: number_of(a.packed))
    first, second = next((a, b) for a, b in pairwise(addresses) if number_of(a.packed) == number_of(b.packed))
    rows = [VipRow(first, "drop"), VipRow(second, "drop")]
    kind.write(put(*rows))
    kind.write(drop(rows[0]))
    assert kind.read({}).resources == (rows[1],)
    kind.write(drop(rows[1]))
    assert not any(filter_in(kernel))


def test_without_its_filter_no_row_is_written(kernel, kind):
    update = kernel.update
    kernel.update = lambda name, rows: (
        [KernelError("no")] * len(rows) if name == VIP_FILTER.name else update(name, rows)
    )  # fmt: skip
    assert [str(outcome) for outcome in kind.write(put(A, B))] == ["no", "no"]
    assert kernel.maps[VIPS.name] == {}


def test_bits_of_rows_that_found_no_place_are_taken_back(kernel, kind):
    update = kernel.update
    kernel.update = lambda name, rows: [KernelError("full")] * len(rows) if name == VIPS.name else update(name, rows)
    assert [outcome and str(outcome) for outcome in kind.write(put(A, B))] == ["full", None]
    assert filter_in(kernel) == filter_of([B.address.packed])
