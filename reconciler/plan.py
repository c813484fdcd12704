# SPDX-License-Identifier: Apache-2.0
"""The diff of desired and live state, as ordered changes. Pure: the same input gives the same plan anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from reconciler.errors import LbctlError
from reconciler.kinds import PHASES, RESOURCES
from reconciler.resource import Action, Cause, Change, Concern, Context, Desired, Key, Live, Reason, Resource
from reconciler.standing import fallen, kept_for, missed

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Held:
    """A change that is not made until another resource, which it waits for, is present."""

    change: Change
    waits_for: Key

    def __str__(self) -> str:
        return f"{'waits for' if self.change.after else 'kept until there is'} {self.waits_for}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes in the order in which they are made, and those that the node, as it is, can't take.

    `desired` is the state that the plan leads to; `blocked` says why a key can't be had: a foreign object is in its
    place, or the node lacks something. `held` are the changes that wait for blocked keys. `concerns` are for people:
    they change nothing. `keys` are those that the plan is about; None: all.
    """

    changes: tuple[Change, ...]
    desired: Desired
    live: Live
    blocked: Mapping[Key, str] = field(default_factory=dict)
    concerns: tuple[Concern, ...] = ()
    held: tuple[Held, ...] = ()
    keys: Collection[Key] | None = None

    def count(self, action: Action) -> int:
        return sum(change.action is action for change in self.changes)

    def effects(self, of: Iterable[Change] | None = None) -> dict[Key, str]:
        """The effect of each change on traffic, or of some of them; changes without an effect are left out."""
        context, changes = Context(self.live, self.desired.resources), self.changes if of is None else of
        texts = {change.key: change.before.effect(change.after, context) for change in changes if change.before}
        return {key: text for key, text in texts.items() if text}

    @property
    def drifted(self) -> int:
        return sum(change.reason is Reason.DRIFT for change in self.changes)


def plan(
    desired: Desired, live: Live, applied: Mapping[Key, str] | None = None, keys: Collection[Key] | None = None
) -> Plan:
    """The plan that leads from `live` to `desired`, with one change for each key that differs; of `keys` only, if they
    are given.

    `applied` holds the fingerprints of the resources that were last applied. It only decides the word for the reason
    of a change: if the manifests still ask for the same value, it is drift, else an edit of the manifests.
    """
    applied = {} if applied is None else applied
    changes = []
    blocked = {}
    differing, strays = _differing(desired.resources, live.resources, keys)
    for key in differing:
        before, after = live.resources.get(key), desired.resources[key]
        if key in live.impossible:
            blocked[key] = live.impossible[key]
            continue
        if before is None and key in live.foreign:
            blocked[key] = f"in the way: {live.foreign[key]}, which is not lbctl's"
            continue
        if after.is_given:
            continue
        cause = after.caused(before, desired.causes) if before is not None else None
        same_wish = key in applied and _is_drift(applied[key], after, cause)
        cause = None if same_wish else cause
        reason = Reason.DRIFT if same_wish else cause.reason if cause else Reason.CONFIG
        changes.append(Change(key, before, after, reason, after.origin, cause.text if cause else ""))
    for key in strays:
        before = live.resources[key]
        if not before.is_given:
            reason = Reason.REMOVED if key in applied or not applied else Reason.DRIFT
            changes.append(Change(key, before, None, reason))
    held = _held(changes, desired, live, blocked) if blocked else {}
    ordered = order(changes)
    return Plan(
        tuple(c for c in ordered if c.key not in held),
        desired,
        live,
        blocked,
        held=tuple(Held(c, held[c.key]) for c in ordered if c.key in held),
        keys=keys,
    )


def _differing(
    wanted: Mapping[Key, Resource], held: Mapping[Key, Resource], keys: Collection[Key] | None
) -> tuple[list[Key], list[Key]]:
    """The wanted keys that are not held as they should be, and the held keys that nobody wants."""
    if keys is None:
        # Most wanted resources are held as the very same objects.
        others = [key for key, after in wanted.items() if held.get(key) is not after]
        strays = [key for key in held if key not in wanted]
    else:
        others = [key for key in keys if key in wanted]
        strays = [key for key in keys if key in held and key not in wanted]
    return [key for key in others if held.get(key) != wanted[key]], strays


def _held(changes: Iterable[Change], desired: Desired, live: Live, blocked: Iterable[Key]) -> dict[Key, Key]:
    """The changes that wait, each with the key that it waits for: writes wait for their needs, deletes for resources
    that may be their replacements."""
    causes = fallen(desired.resources, live.resources, blocked)
    missing = missed(desired.resources, causes)
    kept = {kind: kept_for(kind, causes, missing, PHASES) for kind in {c.key.kind for c in changes if not c.after}}
    waits = ((c.key, causes.get(c.key) if c.after else kept[c.key.kind]) for c in changes)
    return {key: cause for key, cause in waits if cause}


def order(changes: Iterable[Change]) -> list[Change]:
    """Make before break: creates and updates by ascending phase, then deletes by descending phase. Whatever is
    announced no more is so before anything of it changes. What somebody of an earlier phase needs is written just
    before that, and deleted just after it."""
    changes = list(changes)
    early = {need: PHASES[c.key.kind] for c in changes if c.key.kind in _LEADING for need in _late_needs(c)}

    def rank(change: Change) -> tuple[bool, bool, int, int, int, Key]:
        phase, gone = PHASES[change.key.kind], change.after is None
        withdraws = change.before is not None and change.after is not None and change.after.withdraws
        sign, first = -1 if gone or withdraws else 1, early.get(change.key)
        place = phase if first is None else first
        return gone, not withdraws, sign * place, sign * (first is None), sign * phase, change.key

    return sorted(changes, key=rank)


_LEADING = {
    kind for kind, resource in RESOURCES.items()
    if any(PHASES[kind] < PHASES.get(need, PHASES[kind]) for need in resource.may_need or ())
}  # fmt: skip
"""The kinds that may need resources of a later phase."""


def _late_needs(change: Change) -> list[Key]:
    """The resources of a later phase that what is written or deleted needs."""
    resource = change.after or change.before
    return [need for need in resource.needs if PHASES[change.key.kind] < PHASES[need.kind]] if resource else []


def guard(planned: Plan, *, allow_empty: bool, max_prune: int | None = None) -> None:
    """Refuse a plan that would take every service off a balancer, or every VIP off an endpoint, or remove more than
    `max_prune` resources that no manifest asks for any more. Raises LbctlError."""
    pruned = sum(change.after is None and change.reason is not Reason.DRIFT for change in planned.changes)
    if max_prune is not None and pruned > max_prune:
        raise LbctlError(
            f"{pruned:,} resources would be removed, and --max-prune allows {max_prune:,}",
            hint="see what goes with `lbctl plan`; if that is what you want, allow as many",
        )
    going = {c.key.kind for c in (*planned.changes, *(held.change for held in planned.held)) if c.after is None}
    for kind, noun in (("service", "service"), ("loopback", "VIP")):
        if allow_empty or kind not in going or any(key.kind == kind for key in planned.desired.resources):
            continue
        if held := sum(key.kind == kind for key in planned.live.resources):
            raise LbctlError(
                f"the manifests ask for no {noun} at all, and {held} would be removed",
                hint="if that is what you want, say --allow-empty",
            )


def fingerprint(resource: Resource) -> str:
    """A short text for a resource's value; of resources with one key only equal ones have the same."""
    return _short(next(resource.stamps()))


def _is_drift(text: str, after: Resource, cause: Cause | None) -> bool:
    """Whether what was applied last is wanted still. Only saved plans name a ring by its slots, which take long to
    build, and no saved plan knows of causes."""
    return text == fingerprint(after) if cause else is_fingerprint(text, after)


def is_fingerprint(text: str, resource: Resource) -> bool:
    """Whether a text is a fingerprint of this resource, or of an equal one."""
    return any(_short(stamp) == text for stamp in resource.stamps())


def _short(stamp: str) -> str:
    if len(stamp) <= 2 * _DIGEST_BYTES:
        return stamp
    return hashlib.blake2b(stamp.encode(), digest_size=_DIGEST_BYTES).hexdigest()
