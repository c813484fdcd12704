# SPDX-License-Identifier: Apache-2.0
"""Which endpoint a new connection goes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

import pytest
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import AlgorithmCode, EndpointRowState, Verdict
from reconciler.kernel.bpf import XdpVerdict
from reconciler.ring_store import remove_rings
from tests.packets.balancer import ENDPOINTS_AT, VIP, WEB, Balancer
from tests.packets.frames import At, tcp

pytestmark = pytest.mark.kernel

IDS = {address: id for id, address in ENDPOINTS_AT.items()}


@pytest.fixture(autouse=True)
def _endpoints(balancer: Balancer) -> None:
    for id in ENDPOINTS_AT:
        balancer.endpoint(id)


def clients(count: int, port: int = 40_000) -> list[At]:
    """As many clients, each with an address of its own."""
    return [At(f"10.{7 + i // 62_500}.{i // 250 % 250}.{1 + i % 250}", port) for i in range(count)]


def chosen(balancer: Balancer, sources: Iterable[At], to: At = WEB, flags: str = "S") -> list[int]:
    """The endpoint that each of these clients gets."""
    found = []
    for source in sources:
        action, out = balancer.send(tcp(source, to, flags))
        assert action == XdpVerdict.REDIRECT
        found.append(IDS[Ether(out)["IP"].dst])
    return found


def refused(balancer: Balancer, sources: Sequence[At], flags: str = "S") -> dict[Verdict, int]:
    """Why these clients get none."""
    for source in sources:
        assert balancer.send(tcp(source, WEB, flags)).verdict == XdpVerdict.DROP
    assert balancer.connections() == {}
    return balancer.verdicts()


# --- round-robin ---------------------------------------------------------------------------------------------
def test_round_robin_follows_the_ring_slot_by_slot_and_weights_with_it(balancer: Balancer) -> None:
    ring = [1, 2, 1, 3, 1, 4, 1]
    balancer.serve(ring=ring)
    assert chosen(balancer, clients(17)) == (ring * 3)[:17]


def test_packets_of_a_connection_take_no_turn(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3])
    first, second = clients(2)
    assert chosen(balancer, [first, first, first, second]) == [1, 1, 1, 2]
    assert chosen(balancer, [first, second, first], flags="A") == [1, 2, 1]


def test_services_with_a_ring_each_take_turns_apart(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3])
    balancer.serve(At(VIP, 443), ring=[3, 2, 1], index=2)
    first, second = clients(2)
    assert chosen(balancer, [first]) + chosen(balancer, [first], At(VIP, 443)) == [1, 3]
    assert chosen(balancer, [second]) + chosen(balancer, [second], At(VIP, 443)) == [2, 2]


def test_a_turn_past_32_bits_is_a_turn_like_any_other(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3])
    balancer.turn(1, 2**32 + 1)
    expected = [1 + (2**32 + 1 + i) % 3 for i in range(4)]
    assert chosen(balancer, clients(4)) == expected


def test_a_new_ring_is_obeyed_at_once_whatever_its_size(balancer: Balancer) -> None:
    balancer.serve(ring=[1])
    chosen(balancer, clients(5))
    balancer.ring(1, [2, 3] * 500)
    assert Counter(chosen(balancer, clients(4, port=40_001))) == {2: 2, 3: 2}


def test_the_turn_of_an_endpoint_that_cannot_be_used_goes_to_the_next(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3])
    balancer.endpoint(2, state=EndpointRowState.DISABLED)
    assert chosen(balancer, clients(6)) == [1, 3, 1, 3, 1, 3]


def test_without_a_flow_only_a_syn_opens_a_connection_and_the_kernel_resets_the_rest(balancer: Balancer) -> None:
    balancer.serve(ring=[1])
    source = clients(1)[0]
    for flags in ("A", "PA", "SA", "FA", "R", "SF", "SR", ""):
        content = tcp(source, WEB, flags)
        assert balancer.send(content) == (XdpVerdict.PASS, content)
    assert balancer.verdicts() == {Verdict.CONNECTION_UNKNOWN: 8}
    assert balancer.connections() == {}


# --- source-hash ---------------------------------------------------------------------------------------------
def test_source_hash_gives_a_client_the_same_endpoint_whatever_its_port(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3, 4], algorithm=AlgorithmCode.SOURCE_HASH)
    by_port = [chosen(balancer, clients(50, port)) for port in (1024, 40_000, 65_535)]
    assert by_port[0] == by_port[1] == by_port[2]
    assert set(by_port[0]) == {1, 2, 3, 4}


def test_source_hash_spreads_neighbouring_clients_by_the_share_of_slots(balancer: Balancer) -> None:
    """4,000 addresses, one after the other: within five standard deviations of the fair share."""
    balancer.serve(ring=[1, 2, 3, 3] * 16, algorithm=AlgorithmCode.SOURCE_HASH)
    counts = Counter(chosen(balancer, clients(4000)))
    for id, share in ((1, 0.25), (2, 0.25), (3, 0.5)):
        assert abs(counts[id] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5


def test_source_hash_moves_only_the_clients_of_the_slots_that_change(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3, 4], algorithm=AlgorithmCode.SOURCE_HASH)
    before = chosen(balancer, clients(100))
    balancer.ring(1, [1, 2, 4, 4])
    assert chosen(balancer, clients(100, port=40_001)) == [4 if id == 3 else id for id in before]


def test_source_hash_finds_the_endpoint_again_after_the_flow_table_is_lost(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3, 4], algorithm=AlgorithmCode.SOURCE_HASH)
    before = chosen(balancer, clients(20))
    balancer.table.clear()
    assert chosen(balancer, clients(20), flags="A") == before


def test_source_hash_spreads_the_clients_of_an_endpoint_that_cannot_be_used(balancer: Balancer) -> None:
    ring = [1, *[2, 3, 4] * 5]
    balancer.serve(ring=ring, algorithm=AlgorithmCode.SOURCE_HASH)
    sources = clients(960)
    found = zip(sources, chosen(balancer, sources), strict=True)
    orphans = [At(client.address, 40_001) for client, id in found if id == 1]
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    counts = Counter(chosen(balancer, orphans))
    assert len(orphans) > 40
    assert all(counts[id] > len(orphans) // 5 for id in (2, 3, 4))


# --- maglev --------------------------------------------------------------------------------------------------
def mixed(number: int) -> int:
    """The finalizer of MurmurHash3."""
    number ^= number >> 16
    number = number * 0x85EBCA6B % 2**32
    number ^= number >> 13
    number = number * 0xC2B2AE35 % 2**32
    return number ^ number >> 16


def maglev_slot(client: At, slots: int, protocol: int = 6) -> int:
    """The slot of a client: the same on every balancer of a group, whatever its version."""
    return mixed((mixed(int(IPv4Address(client.address))) + (client.port << 8 | protocol)) % 2**32) * slots >> 32


def test_maglev_gives_each_connection_the_slot_that_every_balancer_gives_it(balancer: Balancer) -> None:
    ring = [1, 2, 3, 4, 4, 3, 1]
    balancer.serve(ring=ring, algorithm=AlgorithmCode.MAGLEV)
    sources = [At(client.address, port) for client in clients(60) for port in (1, 40_000, 65_535)]
    assert chosen(balancer, sources) == [ring[maglev_slot(client, len(ring))] for client in sources]


def test_maglev_spreads_the_connections_of_one_client_by_the_share_of_slots(balancer: Balancer) -> None:
    """4,000 ports, one after the other: within five standard deviations of the fair share."""
    balancer.serve(ring=[1, 2, 3, 3] * 16, algorithm=AlgorithmCode.MAGLEV)
    counts = Counter(chosen(balancer, [At("10.1.0.2", port) for port in range(10_000, 14_000)]))
    for id, share in ((1, 0.25), (2, 0.25), (3, 0.5)):
        assert abs(counts[id] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5


def test_maglev_finds_the_endpoint_again_after_the_flow_table_is_lost(balancer: Balancer) -> None:
    balancer.serve(ring=[1, 2, 3, 4], algorithm=AlgorithmCode.MAGLEV)
    before = chosen(balancer, clients(20))
    balancer.table.clear()
    assert chosen(balancer, clients(20), flags="A") == before
    assert set(before) == {1, 2, 3, 4}


# --- none ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", AlgorithmCode)
def test_an_empty_ring_has_no_endpoint_for_anybody(balancer: Balancer, algorithm: AlgorithmCode) -> None:
    balancer.serve(ring=[], algorithm=algorithm)
    assert refused(balancer, clients(3)) == {Verdict.NO_ENDPOINT: 3}


@pytest.mark.parametrize("algorithm", AlgorithmCode)
def test_a_ring_that_is_not_there_has_no_endpoint_for_anybody(balancer: Balancer, algorithm: AlgorithmCode) -> None:
    balancer.serve(ring=[1], algorithm=algorithm)
    remove_rings(balancer.kernel, [1])
    assert refused(balancer, clients(3)) == {Verdict.NO_ENDPOINT: 3}


@pytest.mark.parametrize("algorithm", AlgorithmCode)
@pytest.mark.parametrize("state", [s for s in EndpointRowState if s is not EndpointRowState.USABLE])
def test_only_usable_endpoints_get_new_connections(
    balancer: Balancer, algorithm: AlgorithmCode, state: EndpointRowState
) -> None:
    balancer.serve(ring=[1, 2], algorithm=algorithm)
    for id in (1, 2):
        balancer.endpoint(id, state=state)
    assert refused(balancer, clients(3)) == {Verdict.NO_ENDPOINT: 3}


@pytest.mark.parametrize("algorithm", AlgorithmCode)
def test_slots_without_an_endpoint_and_ids_out_of_range_are_no_endpoints(
    balancer: Balancer, algorithm: AlgorithmCode
) -> None:
    balancer.endpoint(0, ENDPOINTS_AT[1])
    balancer.serve(ring=[0, 131_072, 2**32 - 1], algorithm=algorithm)
    assert refused(balancer, clients(3)) == {Verdict.NO_ENDPOINT: 3}
