# SPDX-License-Identifier: Apache-2.0
"""Weights for least-connections read back as they were written, and go before their endpoints do."""

from ipaddress import IPv4Address, IPv6Address

from reconciler.dataplane.layout import LOADS, ConnectionState
from reconciler.dataplane.rows import Load, Number
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import EndpointKind, numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.weight import Weight, WeightKind
from reconciler.loads import loads, recount
from reconciler.resource import Change
from tests.connections import connection, put

FEATURES = ("NAT", "IPV6", "LEAST_CONNECTIONS")
ROWS = [EndpointRow(IPv4Address("10.2.0.1") + n, 8080) for n in range(40)]
ROWS.append(EndpointRow(IPv6Address("2001:db8::1"), 8080))


def kernel(features=FEATURES):
    made = FakeKernel()
    made.load_program("lbctl_x", features)
    assert not any(EndpointKind(made).write([Change(row.key, None, row) for row in ROWS]))
    return made


def number(made, row):
    (found,) = numbered_rows(made, [row.id])
    return found.number


def test_weights_read_back_and_deleted_ones_are_gone():
    kind = WeightKind(kernel())
    weights = [Weight(row.id, n + 1) for n, row in enumerate(ROWS)]
    assert not any(kind.write([Change(weight.key, None, weight) for weight in weights]))
    assert set(kind.read({}).resources) == set(weights)
    heavier = Weight(ROWS[0].id, 7)
    changes = [Change(weights[0].key, weights[0], heavier), Change(weights[1].key, weights[1], None)]
    assert kind.write(changes) == [None, None]
    assert set(kind.read({}).resources) == {heavier, *weights[2:]}


def test_the_weight_of_nobody_is_found_and_removed():
    made = kernel()
    made.update(LOADS.name, [LOADS.pack(Number(77), Load(0, 0, 3))])
    (strange,) = WeightKind(made).read({}).resources
    assert strange.id == "nobody's row 77" and strange.flaw
    assert WeightKind(made).write([Change(strange.key, strange, None)]) == [None]
    assert WeightKind(made).read({}).resources == ()


def test_the_weight_of_nobody_stays_if_an_endpoint_got_its_number_meanwhile():
    made = kernel()
    weight = Weight(ROWS[0].id, 3)
    WeightKind(made).write([Change(weight.key, None, weight)])
    strange = Weight(f"nobody's row {number(made, ROWS[0])}", 3)
    assert WeightKind(made).write([Change(strange.key, strange, None)]) == [None]
    assert WeightKind(made).read({}).resources == (weight,)


def test_a_weight_needs_its_endpoint_and_a_program_that_knows_it():
    change = Change(Weight("10.9.9.9:1", 1).key, None, Weight("10.9.9.9:1", 1))
    assert "is not there" in str(WeightKind(kernel()).write([change])[0])
    change = Change(Weight(ROWS[0].id, 1).key, None, Weight(ROWS[0].id, 1))
    assert "knows no least-connections" in str(WeightKind(kernel(("NAT", "IPV6"))).write([change])[0])
    assert WeightKind(kernel(("NAT", "IPV6"))).read({}).resources == ()


def test_connections_are_counted_by_endpoint_but_for_those_that_are_over_or_silent():
    made = kernel()
    one, two = number(made, ROWS[0]), number(made, ROWS[1])
    made.update(LOADS.name, [LOADS.pack(Number(one), Load(2**32 - 9, 4, 2)), LOADS.pack(Number(9), Load(3, 1, 0))])
    put(made, [
        connection(1, endpoint=one), connection(2, endpoint=one, state=ConnectionState.OVER),
        connection(3, endpoint=two), connection(4, endpoint=two, silence=1_000), connection(5, endpoint=two),
        connection(6, endpoint=one, state=ConnectionState.OPENING),
    ])  # fmt: skip
    assert sum(1 for _ in recount(made, 20_000)) > 1
    found = loads(made)
    assert (found[one], found[two], found[9], found.sum()) == (2, 2, 0, 4)
    assert LOADS.value.unpack(dict(made.dump(LOADS.name))[LOADS.key.pack(Number(one))]).since == 2**32 - 9
