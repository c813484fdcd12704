# SPDX-License-Identifier: Apache-2.0
"""Check a document against the JSON Schema of its kind in schema/, and explain the errors in plain words.

Beside JSON Schema's own keywords the schemas use two that editors know, too: `patternErrorMessage` says what a
pattern expects, and `errorMessage`, beside `"not": {}`, why a key is not allowed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import jsonschema_rs
from yaml.events import ScalarEvent

from reconciler.config import hints
from reconciler.config.diagnostic import Diagnostic, closest, did_you_mean, either, quote
from reconciler.config.document import Document, Event, Map, Path, Seq
from reconciler.config.formats import FORMATS, Complaint
from reconciler.config.syntax import template_hint
from reconciler.paths import data_dir

API_VERSION = "lbctl/v1"
KINDS = ("Service", "Pool", "Node")
MAX_FINDINGS = 100  # of a document; nobody reads more than a hundred
MAX_SEARCHED = 1 << 20  # characters of a document in which all problems are looked for
MAX_COMPARED = 20  # unknown keys of a mapping that are compared with the known ones, as they may be misspelt

Schema = dict[str, Any]

_NAME = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_ENVELOPE = "begin it with `apiVersion: lbctl/v1` and `kind: Service`, Pool or Node; a line `---` begins another one"


def fits(document: Document) -> bool:
    """Whether a document that could be read has the shape of its kind."""
    root = document.root
    if not isinstance(root, Map) or root.get("apiVersion", API_VERSION) != API_VERSION:
        return False
    kind = root.get("kind")
    return isinstance(kind, str) and kind in KINDS and _compiled(kind)[1].is_valid(root)


def check(document: Document) -> list[Diagnostic]:
    """All problems with the shape of a document that could be read."""
    if problem := _envelope_problem(document):
        return [problem]
    schema, validator = _compiled(document.root["kind"])
    if validator.is_valid(document.root):
        return []
    found: dict[Path, Diagnostic] = {}  # one for each place
    for error in sorted(_errors(document, validator), key=lambda error: error.kind.name not in _SAYS_MOST):
        for place, diagnostic in islice(_explain(document, schema, error), MAX_FINDINGS):
            found.setdefault(place, diagnostic)
    diagnostics = list(found.values())[:MAX_FINDINGS]
    if len(document.text) > MAX_SEARCHED:
        message = f"only one problem is shown of this document, since it is longer than {MAX_SEARCHED} characters"
        diagnostics.append(document.problem(document.value_at(()), "too-many-problems", message))
    return diagnostics


def _errors(document: Document, validator: jsonschema_rs.Draft202012Validator) -> list[Any]:
    """The validator's errors. It finds all of them before it returns the first, and each takes 5 kB."""
    if len(document.text) <= MAX_SEARCHED:
        return list(islice(validator.iter_errors(document.root), MAX_FINDINGS))
    try:
        validator.validate(document.root)
    except jsonschema_rs.ValidationError as error:
        return [error]
    return []


def _follow(root: Any, path: Iterable[str | int]) -> Any:
    for step in path:
        root = root[step]
    return root


def load_schema(kind: str) -> Schema:
    """The schema of a kind, as schema/ holds it."""
    schema: Schema = json.loads((data_dir("schema") / f"{kind.lower()}.v1.json").read_text(encoding="utf-8"))
    return schema


@functools.cache
def _compiled(kind: str) -> tuple[Schema, jsonschema_rs.Draft202012Validator]:
    schema = load_schema(kind)
    # Beside the format `address`, the schemas ask for ipv4 or ipv6, which the compiled validator checks itself: a call
    # of Python for each address would cost more than all other checks.
    formats = {name: _accepts(name) for name in FORMATS if name != "address"}
    return schema, jsonschema_rs.Draft202012Validator(schema, validate_formats=True, formats=formats)


def _accepts(name: str) -> Callable[[str], bool]:
    return lambda text: FORMATS[name].complaint(text) is None


def _envelope_problem(document: Document) -> Diagnostic | None:
    """A problem with apiVersion and kind, which say which schema a document has to fit; None if there is none."""
    root = document.root
    if not isinstance(root, Map):
        message = f"expected a mapping with apiVersion, kind, metadata and spec, got {_actual(root, document.start)}"
        return document.problem(document.value_at(()), "wrong-type", message, _ENVELOPE)
    version, kind = root.get("apiVersion", API_VERSION), root.get("kind")
    if version != API_VERSION:
        at = document.value_at(("apiVersion",))
        hint = "keep files of other programs out of this directory"
        if kind in KINDS:
            hint = f"write {API_VERSION}, or {hint}"
        if str(version).startswith("lbctl/"):
            hint = f"write it as {API_VERSION}, or use the version of lbctl that it was written for"
        message = f"expected {API_VERSION}, got {_actual(version, at)}"
        return document.problem(at, "unknown-version", message, hint)
    if "kind" not in root:
        for key in islice(root, MAX_COMPARED):
            if closest(key, ["kind"]):
                return document.problem(
                    document.key_at((key,)), "unknown-key", f"unknown key {quote(key)}", "did you mean 'kind'?"
                )
        return document.problem(document.value_at(()), "missing-key", "missing key 'kind'", f"add it: {either(KINDS)}")
    if kind not in KINDS:
        message = f"expected {either(KINDS)}, got {_actual(kind, document.value_at(('kind',)))}"
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        hint = hint or "services refer to a Pool of endpoints; a Node is a machine that balances"
        return document.problem(document.value_at(("kind",)), "unknown-kind", message, hint)
    return None


def _explain(document: Document, schema: Schema, error: Any) -> Iterator[tuple[Path, Diagnostic]]:
    """A validator's error in plain words, each problem in it with its place: the validator may report several as
    one."""
    path = tuple(error.instance_path)
    part = _follow(schema, error.schema_path[:-1])
    node = _follow(document.root, path)
    keyword = error.kind.name
    if explain := _PARTS.get(keyword):
        for key, complaint in explain(path, _mapping(schema, error.schema_path), part, node, error.kind):
            at = document.key_at((*path, key))
            yield (*path, key), document.problem(at, complaint.rule, complaint.message, complaint.hint)
    elif keyword == "not":
        yield path, document.problem(document.key_at(path), "key-conflict", part["errorMessage"], "remove it")
    else:
        at = document.value_at(path)
        complaint = _VALUES.get(keyword, _unforeseen)(path, part, node, at, _siblings(schema, error.schema_path))
        hint = complaint.hint
        if isinstance(node, str) and ("{{" in node or "${" in node) and not document.lines:
            hint = template_hint(document.file)
        yield path, document.problem(at, complaint.rule, complaint.message, hint)


def _siblings(schema: Schema, path: Sequence[str | int]) -> Schema:
    """The allowed keys beside the value that a keyword of the schema is about, with their schemas."""
    found: Schema = _follow(schema, path[:-2]) if path[-3:-2] == ["properties"] else {}
    return found


def _mapping(schema: Schema, path: Sequence[str | int]) -> Schema:
    """The schema of a mapping, given the path of a keyword in it or in a condition on it."""
    whole: Schema = _follow(schema, path[: path.index("allOf")] if "allOf" in path else path[:-1])
    return whole


def _unknown_keys(path: Path, whole: Schema, part: Schema, node: Any, error: Any) -> Iterator[tuple[str, Complaint]]:
    properties = whole["properties"]
    for key in error.unexpected:
        owner = next((name for name, inner in properties.items() if key in inner.get("properties", ())), None)
        hint = f"indent it below {quote(owner)}, where it belongs" if owner else did_you_mean(key, properties)
        if assigned := re.fullmatch(r"([A-Za-z]+) *= *(.{1,60})", key):
            hint = f"a colon and a space stand between them: `{assigned[1]}: {assigned[2]}`"
        if path == ("metadata",) and key in ("namespace", "annotations"):
            hint = "there is none here; labels hold words of your own"
        hint = hint or _elsewhere(key, path) or f"there are: {', '.join(properties)}"
        yield key, Complaint("unknown-key", f"unknown key {quote(key)}{_where(path)}", hint)


def _elsewhere(key: str, path: Path) -> str:
    """A hint for a misplaced key: the kind that has this key in its `spec`."""
    owners = [kind for kind in KINDS if key in _compiled(kind)[0]["properties"]["spec"]["properties"]]
    return (
        f"it belongs to the spec of a {either(owners)}, a document of its own" if owners and path == ("spec",) else ""
    )


def _missing_key(path: Path, whole: Schema, part: Schema, node: Any, error: Any) -> Iterator[tuple[str, Complaint]]:
    properties, key = whole["properties"], error.property
    others = islice((other for other in node if other not in properties), MAX_COMPARED)
    if any(closest(other, properties) == key for other in others):
        return  # the required key is present, but misspelt
    example = hints.mapping_example(properties[key]) or hints.as_yaml(_of_example(whole, key))
    hint = f"add it, for example `{key}: {example}`" if example else ""
    yield key, Complaint("missing-key", f"missing key {quote(key)}{_where(path)}", hint)


def _of_example(whole: Schema, key: str) -> Any:
    examples = whole.get("examples", [{}])
    return examples[0].get(key, "") if isinstance(examples[0], dict) else ""


def _wrong_names(path: Path, whole: Schema, part: Schema, node: Any, error: Any) -> Iterator[tuple[str, Complaint]]:
    for key in node:
        if not re.fullmatch(part["pattern"], key):
            yield key, Complaint("wrong-format", f"{part['patternErrorMessage']}, got {quote(key)}")


def _twice(path: Path, whole: Schema, part: Schema, node: Any, error: Any) -> Iterator[tuple[int, Complaint]]:
    seen: set[str] = set()
    for i, item in enumerate(node):
        if repr(item) in seen:
            yield i, Complaint("duplicate-item", f"{quote(item)} is listed twice", "list each once")
        seen.add(repr(item))


_PARTS: dict[str, Callable[[Path, Schema, Schema, Any, Any], Iterator[tuple[str | int, Complaint]]]] = {
    "additionalProperties": _unknown_keys,
    "required": _missing_key,
    "propertyNames": _wrong_names,
    "uniqueItems": _twice,
}
"""The functions that explain errors about a key or an item of the value at which the validator finds them."""


def _wrong_type(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    source, key = _source(at), str(path[-1]) if path else ""
    if node is None:
        hint = hints.nothing_hint(source)
    elif "enum" in schema:
        hint = hints.choice_hint(node if isinstance(node, Seq) else source, schema["enum"])
    elif schema["type"] == "array":
        hint = hints.list_hint(node, schema, source)
    elif schema["type"] == "object":
        hint = hints.mapping_hint(node, schema, source)
    elif schema["type"] == "string":
        hint = hints.text_hint(node, schema, source, siblings, key)
    else:
        hint = hints.number_hint_of(node, schema)
    return Complaint("wrong-type", f"expected {_expected(schema)}, got {_actual(node, at)}", hint)


def _wrong_value(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    hint = hints.choice_hint(node, schema["enum"]) if isinstance(node, str) else ""
    return Complaint("wrong-value", f"expected {_expected(schema)}, got {_actual(node, at)}", hint)


def _out_of_range(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    return Complaint("out-of-range", f"expected {_expected(schema)}, got {_source(at)}")


def _wrong_pattern(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    hint = hints.name_hint(node) if schema["pattern"] == _NAME else ""
    return Complaint("wrong-format", f"{schema['patternErrorMessage']}, got {quote(node)}", hint)


def _wrong_format(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    return FORMATS[schema["format"]].complaint(node) or _unforeseen(path, schema, node, at, siblings)


def _too_few(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    return Complaint("too-few", f"expected at least {schema['minItems']} item{_where(path)}, got an empty list")


def _too_many(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    most, noun = (schema["maxItems"], "items") if isinstance(node, Seq) else (schema["maxProperties"], "keys")
    return Complaint("too-many", f"expected at most {most} {noun}{_where(path)}, got {len(node)}")


def _wrong_length(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    wanted = f"{schema.get('minLength', 0)} to {schema['maxLength']} characters"
    return Complaint("out-of-range", f"expected {wanted}, got {len(node)}")


def _unforeseen(path: Path, schema: Schema, node: Any, at: Event, siblings: Schema) -> Complaint:
    return Complaint("wrong-value", f"expected {_expected(schema)}, got {_actual(node, at)}")


_VALUES: dict[str, Callable[[Path, Schema, Any, Event, Schema], Complaint]] = {
    "type": _wrong_type,
    "enum": _wrong_value,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "format": _wrong_format,
    "anyOf": _wrong_format,
    "pattern": _wrong_pattern,
    "minItems": _too_few,
    "maxItems": _too_many,
    "maxProperties": _too_many,
    "minLength": _wrong_length,
    "maxLength": _wrong_length,
}
EXPLAINED = frozenset(_VALUES) | frozenset(_PARTS) | {"not"}
_SAYS_MOST = ("type", "format")  # of several errors at one place


def _expected(schema: Schema) -> str:
    if "enum" in schema:
        return either(schema["enum"])
    types = schema.get("type", [])
    return either(_noun(schema, name) for name in ([types] if isinstance(types, str) else types)) or "another value"


def _noun(schema: Schema, type_name: str) -> str:
    if type_name == "integer" and {"minimum", "maximum"} <= schema.keys():
        return f"a whole number from {schema['minimum']} to {schema['maximum']}"
    if type_name == "string" and "format" in schema:
        return FORMATS[schema["format"]].noun
    return _NOUNS[type_name]


_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def _actual(node: Any, at: Event | None) -> str:
    """A description of a value in a person's words."""
    if node is None:
        return "nothing"
    if isinstance(node, bool):
        return str(node).lower()
    if isinstance(node, int | float):
        return f"the number {_source(at)}"
    if isinstance(node, str):
        return f"the text {quote(node)}"
    return "a list" if isinstance(node, Seq) else "a mapping"


def _source(at: Event | None) -> str:
    """A scalar as it was written."""
    return quote(at.value)[1:-1] if isinstance(at, ScalarEvent) else ""


def _where(path: Path) -> str:
    names = [step for step in path if isinstance(step, str)]
    return f" in {'.'.join(names)}" if names else ""
