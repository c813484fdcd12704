# SPDX-License-Identifier: Apache-2.0
"""Pools: whether their endpoints take connections."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.parts import Members, Use
from reconciler.config.rules.rule import Finding, more, rule, title
from reconciler.limits import default_size
from reconciler.model import Algorithm, Endpoint, EndpointState


@rule("pool-empty", Members, Severity.WARNING)
def _pool_empty(members: Members) -> Iterator[Finding]:
    """A pool has no endpoint.

    New connections to its services are dropped. That may be wanted for a while, so it is no error.

    The way out: add endpoints.
    """
    pool = members.pool
    if not pool.endpoints:
        yield Finding(pool.span, _ENDPOINTS, f"{title(pool)} has no endpoint: {_DROPPED}", "add endpoints")


@rule("zero-total-weight", Members, Severity.WARNING)
def _zero_total_weight(members: Members) -> Iterator[Finding]:
    """A pool has endpoints, but none that takes new connections: all are draining, disabled, or of weight 0.

    New connections to its services are dropped, while open ones go on. That may be wanted for a while, so it is
    no error.

    The way out: give at least one endpoint a weight above 0 and the state active, which are the defaults.
    """
    pool = members.pool
    if pool.endpoints and not any(e.weight and e.state is EndpointState.ACTIVE for e in pool.endpoints):
        message = f"no endpoint of {title(pool)} is active with a weight above 0: {_DROPPED}"
        yield Finding(pool.span, _ENDPOINTS, message, "give one of them a weight, or make it active")


@rule("ring-too-small", Members)
def _ring_too_small(members: Members) -> Iterator[Finding]:
    """A pool has more endpoints that take new connections than its `ringSize` has slots.

    Each slot is one endpoint's, so some would never get a connection.

    The way out: at least a hundred slots for each endpoint, or no `ringSize`: the default grows with the pool.
    """
    pool = members.pool
    if pool.ring_size is None:
        return
    active = sum(e.weight > 0 and e.state is EndpointState.ACTIVE for e in pool.endpoints)
    if pool.ring_size < active:
        message = f"{pool.ring_size:,} slots are too few for {active:,} endpoints"
        yield Finding(pool.span, ("spec", "ringSize"), message, "leave it out, or raise it")


@rule("weight-below-a-slot", Use, Severity.WARNING)
def _weight_below_a_slot(use: Use) -> Iterator[Finding]:
    """The weight of an endpoint, compared with those of the whole pool, is less than one slot of a hash ring.

    The ring of `maglev` and `source-hash` has a fixed number of slots, and shares are rounded to whole ones: such an
    endpoint may hold none, and then gets no connection at all. `round-robin` gives everybody at least one turn.

    The way out: a larger weight for it or smaller ones for the others, or a larger `ringSize`.
    """
    for members in use.pools[:1]:
        pool = members.pool
        if all(service.algorithm not in _HASHED for service in use.services):
            return
        active = [i for i, e in enumerate(pool.endpoints) if e.weight and e.state is EndpointState.ACTIVE]
        slots = pool.ring_size or default_size(len(active))
        total = sum(pool.endpoints[i].weight for i in active)
        small = [i for i in active if pool.endpoints[i].weight * slots < total]
        if small and slots >= len(active):  # else `ring-too-small` reports it
            message = (
                f"a weight of {pool.endpoints[small[0]].weight} of {total:,} is less than one of the {slots:,} slots "
                f"of {title(pool)}: this endpoint may never get a connection{more(len(small), 'endpoint')}"
            )
            hint = f"give it {-(-total // slots)} or more, others less, or raise ringSize"
            yield Finding(pool.span, (*_ENDPOINTS, small[0], "weight"), message, hint)


@rule("duplicate-endpoint", Members)
def _duplicate_endpoint(members: Members) -> Iterator[Finding]:
    """A pool lists the same address and port twice.

    Its two weights and states would contradict each other.

    The way out: list it once. For a larger share of the connections give it a larger weight.
    """
    pool = members.pool
    ports = [endpoint.port for endpoint in pool.endpoints]
    if len(set(zip(members.numbers, ports, strict=True))) == len(ports):
        return
    first: dict[tuple[int, int | None], Endpoint] = {}
    for i, (number, endpoint) in enumerate(zip(members.numbers, pool.endpoints, strict=True)):
        other = first.setdefault((number, endpoint.port), endpoint)
        if other is not endpoint:
            where = f"{endpoint.address}, port {endpoint.port}" if endpoint.port else f"{endpoint.address}"
            message = f"the endpoint {where} is in {title(pool)} already ({other.span})"
            yield Finding(pool.span, (*_ENDPOINTS, i, "address"), message, "use weights for unequal shares")


_ENDPOINTS = ("spec", "endpoints")
_HASHED = (Algorithm.MAGLEV, Algorithm.SOURCE_HASH)
_DROPPED = "new connections to its services are dropped"
