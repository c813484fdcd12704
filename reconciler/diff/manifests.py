# SPDX-License-Identifier: Apache-2.0
"""The edits that people made: services, pools, nodes and their items, by name. Files and order mean nothing.

All fields are compared without naming them, so new fields of the model are compared, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from itertools import groupby
from typing import Any, get_args, get_origin, get_type_hints

from reconciler.model import Endpoint, Fleet, Service
from reconciler.resource import Action, Key, Span

NONE = "none"
_SHOWN = 8
_IDENTITY = {Endpoint: {"address", "port"}}
"""The fields that make up the name of an item; for classes not listed here, `name`."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one manifest, or of an item of a list in it (an endpoint, an interface).

    `former` is its old name, if it was renamed. `values` are the fields that differ, as manifests write them, each
    with its old and its new value; None for a field that was or will be missing. `origin` is its place in the new
    revision, or in the old one if it is gone.
    """

    key: Key
    action: Action
    origin: Span
    former: str = ""
    values: tuple[tuple[str, str | None, str | None], ...] = ()
    items: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Pairs:
    """The manifests of a kind in two fleets: those in both, those only in the new one, those only in the old one."""

    both: tuple[tuple[Any, Any], ...]
    added: tuple[Any, ...]
    removed: tuple[Any, ...]

    @property
    def renamed(self) -> dict[str, str]:
        """Old name → new name of each renamed manifest."""
        return {before.name: after.name for before, after in self.both if before.name != after.name}


def compare_manifests(old: Fleet, new: Fleet) -> list[Edit]:
    """Every service, pool and node that differs, in this order and by name. A rename is one edit."""
    pools = pair_pools(old, new)
    services = _follow(old.services, pools.renamed)
    return [*_edits(pair(services, new.services)), *_edits(pools), *_edits(pair(old.nodes, new.nodes))]


def pair_pools(old: Fleet, new: Fleet) -> Pairs:
    """Match pools by name, else by content. If a pool could have become one of several, its services' new pool is
    taken."""
    now = {service.name: service.pool for service in new.services}
    likely = {service.pool: now[service.name] for service in old.services if service.name in now}
    return pair(old.pools, new.pools, likely)


def pair(old: Sequence[Any], new: Sequence[Any], likely: Mapping[str, str] | None = None) -> Pairs:
    """Match manifests by name, those without a namesake by content. `likely` maps an old name to the new name to
    prefer."""
    former = {item.name: item for item in old}
    names = {item.name for item in new}
    both = [(former[item.name], item) for item in new if item.name in former]
    added = {item.name: item for item in new if item.name not in former}
    removed = []
    alike: dict[object, list[Any]] = {}
    for item in added.values():
        alike.setdefault(_content(item), []).append(item)
    for item in old:
        if item.name in names:
            continue
        candidates = alike.get(_content(item))
        if candidates:
            preferred = (likely or {}).get(item.name)
            match = next((c for c in candidates if c.name == preferred), candidates[0])
            candidates.remove(match)
            del added[match.name]
            both.append((item, match))
        else:
            removed.append(item)
    return Pairs(tuple(both), tuple(added.values()), tuple(removed))


def _follow(services: Sequence[Service], renamed: Mapping[str, str]) -> list[Service]:
    """The services with the new names of their pools: a renamed pool is no change of its services."""
    return [replace(s, pool=renamed[s.pool]) if s.pool in renamed else s for s in services]


def _edits(pairs: Pairs) -> list[Edit]:
    found = [_between(before, after, after.name, before.name) for before, after in pairs.both]
    found += [_between(None, item, item.name) for item in pairs.added]
    found += [_between(item, None, item.name) for item in pairs.removed]
    return sorted((edit for edit in found if edit), key=lambda edit: edit.key)


def _between(before: Any, after: Any, name: str, former: str = "") -> Edit | None:
    """The edit between two manifests or items; None if they don't differ."""
    if before == after:
        return None
    there = before if after is None else after
    is_new, is_gone = before is None, after is None
    was, is_ = (_values(item, brief=is_new or is_gone) if item is not None else {} for item in (before, after))
    differing = tuple((k, was.get(k), is_.get(k)) for k in {**is_, **was} if was.get(k) != is_.get(k))
    old_items, new_items = (_items(item) if item is not None else {} for item in (before, after))
    items = [_between(old_items.get(k), new_items.get(k), k) for k in {**new_items, **old_items}]
    action = Action.CREATE if is_new else Action.DELETE if is_gone else Action.UPDATE
    former = former if former != name else ""
    changed = tuple(item for item in items if item)
    if not (former or differing or changed or is_new or is_gone):
        return None  # only their order differs
    return Edit(Key(type(there).__name__.lower(), name), action, there.span, former, differing, changed)


def _content(item: Any) -> object:
    """A value that is equal for manifests that differ only in their names and order."""
    items = {name: tuple(_values(part).items()) for name, part in _items(item).items()}
    return tuple(_values(item).items()), tuple(sorted(items.items()))


def _values(item: Any, *, brief: bool = False) -> dict[str, str]:
    """The fields of a manifest or item as they are written, without its name and lists of items; `brief`: no
    defaults."""
    found: dict[str, str] = {}
    shape = _shape(item.__class__)
    hidden = _IDENTITY.get(item.__class__, {"name"}) | shape.lists
    for f in fields(item):
        value = getattr(item, f.name)
        if f.name in hidden or not f.compare or (brief and value == _default(f)):
            continue
        if is_dataclass(value):
            found |= {f"{_key(f.name)}.{name}": text for name, text in _values(value, brief=brief).items()}
        elif value is not None or f.name not in shape.groups:
            found[_key(f.name)] = _text(value, is_duration=f.name.endswith("_s"))
    return found


def _items(item: Any) -> dict[str, Any]:
    """The items of all lists in a manifest, by name."""
    parts = [part for name in _shape(item.__class__).lists for part in getattr(item, name)]
    return {_endpoint_name(part) if isinstance(part, Endpoint) else part.name: part for part in parts}


def _endpoint_name(endpoint: Endpoint) -> str:
    address = f"[{endpoint.address}]" if endpoint.address.version == 6 and endpoint.port else str(endpoint.address)
    return f"{address}:{endpoint.port}" if endpoint.port else address


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fields of a class whose values have fields of their own: `lists` of such values, like the endpoints of a
    pool, and `groups` with one or none, like the affinity of a service."""

    lists: frozenset[str]
    groups: frozenset[str]


@cache
def _shape(type_: type) -> _Shape:
    hints = get_type_hints(type_)
    nested = {name for name, hint in hints.items() if any(map(is_dataclass, (hint, *get_args(hint))))}
    lists = frozenset(name for name in nested if get_origin(hints[name]) is tuple)
    return _Shape(lists, frozenset(nested - lists))


def _default(f: Field[Any]) -> object:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _key(name: str) -> str:
    """The name of a field as manifests have it: in camel case, and without a unit."""
    first, *others = name.removesuffix("_s").removesuffix("_bytes").split("_")
    return first + "".join(word.capitalize() for word in others)


def _text(value: object, *, is_duration: bool = False) -> str:
    """A value as it is written; lists are sorted, and unprintable characters are escaped."""
    match value:
        case None | ():
            return NONE
        case range():
            return f"{value.start}-{value.stop - 1}"
        case tuple() if all(isinstance(item, int) for item in value):
            return ranges(value)
        case tuple():
            return ", ".join(sorted("=".join(item) if isinstance(item, tuple) else str(item) for item in value))
        case int() | float() if is_duration:
            return _duration(value)
    text = "".join(c if c.isprintable() and c != "\\" else ascii(c)[1:-1] for c in str(value))
    is_free = isinstance(value, str) and not isinstance(value, StrEnum)
    return repr(text) if is_free and (text == NONE or text[:1] in ("'", '"')) else text


def _duration(seconds: float) -> str:
    """The shortest way to write a time: `90s`, `2m`, `500ms`."""
    milliseconds = round(seconds * 1000)
    units = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))
    length, unit = next((length, unit) for length, unit in units if milliseconds % length == 0 or length == 1)
    return f"{milliseconds // length}{unit}"


def few(names: Sequence[str]) -> str:
    """Names in a row; only the first ones if there are many."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as a service lists its ports: `80, 443, 8000-8010`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
