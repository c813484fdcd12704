# SPDX-License-Identifier: Apache-2.0
"""NAT's connections of clients to services, a column for each fact: there may be millions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconciler import clock, connections
from reconciler.dataplane.connections import MAPPED, PROTOCOLS, UNIT_SHIFT, Entries, unit_of
from reconciler.dataplane.layout import CONNECTION_MAPS, ConnectionState, word
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import ids_of
from reconciler.kinds.fronts import id_of_front
from reconciler.readings import client_text
from reconciler.readings.flow_filter import FlowFilter, Place

OPEN, HALF_OPEN = (word(ConnectionState, state) for state in (ConnectionState.OPEN, ConnectionState.OPENING))
"""States of a flow. A flow is half open while the client has sent SYNs only; of UDP, until the endpoint answers."""
STATES = [word(ConnectionState, state) for state in range(8)]
NAMES = ["", *({6: "tcp", 17: "udp", 132: "sctp"}[number] for number in PROTOCOLS.values())]
"""Of the protocols, as the table numbers them."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection. `idle_s` is the time since the last packet of it, to nine seconds."""

    client: str
    service: str
    endpoint: str
    state: str
    idle_s: int
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True, eq=False)
class Flows:
    """Connections. `address` has the two halves of each client's address as numbers (Entries.clients). `service` and
    `endpoint` are places in the lists of their names, `state` and `protocol` in STATES and NAMES."""

    address: NDArray[np.uint64]
    port: NDArray[np.uint16]
    service: NDArray[np.intp]
    endpoint: NDArray[np.intp]
    state: NDArray[np.uint8]
    protocol: NDArray[np.uint8]
    idle_s: NDArray[np.int64]
    services: Sequence[str]
    endpoints: Sequence[str]

    def __len__(self) -> int:
        return len(self.address)

    def __iter__(self) -> Iterator[Flow]:
        columns = (self.clients(), *(each.tolist() for each in self._numbers()))
        for client, service, endpoint, state, idle_s, protocol in zip(*columns, strict=True):
            yield Flow(
                client, self.services[service], self.endpoints[endpoint], STATES[state], idle_s, NAMES[protocol]
            )

    @property
    def has_ipv6(self) -> bool:
        return bool(self.address[:, 0].any())

    def part(self, chosen: NDArray[Any]) -> Flows:
        """Those that are chosen, or all in another order."""
        address, port = self.address[chosen], self.port[chosen]
        service, endpoint, state, idle_s, protocol = (each[chosen] for each in self._numbers())
        return Flows(address, port, service, endpoint, state, protocol, idle_s, self.services, self.endpoints)

    def in_order(self) -> Flows:
        """By service, then by client."""
        rank = np.argsort(np.argsort(np.array(self.services, np.str_), kind="stable"))
        high, low = self.address.T
        return self.part(np.lexsort((self.port, low, high, rank[self.service]))) if len(self) else self

    def clients(self) -> list[str]:
        """Address and port of each client."""
        is_ipv4 = self.address[:, 0] == 0
        low = self.address[:, 1].astype(np.uint32)
        if is_ipv4.all():
            return client_text.ipv4(low, self.port)
        if not is_ipv4.any():
            return client_text.ipv6(self.address, self.port)
        found = np.empty(len(self), np.object_)
        found[is_ipv4] = client_text.ipv4(low[is_ipv4], self.port[is_ipv4])
        found[~is_ipv4] = client_text.ipv6(self.address[~is_ipv4], self.port[~is_ipv4])
        names: list[str] = found.tolist()
        return names

    def counts(self) -> Counter[tuple[str, str, str]]:
        """How many there are of each service, endpoint and state."""
        shape = len(self.services), len(self.endpoints), len(STATES)
        kinds, counts = np.unique(
            np.ravel_multi_index((self.service, self.endpoint, self.state), shape) if len(self) else np.zeros(0, int),
            return_counts=True,
        )
        of = zip(*(each.tolist() for each in np.unravel_index(kinds, shape)), counts.tolist(), strict=True)
        return Counter({
            (self.services[service], self.endpoints[endpoint], STATES[state]): count
            for service, endpoint, state, count in of
        }) if kinds.size else Counter()  # fmt: skip

    def _numbers(self) -> tuple[NDArray[Any], ...]:
        return self.service, self.endpoint, self.state, self.idle_s, self.protocol


def chosen(of: Flows, wanted: FlowFilter) -> Flows:
    """Those that somebody asked for. Raises UsageError if a place is none."""
    is_wanted = np.ones(len(of), np.bool_)
    words, places = wanted.words(), wanted.places()
    coded: tuple[tuple[str, NDArray[np.uint8], Sequence[str]], ...] = (
        ("state", of.state, STATES), ("protocol", of.protocol, NAMES)
    )  # fmt: skip
    for name, codes, names in coded:
        if name in words:
            is_wanted &= np.array([known == words[name] for known in names])[codes]
    for name, column, ids in (("service", of.service, of.services), ("endpoint", of.endpoint, of.endpoints)):
        if name in places and ids:
            is_wanted &= np.array([places[name].is_of(id) for id in ids])[column]
    if client := places.get("client"):
        is_wanted &= _is_of(client, of)
    return of.part(is_wanted)


def _is_of(place: Place, of: Flows) -> NDArray[np.bool_]:
    """Whose clients are there."""
    first, last = int(place.network[0]), int(place.network[-1])
    if place.network.version == 4:
        first, last = (int(MAPPED) | each for each in (first, last))
    high, low = of.address.T
    is_family = (high == 0) == (place.network.version == 4)
    found: NDArray[np.bool_] = is_family & _is_least(high, low, first) & ~_is_least(high, low, last + 1)
    return found if place.port is None else found & (of.port == place.port)


def _is_least(high: NDArray[np.uint64], low: NDArray[np.uint64], number: int) -> NDArray[np.bool_]:
    """Which addresses are a number or greater."""
    if number >> 128:
        return np.zeros(high.size, np.bool_)
    above, below = np.uint64(number >> 64), np.uint64(number & (1 << 64) - 1)
    found: NDArray[np.bool_] = (high > above) | ((high == above) & (low >= below))
    return found


def flows(kernel: Kernel) -> Flows:
    """Every connection that there is for the program, which are not all that take a place in the table."""
    fronts = connections.fronts(kernel)
    both = [connections.live(kernel, version, fronts) for version in CONNECTION_MAPS]
    columns = [_columns(each) for each in both if each.size] or [_columns(both[0])]
    address, port, of_service, of_endpoint, state, protocol, age = (
        np.concatenate(each) for each in zip(*columns, strict=True)
    )
    numbers, service = np.unique(of_service, return_inverse=True)
    services = [id_of_front(fronts, number) or f"removed service {number}" for number in numbers.tolist()]
    numbers, endpoint = np.unique(of_endpoint, return_inverse=True)
    known = ids_of(kernel, numbers.tolist()) if numbers.size else {}
    endpoints = [known.get(number, f"removed endpoint {number}") for number in numbers.tolist()]
    idle_s = (age.astype(np.int64) << UNIT_SHIFT) // 1_000_000_000
    return Flows(
        address, port, service.reshape(-1), endpoint.reshape(-1), state, protocol, idle_s, services, endpoints
    )


def _columns(of: Entries) -> tuple[NDArray[Any], ...]:
    ages = of.ages(unit_of(clock.now_ns()))
    return of.clients, of.ports, of.services, of.endpoints, of.states, of.protocols, ages


def open_counts(kernel: Kernel) -> dict[tuple[str, str], int]:
    """Open connections by service and endpoint: both sides have taken part, and neither has closed it."""
    return {
        (service, endpoint): count for (service, endpoint, state), count in flows(kernel).counts().items()
        if state == OPEN
    }  # fmt: skip
