# SPDX-License-Identifier: Apache-2.0
"""least-connections: the endpoint that has fewer connections for its weight, of two that are drawn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import LOADS, AlgorithmCode, Verdict
from reconciler.dataplane.ring import turns
from reconciler.dataplane.rows import Load, Number
from reconciler.loads import loads, recount
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, WEB, Balancer
from tests.packets.frames import At, tcp
from tests.packets.test_schedule import chosen, clients

pytestmark = pytest.mark.kernel


def serve(balancer: Balancer, weights: Mapping[int, int]) -> None:
    ids = list(weights)
    for id, weight in weights.items():
        balancer.endpoint(id)
        key, row = LOADS.pack(Number(id), Load(0, 0, weight))
        assert balancer.kernel.update(LOADS.name, [(key, row)]) == [None]
    ring = [ids[i] for i in turns(list(weights.values()))]
    balancer.serve(ring=ring, algorithm=AlgorithmCode.LEAST_CONNECTIONS)


def close(balancer: Balancer, client: At, endpoint: int) -> None:
    balancer.send(tcp(client, WEB, "FA"))
    balancer.send(tcp(At(ENDPOINTS_AT[endpoint], WEB.port), client, "FA"), "back")


def held(balancer: Balancer) -> dict[int, int]:
    return {id: int(load) for id, load in enumerate(loads(balancer.kernel)) if load}


def test_whoever_has_more_gets_none_until_all_have_as_many(balancer: Balancer) -> None:
    """Two endpoints are drawn of two; the chance that both draws of 64 in a row are the same one is 2 to the -64."""
    serve(balancer, {1: 1, 2: 1})
    key, row = LOADS.pack(Number(1), Load(0, 1_000, 1))
    balancer.kernel.update(LOADS.name, [(key, row)])
    shares = Counter(chosen(balancer, clients(200)))
    assert shares[2] > shares[1] and shares[2] > 100  # half of the draws offer a choice: 150 of 200, s = 6


def test_connections_of_mixed_length_leave_all_with_what_their_weights_say(balancer: Balancer) -> None:
    rng = random.Random(7)
    weights = {1: 1, 2: 1, 3: 2, 4: 4}
    serve(balancer, weights)
    open_: list[tuple[At, int]] = []
    for client in clients(800):
        open_ += zip([client], chosen(balancer, [client]), strict=True)
        # Connections to endpoint 1 last three times as long: by turns it would have far more than its share.
        if len(open_) > 400:
            kept = [i for i in range(len(open_)) if open_[i][1] != 1 or rng.random() < 1 / 3]
            close(balancer, *open_.pop(rng.choice(kept)))
    count = Counter(endpoint for _, endpoint in open_)
    assert held(balancer) == dict(sorted(count.items()))
    for id, weight in weights.items():
        assert abs(count[id] - len(open_) * weight / 8) <= 12, count


def test_what_ends_by_a_reset_or_with_its_endpoint_counts_no_more(balancer: Balancer) -> None:
    serve(balancer, {1: 1})
    first, second = clients(2)
    chosen(balancer, [first, second])
    assert held(balancer) == {1: 2}
    balancer.send(tcp(first, WEB, "R"))
    assert held(balancer) == {1: 1}
    balancer.send(tcp(first, WEB, "R"))
    assert held(balancer) == {1: 1}


def test_a_count_of_the_table_mends_whatever_the_numbers_were(balancer: Balancer) -> None:
    serve(balancer, {1: 1, 2: 1})
    chosen(balancer, clients(60))
    right = held(balancer)
    rows = [LOADS.pack(Number(id), Load(since, counted, 1)) for id, since, counted in ((1, 2**32 - 7, 99), (2, 5, 0))]
    balancer.kernel.update(LOADS.name, rows)
    for _ in recount(balancer.kernel, 1_024):
        pass
    assert held(balancer) == right and sum(right.values()) == 60
    words = balancer.kernel.words(LOADS.name)
    assert words is not None and (words[np.array([3, 5])] == 1).all()  # the weights stay


def test_only_a_syn_opens_a_connection_as_no_other_packet_would_find_its_endpoint_again(balancer: Balancer) -> None:
    serve(balancer, {1: 1})
    balancer.send(tcp(CLIENT, WEB, "A"))
    assert balancer.verdicts() == {Verdict.CONNECTION_UNKNOWN: 1}


def test_an_endpoint_without_a_row_of_its_own_is_chosen_nevertheless(balancer: Balancer) -> None:
    """So it is while somebody writes, at the worst."""
    balancer.endpoint(1)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.LEAST_CONNECTIONS)
    _, out = balancer.send(tcp(CLIENT, WEB))
    assert Ether(out)["IP"].dst == ENDPOINTS_AT[1]
