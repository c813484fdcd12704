# SPDX-License-Identifier: Apache-2.0
"""From one node's part of the manifests to the resources that its kernel must hold.

What one service asks for is a part, what one pool asks for is another, and the node as a whole is one more. A part is
a frozen value that is made once: as long as the service is the same object, so is its part, and the same part is no
work. Several parts may ask for one resource: an endpoint in two pools, a VIP of two services.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reconciler import support
from reconciler.kinds import KINDS
from reconciler.kinds.base import Wanted
from reconciler.model import Node, Pool, Role, Service
from reconciler.resource import Desired, Key, Resource
from reconciler.support import Unsupported
from reconciler.view import Facts, NodeView, Use

_OF_KIND = {kind.resource.kind: kind for kind in KINDS}


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a service, a pool or the node asks for. `name` orders parts that ask for one resource; `source` is what
    the part was made from; `traits` are what matters of it to the node as a whole."""

    name: str
    source: tuple[object, ...]
    wanted: Mapping[Key, Wanted]
    traits: frozenset[object] = frozenset()
    unsupported: tuple[Unsupported, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """The resources of a node, and the parts that ask for them; `owners` are the parts that ask for each."""

    desired: Desired = field(default_factory=Desired)
    facts: tuple[Node, bool, frozenset[str]] | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    owners: Mapping[Key, tuple[Part, ...]] = field(default_factory=dict)

    def differing(self, other: Compiled) -> set[Key]:
        """The keys of the resources that differ between two states of a node."""
        before, after = self.desired.resources, other.desired.resources
        touched = _touched(_differing_parts(self.parts, other.parts))
        return {key for key in touched if not _same(before.get(key), after.get(key))}


    def differs_as_a_whole(self, other: Compiled) -> bool:
        """Whether more than services and pools differ: the node itself, its program, its settings."""
        if self.facts != other.facts:
            return True
        before, after = self.parts["node"].wanted, other.parts["node"].wanted
        if before is after:
            return False
        return {key: resource for key, (resource, _) in before.items()} != {
            key: resource for key, (resource, _) in after.items()
        }


def compile_node(view: NodeView) -> Desired:
    """Every resource that this node must hold, and where each was asked for. Pure. Raises UnsupportedError."""
    return compiled(view).desired


def compiled(view: NodeView, before: Compiled | None = None) -> Compiled:
    """As `compile_node`. What was made for `before` from the same objects is not made again. Raises UnsupportedError.
    """
    facts = (view.node, view.decapsulates, view.lossy)
    if before is None or before.facts != facts:
        before = Compiled()
    parts = _parts(view, before.parts)
    support.refuse(view.node.name, [item for part in parts.values() for item in part.unsupported])
    resources, origins = dict(before.desired.resources), dict(before.desired.origins)
    owners = dict(before.owners)
    shared: set[Key] = set()
    for old, new in _differing_parts(before.parts, parts):
        for key in old.wanted if old else ():
            left = tuple(part for part in owners.pop(key) if part is not old)
            if left:
                owners[key] = left
                shared.add(key)
            else:
                del resources[key], origins[key]
        if new is None:
            continue
        own = (new,)
        for key, (resource, origin) in new.wanted.items():
            others = owners.get(key)
            if others is None:
                resources[key], origins[key], owners[key] = resource, origin, own
            else:
                owners[key] = (*others, new)
                shared.add(key)
    for key in shared & owners.keys():
        owners[key] = tuple(sorted(owners[key], key=lambda part: part.name))
        resources[key], origins[key] = _joined(key, [part.wanted[key] for part in owners[key]])
    return Compiled(Desired(resources, origins, view.node.name), facts, parts, owners)


def _parts(view: NodeView, before: Mapping[str, Part]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    if view.node.role is Role.BALANCER:
        facts, uses = Facts(view.node), view.uses
        for service in view.services:
            part = before.get(name := f"service {service.name}")
            if part is None or part.source[0] is not service:
                part = _part_of_service(name, service, facts)
            parts[name] = part
        for pool in view.pools.values():
            use = uses[pool.name]
            part = before.get(name := f"pool {pool.name}")
            if part is None or part.source[0] is not pool or part.source[1] != use:
                part = _part_of_pool(name, pool, use, facts)
            parts[name] = part
        traits = frozenset(trait for some in {part.traits for part in parts.values()} for trait in some)
        part = before.get("node")
        if part is None or part.source[0] is not view.node or part.source[1:] != (traits, view.sizes):
            part = _part_of_node(view, traits)
        parts["node"] = part
    else:
        parts["node"] = _part_of_node(view, frozenset())
    return parts


def _part_of_node(view: NodeView, traits: frozenset[object]) -> Part:
    kinds = (kind for kind in KINDS if view.node.role in kind.roles)
    wanted = _collected(wanted for kind in kinds for wanted in kind.desired(view))
    return Part("node", (view.node, traits, view.sizes), wanted, unsupported=tuple(support.of_node(view)))


def _part_of_service(name: str, service: Service, facts: Facts) -> Part:
    wanted = _collected(wanted for kind in _OF_SERVICE for wanted in kind.of_service(service, facts))
    traits = {service.mode, service.algorithm, service.protocol, ("pings", service.takes_pings)}
    on_link = {(vip.version, face) for vip in service.vips for face in ("", *facts.on_link(vip))}
    return Part(name, (service,), wanted, frozenset(traits | on_link), tuple(support.of_service(service)))


def _part_of_pool(name: str, pool: Pool, use: Use, facts: Facts) -> Part:
    wanted = _collected(wanted for kind in _OF_POOL for wanted in kind.of_pool(pool, use, facts))
    versions = frozenset((endpoint.address.version, "") for endpoint in pool.endpoints)
    return Part(name, (pool, use), wanted, versions, tuple(support.of_pool(pool, use)))


_OF_SERVICE = [kind for kind in KINDS if "of_service" in vars(kind)]
_OF_POOL = [kind for kind in KINDS if "of_pool" in vars(kind)]


def _collected(claims: Iterable[Wanted]) -> dict[Key, Wanted]:
    found: dict[Key, Wanted] = {}
    for claim in claims:
        key = claim[0].key
        found[key] = _joined(key, (found[key], claim)) if key in found else claim
    return found


def _joined(key: Key, claims: Iterable[Wanted]) -> Wanted:
    same = list(claims)
    return same[0] if len(same) == 1 else _OF_KIND[key.kind].joined(same)


def _differing_parts(
    before: Mapping[str, Part], after: Mapping[str, Part]
) -> list[tuple[Part | None, Part | None]]:
    """The parts that differ, before and after."""
    pairs = [(before.get(name), part) for name, part in after.items() if before.get(name) is not part]
    gone = [(part, None) for name, part in before.items() if name not in after]
    return [*gone, *pairs]


def _touched(pairs: Iterable[tuple[Part | None, Part | None]]) -> set[Key]:
    return {key for pair in pairs for part in pair if part for key in part.wanted}


def _same(one: Resource | None, other: Resource | None) -> bool:
    return one is other or one == other

