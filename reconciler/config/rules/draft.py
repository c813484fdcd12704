# SPDX-License-Identifier: Apache-2.0
"""All documents that fit their schema, joined: what the rules look at.

The content of other documents is not known, so a rule about something that is missing asks `may_declare` first.

A draft is kept from one check of the manifests to the next. Then an edit costs what it changes: of 10,000 services and
100,000 endpoints only those are counted, sorted and joined anew whose documents differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from reconciler.config.rules.parts import FileParts, Members, Need, Needs, Reach, Use, Vip
from reconciler.config.rules.reaches import Reaches
from reconciler.config.rules.rule import place
from reconciler.config.rules.segments import number
from reconciler.config.rules.sorted_numbers import SortedNumbers
from reconciler.config.rules.surroundings import Surroundings
from reconciler.model import CheckType, Fleet, HealthCheck, Mode, Node, Pool, Service, Through
from reconciler.resource import Span

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Changed:
    """The parts of a draft that are others than before: names of pools, numbers of VIPs, single services. `around`:
    the nodes are others."""

    uses: set[str]
    vips: set[int]
    gone: Sequence[Service]
    new: Sequence[Service]
    around: bool


class Draft:
    """All services, pools and nodes. `numbers` are those of the addresses of all endpoints; `around` are the nodes;
    `through_vips` are the names of pools that are checked through VIPs."""

    def __init__(self) -> None:
        self.around = Surroundings(())
        self.numbers = SortedNumbers()
        self.needs: Needs = {}
        self.through_vips: dict[str, None] = {}
        self._files: Sequence[FileParts] = ()
        self._declared: frozenset[tuple[str, str]] = frozenset()
        self._named: frozenset[str] = frozenset()
        self._unread = False
        self._services: dict[str, list[Service]] = {}  # by name
        self._pools: dict[str, list[Members]] = {}  # by name
        self._users: dict[str, list[Service]] = {}  # by the name of their pool
        self._fallback_of: dict[str, list[Members]] = {}  # by the name of their fallback
        self._joined: dict[str, Sequence[Service]] = {}  # those of a fallback, as far as somebody asked
        self._vips: dict[int, list[Service]] = {}
        self._reaches: dict[tuple[Mode, ...], Reaches] = {}
        self._missing: set[str] = set()
        self._in_order: tuple[_InOrder[Service, Service], _InOrder[Members, Pool]] = (
            _InOrder(self._services, lambda group: group[0]), _InOrder(self._pools, lambda group: group[0].pool),
        )  # fmt: skip

    def update(self, files: Sequence[FileParts], *, unread: bool) -> Changed:
        """Take in all files of a tree, in order; `unread`: there is something else, which could not be read."""
        before, self._files = self._files, files
        gone_files, new_files = _difference(before, files)
        gone, new = _difference(_all_of(gone_files, _services_of), _all_of(new_files, _services_of))
        gone_pools, new_pools = _difference(_all_of(gone_files, _pools_of), _all_of(new_files, _pools_of))
        around = self._look_around(gone_files, new_files)

        uses = self._look_at_broken(unread)
        _regroup(self._services, _by_name(gone), _by_name(new), place)
        _regroup(self._pools, _pools_by_name(gone_pools), _pools_by_name(new_pools), _pool_place)
        self._in_order[0].changed.update(service.name for service in (*gone, *new))
        self._in_order[1].changed.update(members.pool.name for members in (*gone_pools, *new_pools))
        for name in {members.pool.name for members in (*gone_pools, *new_pools)}:
            self._note_check(name)
        uses |= {service.pool for service in (*gone, *new)}
        uses |= self._fallbacks_of(uses) | {name for name, _, _ in _named(gone_pools) ^ _named(new_pools)}
        uses |= {members.pool.name for members in (*gone_pools, *new_pools)}
        _regroup(self._fallback_of, _by_fallback(gone_pools), _by_fallback(new_pools), _pool_place)
        _regroup(self._users, _by_pool(gone), _by_pool(new), place)
        for name in uses:
            self._joined.pop(name, None)
            if name in self._users and name not in self._pools:
                self._missing.add(name)
            else:
                self._missing.discard(name)
        _regroup(self._vips, _by_vip(gone), _by_vip(new), place)
        vips = {value for value, _ in chain(_by_vip(gone), _by_vip(new))}

        changed = [members.numbers for members in (*gone_pools, *new_pools)]
        vips |= self._vips.keys() & chain.from_iterable(changed)
        self.numbers.change(
            [value for members in gone_pools for value in members.numbers],
            [value for members in new_pools for value in members.numbers],
        )
        for reaches in self._reaches.values():
            reaches.change(self._users_of(uses))
        self._count(gone_files, new_files)
        return Changed(uses, vips, gone, new, around)

    @property
    def services(self) -> Sequence[Service]:
        """In order of their places."""
        return _all_of(self._files, _services_of)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """In order of their places."""
        return self.around.nodes

    @property
    def balancers(self) -> tuple[Node, ...]:
        return self.around.balancers

    @property
    def all_pools(self) -> Iterator[Members]:
        """In order of their places."""
        return chain.from_iterable(file.pools for file in self._files)

    @property
    def vips(self) -> Iterable[int]:
        """The numbers of all VIPs."""
        return self._vips.keys()

    @property
    def pool_names(self) -> Iterable[str]:
        return self._pools.keys()

    @property
    def missing_pools(self) -> Iterable[str]:
        """The names of pools that services name and no document declares."""
        return self._missing

    @property
    def missing_fallbacks(self) -> Iterable[str]:
        """The names of pools that others have as their fallback and no document declares."""
        return [name for name in self._fallback_of if name not in self._pools]

    @property
    def namesakes(self) -> Iterator[list[Service]]:
        """Services with the same name."""
        if len(self._services) < sum(need.count for need in self.needs.values()):
            yield from (group for group in self._services.values() if len(group) > 1)

    def fleet(self, digest: str) -> Fleet:
        """All objects in order of their names, of which no two of a kind are the same."""
        services, pools = self._in_order
        return Fleet(
            tuple(services.items()),
            tuple(pools.items()),
            tuple(sorted(self.nodes, key=lambda node: node.name)),
            digest,
        )

    def may_declare(self, kind: str) -> bool:
        """Whether a document that is broken or unread could declare anything of a kind."""
        return self._unread or any(declared == kind for declared, _ in self._declared)

    def carriers(self, service: Service) -> tuple[Node, ...]:
        """The balancers that carry a service."""
        return self.around.carriers(service.node_selector)

    def reach(self, *modes: Mode) -> list[Reach]:
        """Which balancers send to which endpoints in one of these modes. A pool is in one group at most."""
        return [reach for reach in self.groups(*modes) if reach.balancers]

    def groups(self, *modes: Mode) -> list[Reach]:
        """As `reach`, with the pools to which no balancer sends."""
        if modes not in self._reaches:
            self._reaches[modes] = Reaches(modes)
            self._reaches[modes].change(self._users_of(self._users.keys() | self._fallback_of.keys()))
        return self._reaches[modes].groups(self.around)

    def pool(self, name: str) -> Members | None:
        """The pool of a name; of several, the first."""
        return self._pools[name][0] if name in self._pools else None

    def use(self, name: str) -> Use:
        fallback_of = self._fallback_of.get(name, ())
        names = {name, *(members.pool.name for members in fallback_of)}
        return Use(
            name, self._pools.get(name, ()), fallback_of, self._all_users(name),
            may_be_declared=self._unread or ("Pool", name) in self._declared,
            may_be_named=self._unread or not names.isdisjoint(self._named),
        )  # fmt: skip

    def uses_of(self, names: Iterable[str]) -> Iterator[Use]:
        """The names that a pool has, or that a service or another pool names."""
        known = (self._pools, self._users, self._fallback_of)
        return (self.use(name) for name in names if any(name in some for some in known))

    def vips_of(self, numbers: Iterable[int]) -> Iterator[Vip]:
        """The VIPs with these numbers, as far as they are there."""
        numbers = [value for value in numbers if value in self._vips]
        taken = {value for value in numbers if value in self.numbers}
        owners: dict[int, tuple[Members, int]] = {}
        for members in self.all_pools if taken else ():
            for value in taken.intersection(members.numbers):
                owners.setdefault(value, (members, members.numbers.index(value)))
        return (Vip(value, self._vips[value], self.around, owners.get(value)) for value in numbers)

    def _note_check(self, name: str) -> None:
        members = self.pool(name)
        if members is not None and is_through_vip(members.pool.health_check):
            self.through_vips[name] = None
        else:
            self.through_vips.pop(name, None)

    def _users_of(self, names: Iterable[str]) -> Iterator[tuple[str, Members | None, Sequence[Service]]]:
        return ((name, self.pool(name), self._all_users(name)) for name in names)

    def _all_users(self, name: str) -> Sequence[Service]:
        """The services that name a pool, or one whose fallback it is, in order of their places."""
        own = self._users.get(name, ())
        others = {members.pool.name for members in self._fallback_of.get(name, ())} - {name}
        if not others:
            return own
        if name not in self._joined:
            services = chain(own, *(self._users.get(other, ()) for other in others))
            self._joined[name] = sorted(services, key=place)
        return self._joined[name]

    def _fallbacks_of(self, names: Iterable[str]) -> set[str]:
        """The fallbacks of pools with these names."""
        return {fallback for name in names for fallback, _ in _by_fallback(self._pools.get(name, ()))}

    def _look_around(self, gone: Sequence[FileParts], new: Sequence[FileParts]) -> bool:
        """Whether the nodes, or their order, are others than before."""
        if not any(file.nodes for file in (*gone, *new)):
            return False
        nodes = tuple(chain.from_iterable(file.nodes for file in self._files))
        if len(nodes) == len(self.nodes) and all(map(_is, nodes, self.nodes)):
            return False
        self.around = Surroundings(nodes)
        return True

    def _look_at_broken(self, unread: bool) -> set[str]:
        """The names of pools about which broken and unread documents say something else than before."""
        broken = [file for file in self._files if file.named or file.declared or file.is_unread]
        declared = frozenset[tuple[str, str]]().union(*(file.declared for file in broken))
        named = frozenset[str]().union(*(file.named for file in broken))
        unread = unread or any(file.is_unread for file in broken)
        changed = set(named ^ self._named) | {name for _, name in declared ^ self._declared}
        if unread != self._unread:
            changed.update(self._pools, self._users)
        self._declared, self._named, self._unread = declared, named, unread
        return changed

    def _count(self, gone: Sequence[FileParts], new: Sequence[FileParts]) -> None:
        needs = dict(self.needs)
        for key in {key for file in (*gone, *new) for key in file.needs}:
            before, now = ([need for file in files if (need := file.needs.get(key))] for files in (gone, new))
            if len(before) == len(now) and all(map(Need.is_same, before, now)):
                continue
            own = [need for file in self._files if (need := file.needs.get(key))]
            if own:
                needs[key] = Need.sum(own)
            else:
                del needs[key]
        self.needs = needs


def is_through_vip(check: HealthCheck) -> bool:
    return check.through is Through.VIP and check.type is not CheckType.NONE


def _difference(before: Sequence[T], now: Sequence[T]) -> tuple[list[T], list[T]]:
    """What is gone and what is new, by identity."""
    old, new = set(map(id, before)), set(map(id, now))
    return [item for item in before if id(item) not in new], [item for item in now if id(item) not in old]


class _InOrder(Generic[T, U]):
    """What is taken `of` each group, in the order of their names. `changed` are the names of groups that may be others
    than before: to ask ten thousand groups takes longer than the rest of an edit."""

    def __init__(self, groups: Mapping[str, Sequence[T]], of: Callable[[Sequence[T]], U]) -> None:
        self._groups, self._of = groups, of
        self._names: list[str] = []
        self._items: list[U] = []
        self.changed: set[str] = set()

    def items(self) -> list[U]:
        changed, self.changed = self.changed, set()
        places = {name: bisect_left(self._names, name) for name in changed}
        is_same = len(self._names) == len(self._groups) and all(
            at < len(self._names) and self._names[at] == name and name in self._groups for name, at in places.items()
        )
        if not is_same:
            self._names = sorted(self._groups)
            self._items = [self._of(self._groups[name]) for name in self._names]
            return self._items
        for name, at in places.items():
            self._items[at] = self._of(self._groups[name])
        return self._items


def _regroup(
    groups: dict[K, list[T]], gone: Iterable[tuple[K, T]], new: Iterable[tuple[K, T]], order: Callable[[T], object]
) -> None:
    """Take items out of groups and put others in; groups are sorted, and never empty."""
    leaving: dict[K, set[int]] = {}
    for key, item in gone:
        leaving.setdefault(key, set()).add(id(item))
    for key, ids in leaving.items():
        groups[key] = [item for item in groups[key] if id(item) not in ids]
    joined: dict[K, None] = {}
    for key, item in new:
        groups.setdefault(key, []).append(item)
        joined[key] = None
    for key in joined:
        if len(groups[key]) > 1:
            groups[key].sort(key=order)  # type: ignore[arg-type]
    for key in leaving:
        if not groups[key]:
            del groups[key]


def _all_of(files: Iterable[FileParts], items: Callable[[FileParts], Sequence[T]]) -> list[T]:
    return list(chain.from_iterable(map(items, files)))


def _services_of(file: FileParts) -> Sequence[Service]:
    return file.services


def _pools_of(file: FileParts) -> Sequence[Members]:
    return file.pools


def _by_name(services: Iterable[Service]) -> Iterator[tuple[str, Service]]:
    return ((service.name, service) for service in services)


def _by_pool(services: Iterable[Service]) -> Iterator[tuple[str, Service]]:
    return ((service.pool, service) for service in services)


def _by_vip(services: Iterable[Service]) -> Iterator[tuple[int, Service]]:
    return ((value, service) for service in services for value in set(map(number, service.vips)))


def _pools_by_name(pools: Iterable[Members]) -> Iterator[tuple[str, Members]]:
    return ((members.pool.name, members) for members in pools)


def _by_fallback(pools: Iterable[Members]) -> Iterator[tuple[str, Members]]:
    return ((name, members) for members in pools if (name := members.pool.fallback_pool) is not None)


def _named(pools: Iterable[Members]) -> set[tuple[str, str, Span]]:
    """What matters of pools to their fallbacks."""
    return {(name, members.pool.name, members.pool.span) for name, members in _by_fallback(pools)}


def _pool_place(members: Members) -> tuple[str, int, int]:
    return place(members.pool)


def _is(one: object, other: object) -> bool:
    return one is other
