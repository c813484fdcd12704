# SPDX-License-Identifier: Apache-2.0
"""The parts that all rules share: the draft of a fleet, findings, the registry.

A rule is a function from a draft to findings; `@rule` gives it the stable name that users see and adds it to
`RULES`. Its docstring becomes its text in the documentation: what it means, why that hurts, the way out.
Rules see only documents that fit their schema. The content of other documents is not known, so a rule about
something that is missing asks `Draft.may_declare` first.

Rules run over 10,000 services and 100,000 endpoints each time that somebody saves a file. So facts about every
endpoint are computed once, in `Draft`, as plain numbers, and no rule compares everything with everything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from itertools import chain

from reconciler.config.diagnostic import Severity, quote
from reconciler.config.document import Path
from reconciler.config.rules.segments import IPV6, Range, Segment, near, number, segments
from reconciler.model import Labels, Mode, Node, Pool, Role, Service
from reconciler.resource import Span


@dataclass(frozen=True)
class Reach:
    """Balancers, and the pools to whose endpoints each of these balancers sends."""

    balancers: tuple[Node, ...]
    pools: tuple[Pool, ...]
    lists: tuple[list[int], ...]

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of the endpoints' addresses, sorted; an endpoint of several pools occurs several times."""
        return sorted(chain.from_iterable(self.lists))


@dataclass(frozen=True)
class Draft:
    """All documents that fit their schema, in order of their places, and the names that other documents may declare or
    mention."""

    services: tuple[Service, ...]
    pools: tuple[Pool, ...]
    nodes: tuple[Node, ...]
    declared_elsewhere: frozenset[tuple[str, str]] = frozenset()
    """The kinds and names that broken documents may declare."""
    mentioned_elsewhere: frozenset[str] = frozenset()
    """The names that broken documents may refer to."""
    unread: bool = False
    """Whether some file or document could not be read at all."""

    def may_declare(self, kind: str, name: str | None = None) -> bool:
        """Whether a document that is broken or unread could declare this; without a name, anything of the kind."""
        if name is None:
            return self.unread or any(declared == kind for declared, _ in self.declared_elsewhere)
        return self.unread or (kind, name) in self.declared_elsewhere

    def may_mention(self, name: str) -> bool:
        """Whether a document that is broken or unread could refer to this name."""
        return self.unread or name in self.mentioned_elsewhere

    @cached_property
    def pool(self) -> Mapping[str, Pool]:
        """Pools by name; of several with one name, the first."""
        return {pool.name: pool for pool in reversed(self.pools)}

    @cached_property
    def users(self) -> Mapping[str, list[Service]]:
        """The services that name a pool, by its name."""
        users: dict[str, list[Service]] = {}
        for service in self.services:
            users.setdefault(service.pool, []).append(service)
        return users

    @cached_property
    def numbers(self) -> Mapping[int, list[int]]:
        """The numbers of the addresses of a pool's endpoints, by the `id` of the pool."""
        return {
            id(pool): [
                int(e.address) if type(e.address) is IPv4Address else IPV6 + int(e.address) for e in pool.endpoints
            ]
            for pool in self.pools
        }

    @cached_property
    def extent(self) -> Mapping[int, tuple[int, int]]:
        """The least and the greatest of `numbers`; of a pool without endpoints, (0, -1)."""
        return {pool: (min(numbers), max(numbers)) if numbers else (0, -1) for pool, numbers in self.numbers.items()}

    @cached_property
    def endpoint_ports(self) -> Mapping[int, set[int | None]]:
        """The ports of a pool's endpoints, by the `id` of the pool."""
        return {id(pool): {endpoint.port for endpoint in pool.endpoints} for pool in self.pools}

    @cached_property
    def endpoint_nodes(self) -> Mapping[int, Node]:
        """The nodes that are endpoints, by the numbers of the addresses that pools may name them by."""
        return {
            number(address): node
            for node in reversed(self.nodes)
            if node.role is Role.ENDPOINT
            for address in node.endpoint_addresses
        }

    @cached_property
    def segments(self) -> Mapping[int, list[Segment]]:
        """The networks that a node is attached to, by the `id` of the node."""
        return {id(node): segments(node) for node in self.nodes}

    def near(self, node: Node) -> list[Range]:
        """The addresses that are, or may be, in the networks of a node: see `segments.near`."""
        return near(node, self.segments[id(node)])

    @cached_property
    def balancers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.role is Role.BALANCER)

    def carriers(self, service: Service) -> tuple[Node, ...]:
        """The balancers that carry a service."""
        found = self._carriers.get(service.node_selector)
        if found is None:
            labelled = (self._labelled.get(label, ()) for label in service.node_selector)
            candidates = min(labelled, key=len, default=self.balancers)
            found = tuple(node for node in candidates if service.runs_on(node))
            self._carriers[service.node_selector] = found
        return found

    def whereabouts(self, service: Service) -> Iterable[int | Labels]:
        """Keys for the balancers that carry a service: their `id`s; if no balancer is declared, the node selector."""
        found = self.carriers(service)
        return map(id, found) if found else (service.node_selector,)

    def reach(self, *modes: Mode) -> list[Reach]:
        """Which balancers send to which endpoints in one of these modes. A pool is in one group at most."""
        if modes not in self._reach:
            self._reach[modes] = self._group(modes)
        return self._reach[modes]

    def _group(self, modes: tuple[Mode, ...]) -> list[Reach]:
        groups: dict[frozenset[Labels], list[Pool]] = {}
        some: dict[Labels, Service] = {}
        for name, services in self.users.items():
            users = {service.node_selector: service for service in services if service.mode in modes}
            if users and name in self.pool:
                groups.setdefault(frozenset(users), []).append(self.pool[name])
                some |= users
        found = []
        for selectors, pools in groups.items():
            nodes = {id(node): node for selector in sorted(selectors) for node in self.carriers(some[selector])}
            if nodes:
                lists = tuple(self.numbers[id(pool)] for pool in pools)
                found.append(Reach(tuple(nodes.values()), tuple(pools), lists))
        return found

    @cached_property
    def _labelled(self) -> dict[tuple[str, str], list[Node]]:
        labelled: dict[tuple[str, str], list[Node]] = {}
        for node in self.balancers:
            for label in node.labels:
                labelled.setdefault(label, []).append(node)
        return labelled

    @cached_property
    def _carriers(self) -> dict[Labels, tuple[Node, ...]]:
        return {}

    @cached_property
    def _reach(self) -> dict[tuple[Mode, ...], list[Reach]]:
        return {}


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with the document that begins at `span`, at a path inside of it. If a key of the path was left
    out, the problem is shown at the mapping that lacks it."""

    span: Span
    path: Path
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """`text` is for the documentation, in Markdown: what the rule means, why that hurts, the way out."""

    name: str
    severity: Severity
    text: str
    find: Callable[[Draft], Iterable[Finding]]


RULES: dict[str, Rule] = {}

_Find = Callable[[Draft], Iterator[Finding]]


def rule(name: str, severity: Severity = Severity.ERROR) -> Callable[[_Find], _Find]:
    def register(find: _Find) -> _Find:
        assert name not in RULES, name
        RULES[name] = Rule(name, severity, inspect.cleandoc(find.__doc__ or ""), find)
        return find

    return register


def title(item: Service | Pool | Node) -> str:
    return f"{type(item).__name__} {quote(item.name)}"


def vip_path(service: Service, index: int = 0) -> Path:
    """The path of a VIP of a service."""
    return ("spec", "vips", index) if "vips" in service.places else ("spec", "vip")


def key_path(item: Service | Node, key: str) -> Path:
    """The path of a key of `spec`; if it was left out, of the document's name, so that there is a place to show."""
    return ("spec", key) if key in item.places else ("metadata", "name")


def more(count: int, noun: str) -> str:
    """The end of a message that names one thing of `count` with the same problem."""
    if count <= 1:
        return ""
    return f" (and {count - 1:,} more {noun}{'' if count == 2 else 's'})"
