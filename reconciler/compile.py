# SPDX-License-Identifier: Apache-2.0
"""From one node's part of the manifests to the resources that its kernel must hold.

What one service asks for is a part, what one pool asks for is another, and the node as a whole is one more. A part is
a frozen value that is made once: as long as the service is the same object, so is its part, and the same part is no
work. Several parts may ask for one resource: an endpoint in two pools, a VIP of two services.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address
from itertools import compress
from operator import is_not
from typing import TypeVar
from weakref import ReferenceType, ref

from reconciler import support
from reconciler.config.load import no_garbage_collection
from reconciler.kinds import KINDS
from reconciler.kinds.base import Wanted
from reconciler.limits import Sizes
from reconciler.model import Address, Algorithm, Mode, Node, Pool, Protocol, Role, Service
from reconciler.peers import Peer
from reconciler.resource import Desired, Key, Resource
from reconciler.support import Unsupported
from reconciler.versions import layer, version
from reconciler.view import Facts, NodeView, Use, use_of

_OF_KIND = {kind.resource.kind: kind for kind in KINDS}


NO_USE = Use()


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a service, a pool or the node asks for. `name` orders parts that ask for one resource; `source` is what
    the part was made from; `traits` are what matters of it to the node as a whole, `size` how many rows it takes."""

    name: str
    source: object
    wanted: Mapping[Key, Resource]
    use: Use = NO_USE
    traits: frozenset[object] = frozenset()
    size: int = 0
    unsupported: tuple[Unsupported, ...] = ()

    @property
    def owner(self) -> Owner:
        return self.name, next((type_ for type_ in (Service, Pool) if isinstance(self.source, type_)), object)


NodeFacts = tuple[Node, bool, frozenset[str], tuple[Peer, ...], bool, bool]
"""All of a view but services and pools."""

Pairs = list[tuple[Part | None, Part | None]]
"""Parts that differ, before and after; None where there is none."""

Parts = Mapping[str, Part]
"""By the name of the service or pool."""

Owner = tuple[str, type[object]]
"""The name of a part, and whether it is that of a service or of a pool: later parts of it are the same owner."""

Sources = tuple[tuple[Service, ...], tuple[Pool, ...]]
"""What parts were made from, in order."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Compiled:
    """The resources of a node, and the parts that ask for them; `owners` says which ask for each, `sources` are the
    node's services and pools.

    `base` is what it was compiled after, while that is remembered, and `changed` are the parts that differ from it.
    """

    desired: Desired = field(default_factory=Desired)
    facts: NodeFacts | None = None
    sources: Sources = ((), ())
    services: Parts = field(default_factory=dict)
    pools: Parts = field(default_factory=dict)
    whole: Part = Part("", None, {})
    uses: Mapping[str, Use] = field(default_factory=dict)
    owners: Mapping[Key, tuple[Owner, ...]] = field(default_factory=dict)
    held: Sizes | None = None
    base: ReferenceType[Compiled] | None = None
    changed: Pairs = field(default_factory=list)

    def differing(self, other: Compiled) -> set[Key]:
        """The keys of the resources that differ between two states of a node, or seem to, as far as that costs
        nothing."""
        if other.base is not None and other.base() is self:
            pairs = other.changed
        elif self.base is not None and self.base() is other:
            pairs = self.changed
        elif other is self:
            pairs = []
        else:
            pairs = _pairs(self.services, other.services) + _pairs(self.pools, other.pools)
            pairs.append((self.whole, other.whole))
        before, after = self.desired.resources, other.desired.resources
        touched = {key for pair in pairs for key in _touched(*pair)}
        return {key for key in touched if not _seems_same(before.get(key), after.get(key))}

    def differs_as_a_whole(self, other: Compiled) -> bool:
        """Whether more than services and pools differ: the node itself, its program, its settings."""
        return self.facts != other.facts or self.whole.wanted != other.whole.wanted


def compile_node(view: NodeView) -> Desired:
    """Every resource that this node must hold, and where each was asked for. Pure. Raises UnsupportedError."""
    return compiled(view).desired


def compiled(view: NodeView, before: Compiled | None = None) -> Compiled:
    """As `compile_node`. What was made for `before` from the same objects is not made again. Raises UnsupportedError.
    """
    facts = view.node, view.decapsulates, view.lossy, view.peers, view.asks_for_sources, view.was_stateless
    if before is None or before.facts != facts:
        with no_garbage_collection():
            return _compiled(view, facts, Compiled(), None)
    return _compiled(view, facts, before, ref(before))


def _compiled(
    view: NodeView, facts: NodeFacts, before: Compiled, base: ReferenceType[Compiled] | None
) -> Compiled:
    services, pools, uses, sources = before.services, before.pools, before.uses, before.sources
    changed: Pairs = []
    if view.node.role is Role.BALANCER:
        about = Facts(view.node)
        sources = view.services, tuple(view.pools.values())
        others = _others(before.sources[0], sources[0])
        services, changed = _renewed(before.services, sources[0], others, {}, lambda s, _: _part_of_service(s, about))
        uses = before.uses if all(_use_alike(old, new) for old, new in changed) else view.uses
        some = _others(before.sources[1], sources[1]) if uses is before.uses else sources[1]
        pools, of_pools = _renewed(before.pools, sources[1], some, uses, lambda p, use: _part_of_pool(p, use, about))
        changed += of_pools
    whole = _whole(view, before, services, pools, changed)
    if whole is not before.whole:
        changed.append((before.whole, whole))
    support.refuse(view.node.name, [item for _, part in changed if part for item in part.unsupported])
    if changed and view.node.role is Role.BALANCER:
        support.refuse(view.node.name, support.of_sources(view, uses))
    resources, owners = layer(before.desired.resources), layer(before.owners)
    _exchange(changed, resources, owners, {Service: services, Pool: pools, object: {whole.name: whole}})
    desired = Desired(version(resources), view.node.name, view.causes)
    return Compiled(desired, facts, sources, services, pools, whole, uses, version(owners), view.held, base, changed)


def _use_alike(old: Part | None, new: Part | None) -> bool:
    """Whether two versions of a service use the same pool in the same way."""
    services = [part.source for part in (old, new) if part and isinstance(part.source, Service)]
    ways = {(service.pool, service.mode, use_of(service)) for service in services}
    return len(services) == 2 and len(ways) == 1


_Source = TypeVar("_Source", Service, Pool)


def _others(before: Collection[_Source], sources: Collection[_Source]) -> Iterable[_Source]:
    """The services or pools that may be others than before."""
    return compress(sources, map(is_not, sources, before)) if len(sources) == len(before) else sources


def _renewed(
    before: Parts, sources: Collection[_Source], others: Iterable[_Source], uses: Mapping[str, Use],
    make: Callable[[_Source, Use], Part],
) -> tuple[Parts, Pairs]:  # fmt: skip
    """The parts of these services or pools, and those that differ from the parts `before`: some of the `others`."""
    changed: Pairs = []
    for source in others:
        part = before.get(source.name)
        if part is None or part.source is not source or (uses and part.use != uses[source.name]):
            changed.append((part, make(source, uses.get(source.name, NO_USE))))
    if not changed and len(sources) == len(before):
        return before, changed
    parts = dict(before)
    parts.update((part.name, part) for _, part in changed if part)
    if len(parts) > len(sources):
        left = {source.name for source in sources}
        changed += [(parts.pop(name), None) for name in parts.keys() - left]
    return parts, changed


def _exchange(
    changed: Pairs, resources: MutableMapping[Key, Resource], owners: MutableMapping[Key, tuple[Owner, ...]],
    parts: Mapping[type[object], Parts],
) -> None:  # fmt: skip
    """Put the resources of new parts in the place of those of the old ones. What both parts of a pair ask for as the
    very same object is no work."""
    shared: set[Key] = set()
    for old, new in changed:
        before, after = old.wanted if old else {}, new.wanted if new else {}
        if old is not None:
            for key in [key for key in before if key not in after]:
                left = tuple(owner for owner in owners.pop(key) if owner != old.owner)
                if left:
                    owners[key] = left
                    shared.add(key)
                else:
                    del resources[key]
        if new is None:
            continue
        came = [key for key in after if key not in before]
        joint = {key: (*owners[key], new.owner) for key in came if key in owners}
        shared |= joint.keys()
        owners.update(dict.fromkeys(came, (new.owner,)))
        owners.update(joint)
        others = {key: resource for key, resource in after.items() if before.get(key) is not resource}
        shared.update(key for key in others if len(owners[key]) > 1)
        resources.update(others)
    for key in shared:
        if key not in owners:
            continue
        owners[key] = tuple(sorted(owners[key], key=lambda owner: owner[0]))
        resources[key] = _joined(key, [_claim(parts[of][name].wanted[key]) for name, of in owners[key]])


def _touched(old: Part | None, new: Part | None) -> Iterable[Key]:
    """The keys that two parts don't ask for as the very same object."""
    before, after = old.wanted if old else {}, new.wanted if new else {}
    yield from (key for key, resource in after.items() if before.get(key) is not resource)
    yield from (key for key in before if key not in after)


def _whole(view: NodeView, before: Compiled, services: Parts, pools: Parts, changed: Pairs) -> Part:
    """The part of the node as a whole: the same as before if neither the node nor what matters of its services and
    pools has changed."""
    if view.node.role is not Role.BALANCER:
        return _part_of_node(view, frozenset())
    former = before.whole
    alike = all(old and new and (old.traits, old.size) == (new.traits, new.size) for old, new in changed)
    if alike and former.source is view.node and view.held == before.held:
        return former
    traits = frozenset(t for some in {p.traits for p in (*services.values(), *pools.values())} for t in some)
    same = former.source is view.node and former.traits == (traits | {view.sizes})
    return former if same else _part_of_node(view, traits | {view.sizes})


def _part_of_node(view: NodeView, traits: frozenset[object]) -> Part:
    kinds = (kind for kind in KINDS if view.node.role in kind.roles)
    wanted = _collected(wanted for kind in kinds for wanted in kind.desired(view))
    return Part("", view.node, wanted, traits=traits, unsupported=tuple(support.of_node(view)))


def _part_of_service(service: Service, facts: Facts) -> Part:
    wanted = _collected(wanted for kind in _OF_SERVICE for wanted in kind.of_service(service, facts))
    on_link = frozenset([(vip.version, face) for vip in service.vips for face in ("", *facts.on_link(vip))])
    is_for_some = bool(service.allowed_sources)
    traits = _traits(
        service.mode, service.scheduling, service.protocol, service.takes_pings, is_for_some, service.stateless,
        service.remembers_clients, on_link,
    )  # fmt: skip
    size = len(service.vips) * (len(service.ports) + service.takes_pings)
    return Part(service.name, service, wanted, NO_USE, traits, size, tuple(support.of_service(service)))


def _part_of_pool(pool: Pool, use: Use, facts: Facts) -> Part:
    wanted = _collected(wanted for kind in _OF_POOL for wanted in kind.of_pool(pool, use, facts))
    versions = _versions(frozenset([type(endpoint.address) for endpoint in pool.endpoints]))
    unsupported = tuple(support.of_check(pool, facts.node))
    return Part(pool.name, pool, wanted, use, versions, len(pool.endpoints), unsupported)


@lru_cache(maxsize=1024)
def _traits(
    mode: Mode, algorithm: Algorithm, protocol: Protocol, pings: bool, is_for_some: bool,
    stateless: bool, affinity: bool, on_link: frozenset[tuple[int, str]],
) -> frozenset[object]:
    """The traits of a service; thousands have the same ones."""
    families = frozenset([(mode, version) for version, _ in on_link])
    ways = {("pings", pings), ("for some", is_for_some), ("stateless", stateless)}
    ways.add(("affinity", affinity))
    return on_link | families | ways | {mode, algorithm, protocol}


@lru_cache(maxsize=16)
def _versions(types: frozenset[type[Address]]) -> frozenset[object]:
    """The traits of a pool with addresses of these types."""
    return frozenset((4 if type_ is IPv4Address else 6, "") for type_ in types)


_OF_SERVICE = [kind for kind in KINDS if "of_service" in vars(kind)]
_OF_POOL = [kind for kind in KINDS if "of_pool" in vars(kind)]


def _collected(claims: Iterable[Wanted]) -> dict[Key, Resource]:
    found: dict[Key, Resource] = {}
    for resource, origin in claims:
        key = resource.asked_for(origin)
        found[key] = _joined(key, (_claim(found[key]), (resource, origin))) if key in found else resource
    return found


def _claim(resource: Resource) -> Wanted:
    assert resource.origin, "a part notes who asks"
    return resource, resource.origin


def _joined(key: Key, claims: Sequence[Wanted]) -> Resource:
    if len(claims) == 1:
        return claims[0][0]
    resource, origin = _OF_KIND[key.kind].joined(claims)
    if resource.origin != origin:
        resource = replace(resource)
        resource.asked_for(origin)
    return resource


def _pairs(before: Parts, after: Parts) -> Pairs:
    """The parts that differ, before and after."""
    pairs: Pairs = [(before.get(name), part) for name, part in after.items() if before.get(name) is not part]
    return pairs + [(part, None) for name, part in before.items() if name not in after]


def _seems_same(one: Resource | None, other: Resource | None) -> bool:
    return one is other or (one is not None and other is not None and one.seems_same(other))
