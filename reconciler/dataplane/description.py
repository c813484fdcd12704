# SPDX-License-Identifier: Apache-2.0
"""What a set of maps looks like, written down beside them, so that any later version of lbctl can read them.

A program has one more map than it uses: `layout`, which holds this description as JSON and can't be changed once it is
made. So wherever the program goes, pinned or attached, its maps explain themselves.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from reconciler.dataplane.layout import MAPS, MapSpec
from reconciler.dataplane.program import DECAPSULATE
from reconciler.errors import KernelError

LAYOUT_VERSION = 1
"""Rises when an older version of lbctl must keep its hands off: when it would take what it reads for something else.
New maps, fields and capacities need no new number."""

Fields = tuple[tuple[str, str], ...]
"""Names and formats of the fields of a row, in order. Formats are NumPy's."""

_ON_ENDPOINTS = ("unpacked", "verdicts")
"""The maps of the program that unpacks tunnels."""


@dataclass(frozen=True, slots=True)
class MapDescription:
    """One map. `inner` are the rows of the arrays in an array of arrays.

    `meaning` rises when the same fields come to mean something else; a converter then knows both meanings.
    """

    type: int
    flags: int
    capacity: int
    key: Fields
    value: Fields
    inner: Fields = ()
    inner_capacity: int = 0
    meaning: int = 1

    def has_rows_of(self, other: MapDescription) -> bool:
        """Whether rows of the one can be taken as rows of the other."""
        return replace(self, flags=0, capacity=0) == replace(other, flags=0, capacity=0)


@dataclass(frozen=True)
class Description:
    """The maps of a program. `lineage` is the same for all programs that took over from each other; `ids` are the
    numbers of the maps; `sizes` are the numbers that the maps were sized by (dataplane/sizes.py)."""

    lineage: str
    features: tuple[str, ...]
    maps: Mapping[str, MapDescription]
    ids: Mapping[str, int]
    sizes: tuple[int, int, int]
    version: int = LAYOUT_VERSION

    @functools.cached_property
    def digest(self) -> str:
        """Equal for equal layouts; capacities don't count."""
        return layout_digest(self.maps)


def layout_digest(maps: Mapping[str, MapDescription]) -> str:
    """A short digest of the layout of maps, whatever their capacities."""
    text = json.dumps({name: _plain(replace(of, capacity=0)) for name, of in maps.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def own_layout() -> str:
    """The digest of all maps that this version knows."""
    return layout_digest({name: describe(spec) for name, spec in MAPS.items()})


@functools.cache
def describe(spec: MapSpec, capacity: int | None = None) -> MapDescription:
    """The description of a map of this version's layout, in a capacity of its own if one is given."""
    return MapDescription(
        int(spec.type), spec.flags, spec.capacity if capacity is None else capacity,
        _fields(spec.key.fields), _fields(spec.value.fields), _fields(spec.inner.fields if spec.inner else ()),
        spec.inner_capacity, spec.meaning,
    )  # fmt: skip


def specs_of(features: Collection[str]) -> list[MapSpec]:
    """The maps that a program with these features has, those that only user space uses among them."""
    if DECAPSULATE in features:
        return [MAPS[name] for name in _ON_ENDPOINTS]
    return [spec for spec in MAPS.values() if spec.is_used(features)]


def written(description: Description) -> bytes:
    """The description as it is written down."""
    return json.dumps({
        "version": description.version,
        "lineage": description.lineage,
        "features": description.features,
        "ids": dict(description.ids),
        "sizes": description.sizes,
        "maps": {name: _plain(of) for name, of in description.maps.items()},
    }).encode()  # fmt: skip


def read(content: bytes) -> Description:
    """The reverse of `written`. Raises KernelError if it is damaged, or a newer version's."""
    try:
        data = json.loads(content.rstrip(b"\0"))
        version = int(data["version"])
        if version > LAYOUT_VERSION:
            raise newer(f"layout {version} of the maps")
        maps = {str(name): _map(of) for name, of in data["maps"].items()}
        for name in maps.keys() & MAPS.keys():
            if maps[name].meaning > MAPS[name].meaning:
                raise newer(f"what the rows of map {name} mean")
        ids = {str(name): int(number) for name, number in data["ids"].items()}
        services, endpoints, flows = map(int, data["sizes"])
        features = tuple(map(str, data["features"]))
        return Description(str(data["lineage"]), features, maps, ids, (services, endpoints, flows), version)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise KernelError(f"the description of the maps can't be read: {error!r:.200}") from error


def lineage(content: bytes) -> str | None:
    """The lineage alone, which is where it is in all versions; None if the description is damaged."""
    try:
        return str(json.loads(content.rstrip(b"\0"))["lineage"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def newer(what: str) -> KernelError:
    """The error about maps that a newer version made."""
    return KernelError(
        f"a newer version of lbctl runs this node: this one knows layout {LAYOUT_VERSION}, and not {what}",
        hint="nothing was changed; use that version, or have it remove everything (`lbctl delete`) before this one",
    )


def _plain(of: MapDescription) -> dict[str, Any]:
    return asdict(of)


def _map(data: Mapping[str, Any]) -> MapDescription:
    return MapDescription(
        int(data["type"]), int(data["flags"]), int(data["capacity"]), _fields(data["key"]), _fields(data["value"]),
        _fields(data["inner"]), int(data["inner_capacity"]), int(data["meaning"]),
    )  # fmt: skip


def _fields(pairs: Iterable[Iterable[str]]) -> Fields:
    return tuple((str(name), str(form)) for name, form in pairs)
