# SPDX-License-Identifier: Apache-2.0
"""Endpoints are found among their rows without decoding them."""

from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dataplane import endpoint_table
from reconciler.dataplane.endpoint_table import Index, table, values_of, words_of
from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6, EndpointRowState
from reconciler.dataplane.rows import Address, Endpoint, Number
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.resource import Change

USABLE, RETIRED = EndpointRowState.USABLE, EndpointRowState.RETIRED
PLACES = st.tuples(
    st.sampled_from([bytes([10, 0, 0, n]) for n in range(1, 4)] + [bytes(15) + bytes([n]) for n in range(1, 4)]),
    st.sampled_from([0, 80, 443]),
)
ROWS = st.dictionaries(st.integers(1, 40), st.tuples(PLACES, st.sampled_from(list(EndpointRowState))), max_size=20)


def table_of(rows):
    """The table with these rows: number → ((address, port), state)."""
    joined, wide = [], []
    for number, ((address, port), state) in rows.items():
        is_wide = len(address) == 16
        joined.append(ENDPOINTS.pack(Number(number), Endpoint(bytes(4) if is_wide else address, port, state, pad=7)))
        if is_wide:
            wide.append(ENDPOINTS6.pack(Number(number), Address(address)))
    return table(*[(b"".join(k for k, _ in joined), b"".join(v for _, v in joined))],
                 lambda: (b"".join(k for k, _ in wide), b"".join(v for _, v in wide)))  # fmt: skip


@given(ROWS, st.lists(st.tuples(PLACES, st.sampled_from([USABLE, EndpointRowState.DISABLED])), max_size=20),
       st.booleans())  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_it_finds_what_a_dictionary_finds(rows, wanted, collide):
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # every endpoint has the hash of every other one
            patch.setattr(endpoint_table, "_FACTORS", np.zeros(3, np.uint64))
        made = table_of(rows)
        used = {number: row for number, row in sorted(rows.items()) if row[1] != EndpointRowState.FREE}
        places = np.arange(made.numbers.size)
        shown = zip(made.numbers.tolist(), made.endpoints(places), made.states.tolist(), strict=True)
        assert {number: (place, state) for number, place, state in shown} == used
        words = words_of([ip_address(a) for (a, _), _ in wanted], [port for (_, port), _ in wanted])
        found = made.rows_of(words)
        theirs = {number for number, (place, _) in used.items() if place in dict(wanted)}
        assert theirs <= set(made.numbers[found].tolist())
        assert collide or theirs == set(made.numbers[found].tolist())
        states = np.array([state for _, state in wanted], np.uint8)
        found = Index(made, made.is_retired).matches(words, states)
        for (place, state), at in zip(wanted, found.tolist(), strict=True):
            own = [number for number, row in used.items() if row[0] == place]
            is_right = len(own) == 1 and used[own[0]][1] == state
            assert at < 0 or (is_right and made.numbers[at] == own[0])
            assert at >= 0 or not is_right or collide
        free = made.free_numbers(5, 45)
        assert free == [number for number in range(1, 45) if number not in used][:5]


@pytest.mark.parametrize("address", ["10.2.0.1", "2001:db8::1", "::1", "fe80::1:2:3"])
@pytest.mark.parametrize("port", [0, 8080])
def test_a_row_is_found_by_the_id_of_its_key_alone(address, port):
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("DSR_L3", "MAGLEV", "IPV6"))
    rows = [EndpointRow(ip_address(address), port), EndpointRow(ip_address("10.9.9.9"), 1)]
    kind = EndpointKind(kernel)
    assert kind.write([Change(row.key, None, row) for row in rows]) == [None, None]
    assert kind.read({}, {rows[0].key}).resources == (rows[0],)


def test_what_is_right_is_the_wanted_object_itself():
    kernel = FakeKernel()
    kernel.load_program("lbctl_x", ("DSR_L3", "MAGLEV"))
    right, wrong = EndpointRow(ip_address("10.2.0.1")), EndpointRow(ip_address("10.2.0.2"))
    kind = EndpointKind(kernel)
    kind.write([Change(row.key, None, row) for row in (right, wrong)])
    disabled = EndpointRow(wrong.address, disabled=True)
    found = {row.key: row for row in kind.read({right.key: right, wrong.key: disabled}).resources}
    assert found[right.key] is right
    assert found[wrong.key] == wrong


@given(st.lists(st.tuples(st.ip_addresses(), st.integers(0, 65_535), st.sampled_from(list(EndpointRowState)))))
def test_rows_packed_together_are_those_packed_one_by_one(found):
    words = words_of([address for address, _, _ in found], [port for _, port, _ in found])
    one_by_one = [
        ENDPOINTS.value.pack(Endpoint(address.packed if address.version == 4 else bytes(4), port, state))
        for address, port, state in found
    ]
    assert values_of(words, [state for _, _, state in found]) == one_by_one
