# SPDX-License-Identifier: Apache-2.0
"""One bit for each hash of an endpoint's address, and how it is kept in step with the rows."""

from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.dataplane.endpoint_filter import BITS_A_LINE, changed, filter_of, let_pass, lines_of
from reconciler.dataplane.endpoint_table import words_of
from reconciler.dataplane.layout import ENDPOINT_FILTER, ENDPOINTS
from reconciler.errors import KernelError
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.limits import Sizes
from reconciler.resource import Change
from tests.packets.test_ipv6 import folded
from tests.packets.test_schedule import mixed

NAT, DSR = ("NAT", "IPV6"), ("DSR_L3", "IPV6")
# Not those that end in zeros: a row of 0.0.0.0 is none.
addresses = st.ip_addresses().filter(int)
counts = st.integers(1, 5_000)


def words(some):
    return words_of(list(some), [80] * len(some))


def number_of(address, count):
    """As the program computes it, from scratch."""
    hashed = mixed(int(address) if address.version == 4 else folded(str(address)))
    return (hashed * count >> 32) * BITS_A_LINE + hashed % BITS_A_LINE


@given(addresses, counts)
def test_an_address_sets_the_bit_of_its_hash(address, count):
    number = number_of(address, count)
    lines = filter_of(words([address]), count)
    assert int(lines[number // 512][number % 512 // 64]) == 1 << number % 64
    assert np.count_nonzero(lines) == 1


@given(st.sets(addresses, max_size=50), st.sets(addresses, max_size=50), counts)
def test_a_filter_lets_its_addresses_pass_and_others_only_if_they_share_a_bit(own, others, count):
    lines = filter_of(words(own), count)
    assert let_pass(words(own), lines).all()
    numbers = {number_of(address, count) for address in own}
    others = list(others)
    assert let_pass(words(others), lines).tolist() == [number_of(other, count) in numbers for other in others]


@given(st.sets(addresses, max_size=20), st.sets(addresses, max_size=20), counts)
def test_what_changed_makes_one_filter_of_another(before, after, count):
    held, wanted = filter_of(words(before), count), filter_of(words(after), count)
    rows = dict(changed(np.zeros_like(held), held)) | dict(changed(held, wanted))
    assert (lines_of((b"".join(rows), b"".join(rows.values())), count) == wanted).all()


def row(address, port=80):
    return EndpointRow(ip_address(address), port)


def put(*rows):
    return [Change(r.key, None, r) for r in rows]


A, B, C = row("10.2.0.12"), row("2001:db8:2::15"), row("10.2.0.13")
assert len({number_of(r.address, 1) for r in (A, B, C)}) == 3


@pytest.fixture
def kernel():
    kernel = FakeKernel()
    kernel.load_program("lbctl_1", NAT, Sizes(endpoints=63))
    return kernel


@pytest.fixture
def kind(kernel):
    return EndpointKind(kernel)


def held(kernel):
    return lines_of(kernel.joined(ENDPOINT_FILTER.name), kernel.capacity(ENDPOINT_FILTER.name))


def of(*rows):
    return filter_of(words([r.address for r in rows]), 1)


def test_the_filter_comes_before_rows_and_stays_while_they_are_retired(kernel, kind):
    kernel.writes.clear()
    assert kind.write(put(A, B)) == [None] * 2
    assert [what[0] for _, what in kernel.writes][:2] == ["endpoint_filter", "endpoints6"]
    assert kind.write([Change(A.key, A, None)]) == [None]
    assert (held(kernel) == of(A, B)).all()
    kernel.writes.clear()
    assert kind.write(put(A)) == [None]
    assert [what[0] for _, what in kernel.writes] == ["endpoints"]


def test_a_row_that_the_filter_holds_back_is_absent_and_comes_back_with_its_bit(kernel, kind):
    kind.write(put(A, B))
    kernel.maps[ENDPOINT_FILTER.name] = dict(changed(np.zeros_like(of(B)), of(B)))
    assert kind.read({A.key: A, B.key: B}).resources == (B,)
    assert set(kind.read({}).resources) == {A, B}, "what nobody wants has to go"
    assert [key for keys in kind.look({A.key: A, B.key: B}) for key in keys] == [A.key]
    assert kind.write(put(A)) == [None]
    assert set(kind.read({A.key: A, B.key: B}).resources) == {A, B}
    assert len(kernel.maps[ENDPOINTS.name]) == 2


def test_without_its_filter_no_row_is_written(kernel, kind):
    update = kernel.update
    kernel.update = lambda name, rows: (
        [KernelError("no")] * len(rows) if name == ENDPOINT_FILTER.name else update(name, rows)
    )  # fmt: skip
    assert [str(outcome) for outcome in kind.write(put(A, B))] == ["no", "no"]
    assert not kernel.maps[ENDPOINTS.name]


def test_bits_of_rows_that_passed_to_other_endpoints_go_with_the_next_ones(kernel, kind):
    old = [row(f"10.3.0.{n}") for n in range(1, 64)]
    assert not any(kind.write(put(*old)))
    assert not any(kind.write([Change(r.key, r, None) for r in old[:3]]))
    assert kind.write(put(A)) == [None]
    assert (held(kernel) == of(*old, A)).all()
    assert kind.write(put(C)) == [None]
    assert (held(kernel) == of(*old[1:], A, C)).all()


def test_a_program_with_nat_begins_with_the_endpoints_of_one_without(kernel, kind):
    kernel.unload_program()
    kernel.load_program("lbctl_2", DSR)
    assert not any(kind.write(put(A, B)))
    assert set(kind.read({A.key: A, B.key: B}).resources) == {A, B}
    kernel.load_program("lbctl_3", NAT, Sizes(endpoints=1_000))
    assert set(kind.read({A.key: A, B.key: B}).resources) == {A, B}
