# SPDX-License-Identifier: Apache-2.0
"""The common tongue: keys, resources, changes.

Everything that a node must hold is a resource, a frozen value with a key. Desired and live state are both
`{Key: Resource}`; what differs between them are changes. Nothing here knows what a VIP or a sysctl is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Identity of a resource: never its position, never a number that the kernel gave it."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Where a user wrote something: a file, and a line and column counted from 1.

    In a template, `rendered_line` is the line of the text that it became; several may come from one `line`.
    """

    file: str
    line: int
    column: int = 1
    rendered_line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that a node holds. Subclasses add fields and are compared by value.

    `is_given`: lbctl never writes it. It is there when all that it needs is, unless a reading says that it can't be.
    `announces`: it brings traffic to the node, so everything that this traffic stands on is among its needs.
    `is_restored`: removing it puts back what was there before lbctl.
    """

    kind: ClassVar[str]
    is_given: ClassVar[bool] = False
    announces: ClassVar[bool] = False
    is_restored: ClassVar[bool] = False

    @property
    def id(self) -> str:
        """The part of the key that is unique within the kind."""
        raise NotImplementedError

    @property
    def key(self) -> Key:
        return Key(self.kind, self.id)

    @property
    def needs(self) -> tuple[Key, ...]:
        """What must be there before this resource may be written, and until it is gone."""
        return ()

    @property
    def needs_any(self) -> tuple[Key, ...]:
        """Of these at least one must be there before this resource may be created; none if it is empty."""
        return ()

    def describe(self) -> dict[str, str]:
        """The fields as a person reads them, in the order of a plan."""
        return {f.name: str(getattr(self, f.name)) for f in fields(self)}

    def former(self) -> dict[str, str]:
        """What will be in its place once it is removed, as `describe` has it, of a kind that is restored."""
        return {}

    @property
    def flaw(self) -> str:
        """Why no manifests can ask for this; empty if they can. A file that was saved may say anything."""
        return ""

    @property
    def remembers(self) -> bool:
        """Whether each open connection by way of this is remembered, and so can be counted."""
        return True

    def effect(self, after: Resource | None, context: Context) -> str:
        """What happens to traffic when this becomes `after` (None: is removed); empty if nothing does."""
        return ""


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class Reason(StrEnum):
    """Why a change is in a plan."""

    CONFIG = "config"        # the manifests say something else than before
    DRIFT = "drift"          # the manifests stand still; somebody changed live state
    REMOVED = "removed"      # no manifest asks for it any more


@dataclass(frozen=True, slots=True)
class Change:
    """One step: `before` is None for a create, `after` is None for a delete."""

    key: Key
    before: Resource | None
    after: Resource | None
    reason: Reason = Reason.CONFIG
    origin: Span | None = None

    @property
    def action(self) -> Action:
        if self.before is None:
            return Action.CREATE
        return Action.DELETE if self.after is None and not self.before.is_restored else Action.UPDATE

    def inverse(self) -> Change:
        """The change that takes this one back."""
        return Change(self.key, self.after, self.before, self.reason, self.origin)


@dataclass(frozen=True, slots=True)
class Desired:
    """What the manifests ask of one node, and where each resource was asked for. `node` is its name."""

    resources: Mapping[Key, Resource] = field(default_factory=dict)
    origins: Mapping[Key, Span] = field(default_factory=dict)
    node: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Which node, instance and machine a plan is for. A plan that was made from a snapshot knows the node alone."""

    node: str
    instance: str = ""
    host: str = ""

    def difference(self, here: Target) -> str:
        """What of this is another here, e.g. `node lb1, and this is lb2`; empty if nothing is."""
        for what, own, theirs in (
            ("node", self.node, here.node),
            ("instance", self.instance, here.instance),
            ("host", self.host, here.host),
        ):
            if own and theirs and own != theirs:
                return f"{what} {own}, and this is {theirs}"
        return ""

    def __str__(self) -> str:
        known = (("node", self.node), ("instance", self.instance), ("host", self.host))
        return ", ".join(f"{what} {name}" for what, name in known if name)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one kind found: our own resources, whose the others in our way are, and what can't be had here.

    `foreign` describes, for a person, the owner of an object that stands where ours would (`xdp eth0` →
    "program 'xdp_pass', id 12"); the object is never touched. `impossible` says why the node, as it is, can't hold
    a key that is wanted (`interface eth7` → "there is no interface eth7"). A plan that wants either is blocked.
    """

    resources: tuple[Resource, ...] = ()
    foreign: Mapping[Key, str] = field(default_factory=dict)
    impossible: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Concern:
    """Something about a node that may keep a resource from working though it is there as asked for."""

    key: Key
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Live:
    """What a node holds: the readings of all kinds."""

    resources: Mapping[Key, Resource] = field(default_factory=dict)
    foreign: Mapping[Key, str] = field(default_factory=dict)
    connections: Mapping[tuple[str, str], int] | None = None
    """Open connections by (service id, endpoint id); None where nobody counted them."""
    impossible: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a change is part of: what the node holds before all changes, and what it will hold after them."""

    live: Live = Live()
    desired: Mapping[Key, Resource] = field(default_factory=dict)

    def users(self, key: Key) -> list[Resource]:
        """What the node holds that stands on this, directly or not."""
        found: dict[Key, Resource] = {}
        left = [key]
        while left:
            for user in self._users.get(left.pop(), ()):
                if user.key not in found:
                    found[user.key] = user
                    left.append(user.key)
        return list(found.values())

    def remembers(self, key: Key) -> bool:
        """Whether all that stand on this remember their connections; all that there is, if nothing does any more."""
        return all(user.remembers for user in self.users(key) or self.live.resources.values())

    @cached_property
    def _users(self) -> Mapping[Key, list[Resource]]:
        users: dict[Key, list[Resource]] = {}
        for resource in self.live.resources.values():
            for need in resource.needs:
                users.setdefault(need, []).append(resource)
        return users
