# SPDX-License-Identifier: Apache-2.0
"""An endpoint row as a value: a server, by address and port."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import ClassVar

from reconciler.kinds.base import once
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, DeadEndpoint, Endpoint, EndpointState, Pool, place_of
from reconciler.resource import ANY_POOL, Cause, Causes, Context, Key, Resource

_SERVICE, _RING = "service", "ring"  # kinds whose modules import this one
_UNUSED = "no connection uses it"
_ID = re.compile(r"(?:(?:\[(.+)\]|([0-9.]+)):([0-9]+)|([^ \[]+))(?: \(row [0-9]+\))?")


@dataclass(frozen=True, slots=True)
class EndpointRow(Resource):
    """A server. `port` 0 stands for the port that the client asked for.

    `dead`: checks found it so; its connections of TCP go on, but datagrams go elsewhere.
    `damage` says what is wrong with a row that was written by somebody else. `copy` is the number of a second row
    of the same endpoint: it counts as an endpoint of its own, which no manifest asks for.
    """

    kind: ClassVar[str] = "endpoint"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("program",))

    address: Address
    port: int = 0
    disabled: bool = False
    damage: str = ""
    copy: int = 0
    dead: bool = False

    @property
    def id(self) -> str:
        place = place_of(self.address, self.port)
        return f"{place} (row {self.copy})" if self.copy else place

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    @property
    def flaw(self) -> str:
        return "a damaged row" if self.damage or self.copy else "" if is_port(self.port) else f"port {self.port}"

    def stamps(self) -> Iterator[str]:
        yield self.state  # the rest is in the key

    @property
    def state(self) -> str:
        return self.damage or ("disabled" if self.disabled else "dead" if self.dead else "usable")

    def describe(self) -> dict[str, str]:
        return {"state": self.state}

    def caused(self, before: Resource, causes: Causes) -> Cause | None:
        if not isinstance(before, EndpointRow) or before.state == self.state or before.flaw:
            return None
        return causes.get(ANY_POOL, {}).get(self.id)

    def effect(self, after: Resource | None, context: Context) -> str:
        own, counts = None, context.live.connections
        if not context.desired and context.remembers_all is not None:
            # All services go, so nobody has to find out which of them use this endpoint.
            if counts is None or not context.remembers_all:
                return connections_end(None)
            ending = sum(n for (_, endpoint), n in counts.items() if endpoint == self.id)
            return connections_end(ending) if ending else _UNUSED
        if counts is not None and context.remembers(self.key):
            own = {Key(_SERVICE, service): n for (service, endpoint), n in counts.items() if endpoint == self.id}
        total = None if own is None else sum(own.values())
        if after is not None:
            return connections_end(total) if isinstance(after, EndpointRow) and after.disabled else ""
        users = {user.key: user for user in context.users(self.key) if user.kind == _SERVICE}
        services = users.keys() if own is None else own.keys()
        staying = {s for s in services & context.desired.keys() if s not in users or _stay(users[s], context)}
        if services and not staying:
            return connections_end(total)  # no service that has any keeps them
        count = None if own is None else sum(own[service] for service in staying)
        if count == 0:
            return _UNUSED
        rest = "goes on until it ends by itself" if count == 1 else "go on until they end by themselves"
        return f"{_connections(count)} {rest}"


NOBODY = EndpointRow(IPv4Address(0))
"""An endpoint that no row is of."""


def is_port(number: int) -> bool:
    """Whether a number fits into the two bytes of a port; 0, which stands for another port, does."""
    return 0 <= number < 1 << 16


def _stay(service: Resource, context: Context) -> bool:
    """Whether connections of a service stay with an endpoint that no pool names any more.

    Where nobody remembers them they follow the ring, to another pool too.
    """
    after = context.desired[service.key]
    rings = [[need for need in row.needs if need.kind == _RING] for row in (service, after)]
    return service.remembers == after.remembers and (service.remembers or rings[0] == rings[1])


def connections_end(count: int | None) -> str:
    """The text about open connections that end; without a number if nobody counted them."""
    return f"{_connections(count)} {'ends' if count == 1 else 'end'}"


def _connections(count: int | None) -> str:
    if count is None:
        return "connections on it"
    return f"{count:,} connection{'' if count == 1 else 's'}"


def row_of(endpoint: Endpoint) -> EndpointRow:
    """The same row each time: of a thousand pools that change, most endpoints don't."""
    known = endpoint.row
    if isinstance(known, EndpointRow):
        return known
    is_disabled = endpoint.state is EndpointState.DISABLED
    is_dead = isinstance(endpoint, DeadEndpoint) and endpoint.sends_on and not is_disabled
    row = EndpointRow(endpoint.address, endpoint.port or 0, is_disabled, dead=is_dead)
    endpoint.keep(row)
    return row


@once
def rows_of(pool: Pool) -> tuple[EndpointRow, ...]:
    """The row of each endpoint of a pool."""
    return tuple([row_of(endpoint) for endpoint in pool.endpoints])


def row_named(id: str) -> EndpointRow | None:
    """The usable row of the endpoint with an id; None if no row has such an id."""
    found = _ID.fullmatch(id)
    with suppress(ValueError):
        if found and is_port(port := int(found[3] or 0)):
            return EndpointRow(ip_address(found[1] or found[2] or found[4]), port)
    return None
