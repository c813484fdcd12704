# SPDX-License-Identifier: Apache-2.0
"""The schema files: that they are good for editors as they stand, and say the same as the model."""

import dataclasses
import re
from enum import StrEnum
from pathlib import Path

import jsonschema
import pytest
import yaml

from reconciler import model
from reconciler.config import build, schema
from reconciler.config.document import parse
from reconciler.config.load import load
from reconciler.paths import data_dir

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples" / "configs").iterdir() if path.is_dir())
MANIFESTS = sorted((ROOT / "examples" / "configs").glob("**/*.yaml"))
SCHEMAS = {kind: schema.load_schema(kind) for kind in schema.KINDS}


def parts(part):
    """A schema and all schemas inside of it."""
    yield part
    for inner in [*part.get("properties", {}).values(), *([part["items"]] if "items" in part else [])]:
        yield from parts(inner)


ALL_PARTS = [part for whole in SCHEMAS.values() for part in parts(whole)]


def validator(part):
    return jsonschema.Draft202012Validator(part, format_checker=jsonschema.FormatChecker())


def test_there_is_a_schema_and_a_builder_for_each_kind():
    files = sorted(path.name for path in data_dir("schema").iterdir() if path.suffix == ".json")
    assert files == sorted(f"{kind.lower()}.v1.json" for kind in schema.KINDS)
    assert build._BUILDERS.keys() == set(schema.KINDS)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_schema_is_valid(kind):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_part_has_a_title_a_description_and_examples_that_fit():
    for part in ALL_PARTS:
        assert {"title", "description"} <= part.keys(), part
        assert "examples" in part or "properties" in part or "items" in part, part
        for value in [*part.get("examples", []), *([part["default"]] if "default" in part else [])]:
            validator(part).validate(value)


def test_mappings_allow_no_unknown_keys():
    assert all(part["additionalProperties"] is False for part in ALL_PARTS if "properties" in part)


def test_every_keyword_is_explained_in_our_own_words():
    silent = {"$schema", "title", "description", "examples", "default", "properties", "items", "patternErrorMessage",
              "x-planned", "const"}  # fmt: skip
    for part in ALL_PARTS:
        assert part.keys() <= schema.EXPLAINED | silent
        assert ("pattern" in part) == ("patternErrorMessage" in part)


def test_planned_names_are_no_names_yet():
    for part in ALL_PARTS:
        known = part.get("enum", part.get("properties", ()))
        assert not set(part.get("x-planned", ())) & set(known)


def test_enumerations_are_those_of_the_model():
    in_schemas = [tuple(part["enum"]) for part in ALL_PARTS if len(part.get("enum", ())) > 1]
    in_model = [tuple(cls) for cls in vars(model).values()
                if isinstance(cls, type) and issubclass(cls, StrEnum) and len(cls) > 1]  # fmt: skip
    assert sorted(in_schemas) == sorted(in_model)


def keyword_name(name):
    """undefined_traffic → undefinedTraffic"""
    return re.sub("_(.)", lambda match: match[1].upper(), name)


@pytest.mark.parametrize(
    ("cls", "part"),
    [
        (model.Service, SCHEMAS["Service"]["properties"]["spec"]),
        (model.Node, SCHEMAS["Node"]["properties"]["spec"]),
        (model.Interface, SCHEMAS["Node"]["properties"]["spec"]["properties"]["interfaces"]["items"]),
        (model.Endpoint, SCHEMAS["Pool"]["properties"]["spec"]["properties"]["endpoints"]["items"]),
    ],
)
def test_defaults_are_those_of_the_model(cls, part):
    for field in dataclasses.fields(cls):
        stated = part["properties"].get(keyword_name(field.name), {})
        if field.name != "span" and field.default is not dataclasses.MISSING:
            assert stated.get("default") == (list(field.default) if field.default == () else field.default)


def test_what_is_left_out_is_what_the_schema_says(write):
    """A manifest with every default written out means the same as one without."""

    def with_defaults(part, value):
        if isinstance(value, list):
            return [with_defaults(part["items"], item) for item in value]
        if not isinstance(value, dict):
            return value
        defaults = {name: inner["default"] for name, inner in part["properties"].items() if "default" in inner}
        return defaults | {name: with_defaults(part["properties"][name], item) for name, item in value.items()}

    least = {
        "Service": {"vip": "20.20.20.1", "ports": [80], "pool": "web"},
        "Pool": {"endpoints": [{"address": "10.2.0.11"}]},
        "Node": {"interfaces": [{"name": "front"}]},
    }
    fleets = []
    for change in (lambda kind, document: document, lambda kind, document: with_defaults(SCHEMAS[kind], document)):
        documents = [
            change(kind, {"apiVersion": "lbctl/v1", "kind": kind, "metadata": {"name": "web"}, "spec": spec})
            for kind, spec in least.items()
        ]
        loaded = load(write({"all.yaml": yaml.safe_dump_all(documents)}))
        assert loaded.diagnostics == ()
        fleets.append((loaded.fleet.services, loaded.fleet.pools, loaded.fleet.nodes))
    assert fleets[0] == fleets[1]


@pytest.mark.parametrize("directory", EXAMPLES, ids=lambda path: path.name)
def test_example_is_clean(directory):
    loaded = load(directory)
    assert loaded.diagnostics == ()
    assert loaded.fleet.services
    assert loaded.fleet.pools
    assert loaded.fleet.nodes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_editors_find_the_schema_of_an_example_and_it_fits(path):
    text = path.read_text()
    line = text.partition("\n")[0]
    target = (path.parent / line.removeprefix("# yaml-language-server: $schema=")).resolve()
    for document in yaml.safe_load_all(text):
        assert target == ROOT / "schema" / f"{document['kind'].lower()}.v1.json"
        validator(SCHEMAS[document["kind"]]).validate(document)
    assert [found.root for found in parse("x", text)] == [*yaml.safe_load_all(text)]


@pytest.mark.parametrize(
    "address",
    ["10.2.0.11", "0.0.0.0", "255.255.255.255", "10.2.0.256", "10.2.0", "10.2.0.1.1", "010.2.0.1", "10.2.0.00",
     " 10.2.0.1", "10.2.0.1 ", "10.2.0.1\n", "0x0a.2.0.1", "١.2.3.4", "", "1", "10.2.0.-1", "10..0.1", "::1"],
)  # fmt: skip
def test_what_the_compiled_validator_takes_for_an_address_is_one(address):
    """It checks addresses by itself; the model is then built from what it lets pass."""
    _, compiled = schema._compiled("Pool")
    document = {"apiVersion": "lbctl/v1", "kind": "Pool", "metadata": {"name": "x"},
                "spec": {"endpoints": [{"address": address}]}}  # fmt: skip
    assert compiled.is_valid(document) == (schema.FORMATS["ipv4"].complaint(address) is None)
