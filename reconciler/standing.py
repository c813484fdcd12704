# SPDX-License-Identifier: Apache-2.0
"""What stands on what: which wishes fall with those that can't be had, and which old things stay until they can.

Pure functions of resources and their needs; nothing here knows a kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from reconciler.resource import Key, Resource

Resources = Mapping[Key, Resource]
Causes = Mapping[Key, Key]
"""Keys that have fallen, each with the lost key that it waits for; lost keys wait for themselves."""


def ends(resources: Resources) -> list[Key]:
    """What everything else is there for: what announces traffic; where nothing does, what nobody needs."""
    announcing = [key for key, resource in resources.items() if resource.announces]
    if announcing:
        return announcing
    needed = {need for resource in resources.values() for need in resource.needs}
    return [key for key in resources if key not in needed]


def carriers(resources: Resources) -> set[Key]:
    """All that traffic stands on."""
    return closure(ends(resources), _needs(resources))


def fallen(resources: Resources, standing: Collection[Key], lost: Iterable[Key]) -> Causes:
    """What must not be written while the `lost` are not there; `standing` are the keys that the node holds.

    With a lost key falls what needs it, and then what is there for nothing but what has fallen. An end that stands
    already stays up, and so does its support: the loss of a second interface must stop no edit of a pool.
    If no end is left at all, everything falls.
    """
    causes = {key: key for key in lost}
    if not causes:
        return causes
    _rise(resources, standing, causes)
    wanted, needs = ends(resources), _needs(resources)
    sound = [key for key in wanted if key not in causes]
    if not sound:
        first = min(causes.values())
        return dict.fromkeys(resources, first) | causes
    # What has fallen keeps nothing; but of a foundation that isn't whole, the rest goes on to be mended.
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
    """Add what needs something that has fallen, but for ends that stand."""
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


def kept_for(kind: str, causes: Causes, carrying: Collection[Key]) -> Key | None:
    """What a delete of this kind has to wait for: anything fallen that traffic stands on, or that is of its kind.

    Only then it is sure that nothing goes whose replacement isn't there. None: it may be made.
    """
    found = (cause for key, cause in causes.items() if key.kind == kind or key in carrying)
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
