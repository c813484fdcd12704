# SPDX-License-Identifier: Apache-2.0
"""The schemas as a tree of keys: which keys are below which, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from reconciler.config.schema import load_schema

Schema = Mapping[str, Any]
Place = tuple[str, ...]
"""The kind of a document and the keys on the way to a value; ITEM for any item of a list."""

ITEM = "*"


@lru_cache(maxsize=4096)
def keys_at(place: Place) -> Mapping[str, Schema]:
    """The keys of the mapping at a place with their schemas, in the order of the schema file."""
    kind, *steps = place
    schema = load_schema(kind)
    parts = list(_parts(schema, schema))
    for step in steps:
        parts = [piece for part in parts for piece in _parts(schema, _child(part, step))]
    found: dict[str, Schema] = {}
    for part in parts:
        for name, child in part.get("properties", {}).items():
            found.setdefault(name, next(_parts(schema, child), {}))
    return found


def _child(schema: Schema, step: str) -> Any:
    return schema.get("items") if step == ITEM else schema.get("properties", {}).get(step)


def _parts(root: Schema, schema: Any) -> Iterator[Schema]:
    """A schema and the schemas that it is composed of; those that it refers to come first."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        yield from _parts(root, {**target, **{key: value for key, value in schema.items() if key != "$ref"}})
        return
    yield schema
    for word in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(word, ()):
            yield from _parts(root, part)
    for word in ("if", "then", "else"):
        yield from _parts(root, schema.get(word))
