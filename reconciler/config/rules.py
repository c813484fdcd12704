# SPDX-License-Identifier: Apache-2.0
"""What no schema can say: how manifests must fit together.

A rule is a function from a draft to findings; `@rule` gives it the stable name that users see and adds it to
`RULES`. Rules see documents that fit their schema only. What the others would have said is not known, so a rule
about something that is missing asks `Draft.may_declare` first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from reconciler.config.diagnostic import Severity, did_you_mean, quote
from reconciler.config.document import Path
from reconciler.config.formats import port_range
from reconciler.model import Endpoint, EndpointState, Interface, Node, Pool, Service
from reconciler.resource import Span

MAX_SUGGESTIONS = 20  # a misspelt name or two are worth a search; a thousand are no typing errors


@dataclass(frozen=True, slots=True)
class Draft:
    """All documents that fit their schema, in order of their places, and what the others may have said."""

    services: tuple[Service, ...]
    pools: tuple[Pool, ...]
    nodes: tuple[Node, ...]
    declared_elsewhere: frozenset[tuple[str, str]] = frozenset()
    """The kinds and names that broken documents may declare."""
    mentioned_elsewhere: frozenset[str] = frozenset()
    """The names that broken documents may refer to."""
    unread: bool = False
    """Whether something could not even be read."""

    def may_declare(self, kind: str, name: str) -> bool:
        """Whether a document that is broken or unread could declare this."""
        return self.unread or (kind, name) in self.declared_elsewhere

    def may_mention(self, name: str) -> bool:
        """Whether a document that is broken or unread could refer to this name."""
        return self.unread or name in self.mentioned_elsewhere


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with the document that begins at `span`, at a path inside of it."""

    span: Span
    path: Path
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    severity: Severity
    find: Callable[[Draft], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class ItemWithPort:
    """The item of `ports` that holds a port: the last one, where several do."""

    port: int

    def pick(self, items: Any) -> int:
        return max(i for i, item in enumerate(items) if self.port in port_range(item))


RULES: dict[str, Rule] = {}

_Find = Callable[[Draft], Iterator[Finding]]


def rule(name: str, severity: Severity = Severity.ERROR) -> Callable[[_Find], _Find]:
    def register(find: _Find) -> _Find:
        RULES[name] = Rule(name, severity, find)
        return find

    return register


@rule("duplicate-name")
def _duplicate_name(draft: Draft) -> Iterator[Finding]:
    """Two documents of a kind have one name."""
    for objects in (draft.services, draft.pools, draft.nodes):
        first: dict[str, Service | Pool | Node] = {}
        for item in objects:
            if (other := first.setdefault(item.name, item)) is not item:
                message = f"{_title(item)} is declared already ({other.span})"
                yield Finding(item.span, ("metadata", "name"), message, "give each a name of its own")


@rule("service-pool-missing")
def _service_pool_missing(draft: Draft) -> Iterator[Finding]:
    """A service names a pool that is not declared."""
    pools = {pool.name for pool in draft.pools}
    hints: dict[str, str] = {}
    for service in draft.services:
        name = service.pool
        if name in pools or draft.may_declare("Pool", name):
            continue
        if name not in hints:
            hints[name] = did_you_mean(name, sorted(pools)) if len(hints) < MAX_SUGGESTIONS else ""
        hint = hints[name] or "declare it in a document with `kind: Pool`"
        yield Finding(service.span, ("spec", "pool"), f"there is no Pool named {quote(name)}", hint)


@rule("pool-unused", Severity.WARNING)
def _pool_unused(draft: Draft) -> Iterator[Finding]:
    """No service names a pool."""
    used = {service.pool for service in draft.services}
    for pool in draft.pools:
        if pool.name not in used and not draft.may_mention(pool.name):
            yield Finding(pool.span, ("metadata", "name"), f"no Service uses {_title(pool)}")


@rule("vip-port-conflict")
def _vip_port_conflict(draft: Draft) -> Iterator[Finding]:
    """Two services claim the same port of a VIP."""
    owners: dict[tuple[int, str, int], Service] = {}
    for service in draft.services:
        vip, protocol = int(service.vip), service.protocol.value
        shared: dict[int, tuple[Service, list[int]]] = {}  # one finding for each other service
        for port in service.ports:
            owner = owners.setdefault((vip, protocol, port), service)
            if owner is not service:
                shared.setdefault(id(owner), (owner, []))[1].append(port)
        for owner, ports in shared.values():
            which = f"port {ports[0]}" if len(ports) == 1 else f"{len(ports)} ports from {ports[0]} to {ports[-1]}"
            verb = "belongs" if len(ports) == 1 else "belong"
            message = f"{which} of {service.vip} {verb} to {_title(owner)} already ({owner.span})"
            path = ("spec", "ports", ItemWithPort(ports[0]))
            yield Finding(service.span, path, message, "choose other ports or another VIP")


@rule("duplicate-port")
def _duplicate_port(draft: Draft) -> Iterator[Finding]:
    """A service lists a port twice."""
    for service in draft.services:
        if len(set(service.ports)) < len(service.ports):
            port = next(port for port, count in Counter(service.ports).items() if count > 1)
            path = ("spec", "ports", ItemWithPort(port))
            yield Finding(service.span, path, f"port {port} is listed twice", "list each port once")


@rule("address-not-unicast")
def _address_not_unicast(draft: Draft) -> Iterator[Finding]:
    """A VIP or an endpoint is at an address that no single machine can have."""
    for service in draft.services:
        if reason := _not_unicast(service.vip):
            yield Finding(service.span, _VIP, f"{service.vip} can't be a VIP: it is {reason}")
    for pool in draft.pools:
        for i, endpoint in enumerate(pool.endpoints):
            if reason := _not_unicast(endpoint.address):
                message = f"{endpoint.address} can't be an endpoint: it is {reason}"
                yield Finding(pool.span, ("spec", "endpoints", i, "address"), message)


@rule("vip-is-endpoint")
def _vip_is_endpoint(draft: Draft) -> Iterator[Finding]:
    """A VIP is the address of an endpoint: packets to that endpoint would be balanced again."""
    vips = {int(service.vip) for service in draft.services}
    endpoints = {
        int(endpoint.address): (pool, endpoint)
        for pool in reversed(draft.pools)
        for endpoint in reversed(pool.endpoints)
        if int(endpoint.address) in vips
    }
    for service in draft.services:
        if found := endpoints.get(int(service.vip)):
            pool, endpoint = found
            message = f"the VIP {service.vip} is the address of an endpoint of {_title(pool)} ({endpoint.span})"
            yield Finding(service.span, _VIP, message, "a VIP needs an address of its own")


@rule("vip-is-node-address")
def _vip_is_node_address(draft: Draft) -> Iterator[Finding]:
    """A VIP is the address of an interface: the node would be cut off from whoever manages it."""
    owners = {
        int(address.ip): (node, interface)
        for node in reversed(draft.nodes)
        for interface in reversed(node.interfaces)
        for address in interface.addresses
    }
    for service in draft.services:
        if found := owners.get(int(service.vip)):
            node, interface = found
            message = (
                f"the VIP {service.vip} is the address of interface {interface.name} of {_title(node)} "
                f"({interface.span})"
            )
            yield Finding(service.span, _VIP, message, "a VIP needs an address of its own")


@rule("pool-empty", Severity.WARNING)
def _pool_empty(draft: Draft) -> Iterator[Finding]:
    """A pool has no endpoint."""
    for pool in draft.pools:
        if not pool.endpoints:
            yield Finding(pool.span, _ENDPOINTS, f"{_title(pool)} has no endpoint: {_DROPPED}")


@rule("zero-total-weight", Severity.WARNING)
def _zero_total_weight(draft: Draft) -> Iterator[Finding]:
    """A pool has endpoints, but none that takes new connections."""
    for pool in draft.pools:
        if pool.endpoints and not any(e.weight and e.state is EndpointState.ACTIVE for e in pool.endpoints):
            message = f"no endpoint of {_title(pool)} is active with a weight above 0: {_DROPPED}"
            yield Finding(pool.span, _ENDPOINTS, message)


@rule("duplicate-endpoint")
def _duplicate_endpoint(draft: Draft) -> Iterator[Finding]:
    """A pool lists an address and port twice."""
    for pool in draft.pools:
        first: dict[tuple[int, int | None], Endpoint] = {}
        for i, endpoint in enumerate(pool.endpoints):
            other = first.setdefault((int(endpoint.address), endpoint.port), endpoint)
            if other is not endpoint:
                where = f"{endpoint.address}, port {endpoint.port}" if endpoint.port else f"{endpoint.address}"
                message = f"the endpoint {where} is in {_title(pool)} already ({other.span})"
                yield Finding(pool.span, (*_ENDPOINTS, i, "address"), message, "use weights for unequal shares")


@rule("balancer-without-interfaces")
def _balancer_without_interfaces(draft: Draft) -> Iterator[Finding]:
    """A balancer has no interface that packets could enter by."""
    for node in draft.nodes:
        if not node.interfaces:
            message = f"{_title(node)} is a balancer without interfaces"
            hint = "list those that packets of clients and endpoints enter by"
            yield Finding(node.span, ("spec", "interfaces"), message, hint)


@rule("duplicate-interface")
def _duplicate_interface(draft: Draft) -> Iterator[Finding]:
    """A node lists an interface twice."""
    for node in draft.nodes:
        first: dict[str, Interface] = {}
        for i, interface in enumerate(node.interfaces):
            if (other := first.setdefault(interface.name, interface)) is not interface:
                message = f"interface {interface.name} is listed already ({other.span})"
                yield Finding(node.span, ("spec", "interfaces", i, "name"), message, "list each interface once")


def _title(item: Service | Pool | Node) -> str:
    return f"{type(item).__name__} {quote(item.name)}"


def _not_unicast(address: IPv4Address) -> str:
    """What an address is instead of one machine's, or nothing (RFC 6890, RFC 5771)."""
    first_octet = int(address) >> 24
    if first_octet == 0:
        return "part of 0.0.0.0/8, which no machine can have"
    if first_octet == 127:
        return "a loopback address"
    if 224 <= first_octet < 240:
        return "a multicast address"
    return "reserved or broadcast" if first_octet >= 240 else ""


_VIP = ("spec", "vip")
_ENDPOINTS = ("spec", "endpoints")
_DROPPED = "new connections to its services are dropped"
