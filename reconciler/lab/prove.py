# SPDX-License-Identifier: Apache-2.0
"""Proof that a service works: real requests, answered by the right endpoints, over the right way.

An answer alone proves little: a dead VIP, a balancer that knows one endpoint only, or an endpoint that answers
past the balancer can all leave some requests answered. Each of these fails here, and the message says which.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import product
from math import gcd

from reconciler.lab.capture import Packet
from reconciler.lab.lab import Lab
from reconciler.lab.topology import host_of
from reconciler.lab.traffic import Outcome
from reconciler.model import Address, Algorithm, EndpointState, Fleet, Mode, Service

_MIN_REQUESTS = 24
_CLIENTS = 64
_AT_ONCE = 32
_REQUESTS_PER_CLIENT = 2
_TOLERANCE = 0.1
_PAYLOAD_BYTES = 100_000
_RELIABLE_SHARE = 0.1
"""An endpoint with at least this share gets none of 64 client addresses only once in 800 runs."""


def prove_service(lab: Lab, name: str) -> None:
    """Check every port of every VIP of a service, as the lab's fleet describes it. Raises AssertionError.

    With round-robin each endpoint must answer its share of new connections; with source-hash every client must
    keep its endpoint; with maglev connections are spread. Replies must enter the balancer behind the endpoint
    and leave it with the VIP's address, or, with direct server return, not come near it.
    """
    service = next(service for service in lab.fleet.services if service.name == name)
    for vip, port in product(service.vips, service.ports):
        weights = weights_of(lab.fleet, service, port)
        assert weights, f"{service.name} has no endpoint that could answer"
        outcomes, packets = _send(lab, service, vip, port, weights)
        if service.mode.is_dsr:
            _check_direct_way(lab, service, vip, port, packets, outcomes)
        elif service.mode is Mode.FULLNAT:
            _check_both_ways(lab, vip, packets)
        else:
            _check_way(lab, vip, port, packets)
        _check_answers(outcomes)
        answered = Counter(outcome.endpoint for outcome in outcomes)
        assert set(answered) <= set(weights), f"answers from {sorted(set(answered) - set(weights))}, not in the pool"
        if service.algorithm is Algorithm.ROUND_ROBIN and not service.affinity:
            check_shares(answered, weights)
        else:
            _check_spread(answered, weights)
        if service.affinity or service.algorithm is Algorithm.SOURCE_HASH:
            _check_affinity(outcomes)
        _check_answers(lab.load(vip, port, count=4, payload_bytes=_PAYLOAD_BYTES).wait())


def weights_of(fleet: Fleet, service: Service, port: int) -> dict[str, int]:
    """The weight of each endpoint that new connections may go to, by `address:port`."""
    pool = next(pool for pool in fleet.pools if pool.name == service.pool)
    return {
        f"{endpoint.address}:{endpoint.port or service.target_port or port}": endpoint.weight
        for endpoint in pool.endpoints
        if endpoint.state is EndpointState.ACTIVE and endpoint.weight
    }


def _send(
    lab: Lab, service: Service, vip: Address, port: int, weights: dict[str, int]
) -> tuple[list[Outcome], list[Packet]]:
    """Send requests, each on a connection of its own. Returns their outcomes, and the packets that passed the
    balancer."""
    if service.algorithm is Algorithm.ROUND_ROBIN and not service.affinity:
        turns = sum(weights.values()) // gcd(*weights.values())
        count, clients = turns * -(-_MIN_REQUESTS // turns), 1
    else:
        count, clients = _CLIENTS * _REQUESTS_PER_CLIENT, _CLIENTS
    with ExitStack() as stack:
        taps = [stack.enter_context(lab.capture(interface.name)) for interface in lab.topology.node.interfaces]
        outcomes = lab.load(vip, port, count=count, concurrency=_AT_ONCE, timeout_s=3, clients=clients).wait()
        return outcomes, [packet for tap in taps for packet in tap.packets()]


def _check_way(lab: Lab, vip: Address, port: int, packets: Sequence[Packet]) -> None:
    """Endpoints that got requests from the balancer must have replied through it, and nobody else to the client."""
    clients, endpoints = set(lab.topology.client), lab.topology.endpoints
    asked: Counter[Address] = Counter()
    replied: Counter[Address] = Counter()
    returned = 0
    for packet in packets:
        if not packet.to_balancer and packet.source in clients and packet.destination in endpoints:
            asked[packet.destination] += 1
        elif packet.to_balancer and packet.source in endpoints and packet.destination in clients:
            replied[packet.source] += 1
        elif not packet.to_balancer and packet.destination in clients:
            assert packet.source == vip, f"{packet.source} answered a client in place of {vip}"
            returned += packet.source_port == port
    for endpoint, requests in asked.items():
        assert replied[endpoint], f"{endpoint} got {requests} packets through the balancer, but replies past it"
    assert returned or not replied, f"the balancer forwarded no reply from {vip}:{port} to the client"


def _check_both_ways(lab: Lab, vip: Address, packets: Sequence[Packet]) -> None:
    """The balancer must have asked endpoints from its sources alone, and answered clients with the VIP alone."""
    clients, endpoints, sources = set(lab.topology.client), lab.topology.endpoints, lab.topology.node.snat_addresses
    asked = returned = 0
    for packet in packets:
        if packet.to_balancer or packet.tunnel:
            continue
        if packet.destination in endpoints:
            assert packet.source in sources, f"{packet.destination} was asked from {packet.source}"
            asked += 1
        elif packet.destination in clients:
            assert packet.source == vip, f"{packet.source} answered a client in place of {vip}"
            returned += 1
    assert asked, "the balancer asked no endpoint"
    assert returned, "the balancer forwarded no reply to a client"


def _check_direct_way(
    lab: Lab, service: Service, vip: Address, port: int, packets: Sequence[Packet], outcomes: Sequence[Outcome]
) -> None:
    """The balancer must have sent requests to each endpoint that answered, and must not have seen any reply."""
    for packet in packets:
        way = "to" if packet.to_balancer else "from"
        replies = packet.source == vip and packet.source_port == port
        assert not replies, f"a reply from {vip}:{port} went {way} the balancer"
    sent = [p for p in packets if not p.to_balancer and (p.destination, p.destination_port) == (vip, port)]
    if service.mode is Mode.DSR_L2:
        macs = {lab.topology.link(host_of(address)).mac: address for address in lab.topology.endpoints}
        asked = {macs[packet.mac] for packet in sent if packet.mac in macs and not packet.tunnel}
    else:
        asked = {packet.tunnel for packet in sent if packet.tunnel}
    for name in {outcome.endpoint for outcome in outcomes if outcome.endpoint}:
        address = ip_address(name.rpartition(":")[0])
        assert address in asked, f"{name} answered what the balancer did not send it in mode {service.mode}"


def _check_answers(outcomes: Sequence[Outcome]) -> None:
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    why = "; ".join(f"{count} × {error}" for error, count in errors.most_common(3))
    assert not errors, f"{errors.total()} of {len(outcomes)} requests failed: {why}"


def check_shares(answered: Counter[str], weights: dict[str, int]) -> None:
    """Each endpoint must have answered its weight's share, a tenth more or less. Raises AssertionError."""
    for endpoint, weight in weights.items():
        due = answered.total() * weight / sum(weights.values())
        assert abs(answered[endpoint] - due) <= max(1, _TOLERANCE * due), (
            f"{endpoint} answered {answered[endpoint]} of {answered.total()} requests, its share is {due:.0f}"
        )


def _check_affinity(outcomes: Sequence[Outcome]) -> None:
    by_client: dict[str, set[str]] = defaultdict(set)
    for outcome in outcomes:
        by_client[outcome.source].add(outcome.endpoint)
    for client, endpoints in by_client.items():
        assert len(endpoints) == 1, f"the connections of {client} went to {sorted(endpoints)}"


def _check_spread(answered: Counter[str], weights: dict[str, int]) -> None:
    for endpoint, weight in weights.items():
        expected = weight / sum(weights.values()) >= _RELIABLE_SHARE
        assert answered[endpoint] or not expected, f"{endpoint} answered none of {answered.total()} requests"
