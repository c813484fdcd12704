# SPDX-License-Identifier: Apache-2.0
"""Dependencies among resources: which wanted ones must wait for others that can't be had, and which old ones stay
until then.

Pure functions of resources and their needs; nothing here knows a kind. A resource that must wait has "fallen".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from reconciler.resource import Key, Resource

Resources = Mapping[Key, Resource]
Causes = Mapping[Key, Key]
"""Fallen keys, each with the lost key that it waits for; lost keys wait for themselves."""


def ends(resources: Resources) -> list[Key]:
    """The ends that all other resources serve: those that announce traffic; if there are none, those that no other
    needs."""
    announcing = [key for key, resource in resources.items() if resource.announces]
    if announcing:
        return announcing
    needed = {need for resource in resources.values() for need in resource.needs}
    return [key for key in resources if key not in needed]


def carriers(resources: Resources) -> set[Key]:
    """The resources that traffic needs: the ends, and everything that they need."""
    return closure(ends(resources), _needs(resources))


def fallen(resources: Resources, standing: Collection[Key], lost: Iterable[Key]) -> Causes:
    """The keys that must not be written while the `lost` ones are missing; `standing` are the keys that the node
    holds.

    With a lost key fall the resources that need it, and then those that only serve fallen ones. An end that the node
    holds already doesn't fall, nor do the resources that it needs: the loss of a second interface must not stop edits
    of a pool. If no end is left, everything falls.
    """
    causes = {key: key for key in sorted(lost)}  # of several that one waits for, always the same is named
    if not causes:
        return causes
    _rise(resources, standing, causes)
    wanted, needs = ends(resources), _needs(resources)
    sound = [key for key in wanted if key not in causes]
    if not sound:
        first = min(causes.values())
        return dict.fromkeys(resources, first) | causes
    # A fallen resource keeps none of its needs, unless it is a given one: its other needs are still mended.
    kept = closure(sound, {k: found for k, found in needs.items() if k not in causes or resources[k].is_given})
    left = list(causes)
    while left:
        key = left.pop()
        for need in needs.get(key, ()):
            if need not in causes and need not in kept:
                causes[need] = causes[key]
                left.append(need)
    return causes


def _rise(resources: Resources, standing: Collection[Key], causes: dict[Key, Key]) -> None:
    """Add the resources that need a fallen one, except ends that the node holds."""
    users: dict[Key, list[Key]] = {}
    for key, resource in resources.items():
        for need in (*resource.needs, *resource.needs_any):
            users.setdefault(need, []).append(key)
    left = list(causes)
    while left:
        fell = left.pop()
        for key in users.get(fell, ()):
            user = resources[key]
            if key in causes or (user.announces and key in standing):
                continue
            if fell in user.needs or all(need in causes for need in user.needs_any):
                causes[key] = causes[fell]
                left.append(key)


def missed(resources: Resources, causes: Causes) -> Causes:
    """The fallen keys that lbctl writes and that traffic needs; and the ends that the node holds and that need one of
    them.

    If only given resources below an end have fallen, such as its foundation when one of several interfaces is lost,
    the end works as before, and nothing is missing.
    """
    if not causes:
        return {}
    carrying = carriers(resources) & resources.keys()
    found = {key: cause for key, cause in causes.items() if key in carrying and not resources[key].is_given}
    above = {end: [found[need] for need in resources[end].needs if need in found] for end in ends(resources)}
    return {end: min(lost) for end, lost in above.items() if lost} | found


def kept_for(kind: str, causes: Causes, missing: Causes, phases: Mapping[str, int]) -> Key | None:
    """The lost key for which a delete of this kind has to wait. None: the delete may be made.

    It waits for fallen keys of its own kind, which may be its replacement, and for missing keys of a later phase:
    until such a key is present, its predecessor stays, and may need the resource that would be deleted.
    """
    found = [cause for key, cause in causes.items() if key.kind == kind]
    found += (cause for key, cause in missing.items() if phases[key.kind] >= phases[kind])
    return min(found, default=None)


def closure(start: Iterable[Key], edges: Mapping[Key, Collection[Key]]) -> set[Key]:
    """Everything that can be reached from `start`, itself included."""
    found: set[Key] = set()
    left = list(start)
    while left:
        key = left.pop()
        if key not in found:
            found.add(key)
            left += edges.get(key, ())
    return found


def _needs(resources: Resources) -> Mapping[Key, Collection[Key]]:
    return {key: (*resource.needs, *resource.needs_any) for key, resource in resources.items()}
