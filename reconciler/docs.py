# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/ that are generated from the program: `python -m reconciler.docs` writes them.

reference.md comes from the schemas, rules.md from the rules. A test fails if a page in docs/ differs from its source.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reconciler.config.catalogue import catalogue
from reconciler.config.fmt import canonical
from reconciler.config.formats import FORMATS
from reconciler.config.schema import KINDS, load_schema
from reconciler.config.shape import ITEM, Place, Schema, keys_at
from reconciler.config.source import SourceFile
from reconciler.files import write_atomically

DIRECTORY = Path(__file__).resolve().parents[1] / "docs"
_MADE = "<!-- Made by `python -m reconciler.docs`: edit {} instead. -->"
_NOUNS = {
    "array": "list",
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "null": "nothing",
    "number": "number",
    "object": "mapping",
    "string": "text",
}


def pages() -> dict[str, str]:
    """The generated pages by the names of their files."""
    return {"reference.md": "\n".join(_reference()) + "\n", "rules.md": "\n".join(_rules()) + "\n"}


def _reference() -> Iterator[str]:
    yield "# Manifests"
    yield ""
    yield _MADE.format("`schema/`")
    yield ""
    yield "Every key of every kind of document. Other keys are errors. `[]` stands for any item of a list."
    yield ""
    yield from (f"- [{kind}](#{kind.lower()}): {_lines(load_schema(kind)['description'])}" for kind in KINDS)
    for kind in KINDS:
        schema = load_schema(kind)
        yield from ("", f"## {kind}", "", _lines(schema["description"]))
        for example in schema.get("examples", ()):
            yield from ("", "```yaml", canonical(SourceFile(kind, json.dumps(example)))[0].rstrip("\n"), "```")
        yield from _keys((kind,), "", schema)


def _keys(place: Place, path: str, owner: Schema) -> Iterator[str]:
    """The keys below a place, each followed by the keys below it. `path` is the place as people write it."""
    for name, schema in keys_at(place).items():
        here, inner = f"{path}.{name}" if path else name, (*place, name)
        facts = [_type(schema)]
        facts += ["required"] if name in owner.get("required", ()) else []
        facts += [f"default `{_value(schema['default'])}`"] if "default" in schema else []
        yield from ("", f"### {place[0]}: {here}", "", f"*{', '.join(facts)}*")
        yield from ("", _lines(schema.get("description", "")))
        if "x-planned" in schema:
            yield from ("", f"Not supported yet: {', '.join(f'`{word}`' for word in schema['x-planned'])}.")
        if "examples" in schema:
            shown = ", ".join(f"`{_value(example)}`" for example in schema["examples"])
            yield from ("", f"For example {shown}.")
        item = schema.get("items", {})
        if isinstance(item, dict) and item:
            if "description" in item:
                yield from ("", f"Each item: {_lines(item['description'])}")
            yield from _keys((*inner, ITEM), f"{here}[]", item)
        yield from _keys(inner, here, schema)


def _type(schema: Schema) -> str:
    """A description of the values that a schema accepts, in a few words."""
    if "const" in schema:
        return f"always `{_value(schema['const'])}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{_value(word)}`" for word in schema["enum"])
    if "type" not in schema:
        found = dict.fromkeys(_type(part) for word in ("oneOf", "anyOf") for part in schema.get(word, ()))
        return " or ".join(found) or "value"
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_noun(schema, name) for name in types)


def _noun(schema: Schema, name: str) -> str:
    if name == "string" and schema.get("format") in FORMATS:
        return FORMATS[schema["format"]].noun.removeprefix("an ").removeprefix("a ")
    if name == "integer" and "minimum" in schema:
        return f"whole number from {schema['minimum']}" + (f" to {schema['maximum']}" if "maximum" in schema else "")
    if name == "array" and isinstance(schema.get("items"), dict):
        return f"list, each item: {_type(schema['items'])}"
    if name == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping of names to values, each value: {_type(schema['additionalProperties'])}"
    return _NOUNS[name]


def _value(value: Any) -> str:
    """A value as it is written in a manifest, on one line."""
    if not isinstance(value, dict | list):
        return canonical(SourceFile("", f"k: {json.dumps(value)}\n"))[0].removeprefix("k:").strip()
    text = canonical(SourceFile("", f"k: {json.dumps(value)}\n"))[0].removeprefix("k:")
    return text.strip() if text.count("\n") == 1 else json.dumps(value)


def _rules() -> Iterator[str]:
    yield "# Rules"
    yield ""
    yield _MADE.format("the docstrings in `reconciler/config/`")
    yield ""
    yield "Each problem that `lbctl validate` finds ends with the name of its rule. Errors stop everything else; with"
    yield "warnings the manifests are valid, unless `--strict` is said."
    for topic, rules in catalogue().items():
        yield from ("", f"## {topic}")
        for name, about in rules.items():
            yield from ("", f"### {name}", "", f"*{about.severity.capitalize()}.* {about.text}")


def _lines(text: str) -> str:
    return " ".join(text.split())


def write(directory: Path) -> None:
    """Write the generated pages into a directory."""
    for name, text in pages().items():
        write_atomically(directory / name, text.encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
