# SPDX-License-Identifier: Apache-2.0
"""The common tongue: keys, resources, changes.

Everything that a node must hold is a resource, a frozen value with a key. Desired and live state are both
`{Key: Resource}`; the differences between them are changes. Nothing here knows what a VIP or a sysctl is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, NamedTuple

from reconciler.layered import Layered


class Key(NamedTuple):
    """Identity of a resource: never its position, never a number that the kernel gave it."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A place in the manifests: a file, and a line and column counted from 1.

    In a template, `rendered_line` is the line of the rendered text; several such lines may come from one `line`.
    """

    file: str
    line: int
    column: int = 1
    rendered_line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class _Keyed:
    """Room for the key of a resource, and for its bytes in the kernel, which are made when they are first asked for,
    and for the place that asks for it. They are no fields, and not compared."""

    __slots__ = ("_bytes", "_key", "_origin")
    _key: Key
    _bytes: bytes
    _origin: Span


@dataclass(frozen=True, slots=True)
class Resource(_Keyed):
    """One object that a node holds. Subclasses add fields and are compared by value.

    `is_given`: lbctl never writes it. It is present as soon as all its needs are, unless a reading calls it
    impossible. `announces`: it brings traffic to the node, so its needs include everything that serves this traffic.
    `is_restored`: removing it puts back the state before lbctl.
    """

    kind: ClassVar[str]
    is_given: ClassVar[bool] = False
    announces: ClassVar[bool] = False
    is_restored: ClassVar[bool] = False
    may_need: ClassVar[frozenset[str] | None] = None
    """The kinds of which resources of this kind need some; None: any."""

    @property
    def id(self) -> str:
        """The part of the key that is unique within the kind."""
        raise NotImplementedError

    @property
    def key(self) -> Key:
        try:
            return self._key
        except AttributeError:
            key = Key(self.kind, self.id)
            object.__setattr__(self, "_key", key)
            return key

    @property
    def origin(self) -> Span | None:
        """The place in the manifests that asks for the resource, as far as it is known."""
        return getattr(self, "_origin", None)

    def asked_for(self, origin: Span) -> Key:
        """Note the place that asks for it; returns the key. Only for whoever has just made the resource, or for the
        same place again."""
        if self.origin is origin:
            return self.key
        key = tuple.__new__(Key, (self.kind, self.id))  # a third of the time that Key() takes
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_origin", origin)
        return key

    def packed(self) -> bytes:
        """What the kernel knows the resource by, for kinds that find theirs by bytes; see `_pack`."""
        try:
            return self._bytes
        except AttributeError:
            packed = self._pack()
            object.__setattr__(self, "_bytes", packed)
            return packed

    def _pack(self) -> bytes:
        raise NotImplementedError

    @property
    def needs(self) -> tuple[Key, ...]:
        """The resources that must be present before this one is written, and until it is deleted."""
        return ()

    @property
    def needs_any(self) -> tuple[Key, ...]:
        """At least one of these resources must be present before this one is created; empty: there is no such need."""
        return ()

    def needs_of(self, kind: str) -> Iterable[Key]:
        """The needs that are of one kind."""
        return (need for need in self.needs if need.kind == kind)

    @property
    def withdraws(self) -> bool:
        """Whether it says that no traffic is to come any more. What it took the place of goes before anything else
        changes."""
        return False

    def stamps(self) -> Iterator[str]:
        """Texts for the value, the same on every machine: the first is written down when the resource was applied, any
        of them stands for this value. Resources with one key have the same first text just if they are equal: so no
        field that is left out of comparing may show in it."""
        yield repr(self)

    def describe(self) -> dict[str, str]:
        """The fields as a person reads them, in the order of a plan."""
        return {f.name: str(getattr(self, f.name)) for f in fields(self)}

    def former(self) -> dict[str, str]:
        """The fields after the resource is removed, in the form of `describe`, for a kind that is restored."""
        return {}

    @property
    def flaw(self) -> str:
        """Why no manifests can ask for this resource; empty if they can. A saved file may hold anything."""
        return ""

    @property
    def remembers(self) -> bool:
        """Whether the data plane remembers each open connection that uses this resource, so that they can be
        counted."""
        return True

    def caused(self, before: Resource, causes: Causes) -> Cause | None:
        """What made this replace `before`, as far as that is neither an edit nor drift."""
        return None

    def seems_same(self, other: Resource) -> bool:
        """Whether both are equal, or False where that can't be seen at once."""
        return self == other

    def effect(self, after: Resource | None, context: Context) -> str:
        """The effect on traffic when `after` replaces this resource (None: it is removed); empty if there is none."""
        return ""


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class Reason(StrEnum):
    """Why a change is in a plan."""

    CONFIG = "config"  # the manifests say something else than before
    DRIFT = "drift"  # the manifests stand still; somebody changed live state
    REMOVED = "removed"  # no manifest asks for it any more
    HEALTH = "health"  # the manifests stand still; checks of endpoints answer otherwise
    DRAIN = "drain"  # somebody took an endpoint out of service for a while, or that is over


@dataclass(frozen=True, slots=True)
class Cause:
    """What made a change necessary, if neither the manifests nor the node did; `text` is for people."""

    reason: Reason
    text: str


Causes = Mapping[str, Mapping[str, Cause]]
"""By names of pools and ids of endpoints."""
ANY_POOL = "*"
"""The name under which causes have those of endpoints' own rows, which pools share."""


@dataclass(frozen=True, slots=True)
class Change:
    """One step: `before` is None for a create, `after` is None for a delete. `cause` says in words what the manifests
    don't: which check failed, who drained what."""

    key: Key
    before: Resource | None
    after: Resource | None
    reason: Reason = Reason.CONFIG
    origin: Span | None = None
    cause: str = ""

    @property
    def action(self) -> Action:
        if self.before is None:
            return Action.CREATE
        return Action.DELETE if self.after is None and not self.before.is_restored else Action.UPDATE

    def inverse(self) -> Change:
        """The change that takes this one back."""
        return Change(self.key, self.after, self.before, self.reason, self.origin, self.cause)


def actions_of(changes: Iterable[Change]) -> Counter[Action]:
    """How many changes there are of each action."""
    return Counter([change.action for change in changes])


def by_kind(resources: Mapping[Key, Resource]) -> Mapping[str, dict[Key, Resource]]:
    """The same resources, grouped."""
    found: defaultdict[str, dict[Key, Resource]] = defaultdict(dict)
    for key, resource in resources.items():
        found[key.kind][key] = resource
    return dict(found)


@dataclass(frozen=True)
class Desired:
    """The resources that manifests ask of one node. `node` is its name. `causes` says why pools are other than the
    manifests say."""

    resources: Mapping[Key, Resource] = field(default_factory=dict)
    node: str = ""
    causes: Causes = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def of_kind(self) -> Mapping[str, Mapping[Key, Resource]]:
        """The resources of each kind."""
        return by_kind(self.resources)


@dataclass(frozen=True, slots=True)
class Reading:
    """The live state of one kind: our own resources, foreign objects in their way, and impossible resources.

    `foreign` describes, for a person, the owner of an object in the place of ours (`xdp eth0` → "program 'xdp_pass',
    id 12"); the object is never touched. `impossible` says why the node, as it is, can't hold a wanted key (`interface
    eth7` → "there is no interface eth7"). A plan that wants either is blocked.
    """

    resources: tuple[Resource, ...] = ()
    foreign: Mapping[Key, str] = field(default_factory=dict)
    impossible: Mapping[Key, str] = field(default_factory=dict)

    def only(self, keys: Collection[Key]) -> Reading:
        """The part of the reading that is about these keys."""
        return Reading(
            tuple(resource for resource in self.resources if resource.key in keys),
            {key: owner for key, owner in self.foreign.items() if key in keys},
            {key: why for key, why in self.impossible.items() if key in keys},
        )


@dataclass(frozen=True, slots=True, order=True)
class Concern:
    """A fact about a node that may keep a resource from working although it is in place."""

    key: Key
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Live:
    """A node's live state: the readings of all kinds."""

    resources: Mapping[Key, Resource] = field(default_factory=dict)
    foreign: Mapping[Key, str] = field(default_factory=dict)
    connections: Mapping[tuple[str, str], int] | None = None
    """Open connections by (service id, endpoint id); None if they were not counted."""
    impossible: Mapping[Key, str] = field(default_factory=dict)

    def over(self, former: Mapping[Key, Resource], keys: Collection[Key]) -> Live:
        """What the node holds if this reading is about `keys`, and it held `former` before."""
        resources = Layered(former)
        for key in keys:
            resources.pop(key, None)
        resources.update(self.resources)
        return replace(self, resources=resources)


@dataclass(frozen=True)
class Context:
    """The context of a change: the node's resources before all changes, and after them."""

    live: Live = Live()
    desired: Mapping[Key, Resource] = field(default_factory=dict)

    def users(self, key: Key) -> list[Resource]:
        """The node's resources that need this one, directly or through others."""
        found: dict[Key, Resource] = {}
        left = [key]
        while left:
            key = left.pop()
            for user in self._users(key.kind).get(key, ()):
                if user.key not in found:
                    found[user.key] = user
                    left.append(user.key)
        return list(found.values())

    def remembers(self, key: Key) -> bool:
        """Whether all users of this resource remember their connections; if it has none, whether all resources do."""
        return all(user.remembers for user in self.users(key) or self.live.resources.values())

    @cached_property
    def remembers_all(self) -> bool | None:
        """Whether all resources of the node remember their connections, or none that could; None: some do."""
        if all(resource.remembers for resource in self.live.resources.values()):
            return True
        forgetful = {r.kind for r in self.live.resources.values() if not r.remembers}
        return None if any(r.remembers for r in self.live.resources.values() if r.kind in forgetful) else False

    def _users(self, kind: str) -> Mapping[Key, list[Resource]]:
        """Who needs each resource of a kind."""
        if kind not in self._users_of:
            users = self._users_of[kind] = {}
            for type_, resources in self._of_type.items():
                if type_.may_need is None or kind in type_.may_need:
                    for resource in resources:
                        for need in resource.needs_of(kind):
                            users.setdefault(need, []).append(resource)
        return self._users_of[kind]

    @cached_property
    def _of_type(self) -> Mapping[type[Resource], list[Resource]]:
        found: defaultdict[type[Resource], list[Resource]] = defaultdict(list)
        for resource in self.live.resources.values():
            found[type(resource)].append(resource)
        return found

    @cached_property
    def _users_of(self) -> dict[str, dict[Key, list[Resource]]]:
        return {}
