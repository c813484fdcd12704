# SPDX-License-Identifier: Apache-2.0
"""The machines that the manifests declare: the surroundings in which services and pools are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from reconciler.config.rules.segments import Range, Segment, count_inside, near, number, segments
from reconciler.model import Labels, Node, Role, Service

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Surroundings:
    """All nodes, in order of their places. Other surroundings are another object."""

    nodes: tuple[Node, ...]
    _facts: dict[Callable[..., Any], Any] = field(default_factory=dict)
    _carriers: dict[Labels, tuple[Node, ...]] = field(default_factory=dict)

    def fact(self, find: Callable[[Surroundings], T]) -> T:
        """The result of a function of these surroundings, which is called once."""
        if find not in self._facts:
            self._facts[find] = find(self)
        result: T = self._facts[find]
        return result

    @cached_property
    def balancers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.role is Role.BALANCER)

    @cached_property
    def endpoint_nodes(self) -> Mapping[int, Node]:
        """The nodes that are endpoints, by the numbers of the addresses that pools may name them by."""
        return {
            number(address): node
            for node in reversed(self.nodes)
            if node.role is Role.ENDPOINT
            for address in node.endpoint_addresses
        }

    def endpoints_among(self, numbers: Sequence[int]) -> list[Node]:
        """The nodes of the endpoints with these addresses, given by sorted numbers, in their order."""
        found = [value for value in self.endpoint_nodes if count_inside(numbers, value, value)]
        return list({id(node): node for value in sorted(found) if (node := self.endpoint_nodes[value])}.values())

    @cached_property
    def segments(self) -> Mapping[int, list[Segment]]:
        """The networks that a node is attached to, by the `id` of the node."""
        return {id(node): segments(node) for node in self.nodes}

    def near(self, node: Node) -> list[Range]:
        """The addresses that are, or may be, in the networks of a node: see `segments.near`."""
        return near(node, self.segments[id(node)])

    def carriers(self, selector: Labels) -> tuple[Node, ...]:
        """The balancers that carry services with this node selector."""
        found = self._carriers.get(selector)
        if found is None:
            labelled = (self._labelled.get(label, ()) for label in selector)
            candidates = min(labelled, key=len, default=self.balancers)
            wanted = set(selector)
            found = tuple(node for node in candidates if wanted <= set(node.labels))
            self._carriers[selector] = found
        return found

    def whereabouts(self, service: Service) -> Iterable[int | Labels]:
        """Keys for the balancers that carry a service: their `id`s; if no balancer is declared, the node selector."""
        found = self.carriers(service.node_selector)
        return map(id, found) if found else (service.node_selector,)

    @cached_property
    def _labelled(self) -> dict[tuple[str, str], list[Node]]:
        labelled: dict[tuple[str, str], list[Node]] = {}
        for node in self.balancers:
            for label in node.labels:
                labelled.setdefault(label, []).append(node)
        return labelled
