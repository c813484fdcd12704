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
from reconciler.config.formats import FORMATS, seconds
from reconciler.config.load import load
from reconciler.paths import data_dir
from tests.config.manifests import OF_TYPES, node, pool, service

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
              "const", "allOf"}  # fmt: skip
    for part in ALL_PARTS:
        assert part.keys() <= schema.EXPLAINED | silent
        assert ("pattern" in part) == ("patternErrorMessage" in part)


def test_conditions_only_ask_for_keys_or_forbid_them_with_a_reason():
    """These are the consequences that the code can explain."""
    for part in ALL_PARTS:
        for condition in part.get("allOf", ()):
            assert condition.keys() <= {"if", "then", "else"}
            for consequence in (condition.get("then", {}), condition.get("else", {})):
                assert consequence.keys() <= {"required", "properties"}
                keys = {*consequence.get("required", ()), *consequence.get("properties", ())}
                assert keys <= part["properties"].keys()
                for forbidden in consequence.get("properties", {}).values():
                    assert forbidden.keys() == {"not", "errorMessage"}
                    assert forbidden["not"] == {}


def test_what_is_checked_by_python_has_a_format():
    for part in ALL_PARTS:
        assert part.get("format", "address") in FORMATS
        if part.get("format") == "address":
            assert part["anyOf"] == [{"format": "ipv4"}, {"format": "ipv6"}]


def test_enumerations_are_those_of_the_model():
    in_schemas = [tuple(part["enum"]) for part in ALL_PARTS if len(part.get("enum", ())) > 1]
    in_model = [tuple(cls) for cls in vars(model).values()
                if isinstance(cls, type) and issubclass(cls, StrEnum) and len(cls) > 1]  # fmt: skip
    assert sorted(in_schemas) == sorted(in_model)


def spec(kind, *path):
    part = SCHEMAS[kind]["properties"]["spec"]
    for step in path:
        part = part["items"] if step == "*" else part["properties"][step]
    return part


def keyword_name(name):
    """undefined_traffic → undefinedTraffic, timeout_s → timeout; some addresses → the mapping that has them"""
    name = name.replace("health_addresses", "health_address")
    return re.sub("_(.)", lambda match: match[1].upper(), re.sub("_(s|bytes)$", "", name))


def as_written(value):
    """A value of the model as a manifest has it."""
    if isinstance(value, float):
        return next(text for text in ("1s", "2s", "3h") if seconds(text) == value)
    if isinstance(value, range):
        return f"{value[0]}-{value[-1]}"
    if isinstance(value, model.HealthCheck | model.Capacity | model.TunnelSource):
        return {"type": "none"} if isinstance(value, model.HealthCheck) else {}
    return list(value) if isinstance(value, tuple) else value


OF_EACH_CLASS = {
    model.Service: spec("Service"),
    model.Affinity: spec("Service", "affinity"),
    model.Pool: spec("Pool"),
    model.Endpoint: spec("Pool", "endpoints", "*"),
    model.HealthCheck: spec("Pool", "healthCheck"),
    model.Node: spec("Node"),
    model.Interface: spec("Node", "interfaces", "*"),
    model.Capacity: spec("Node", "capacity"),
    model.TunnelSource: spec("Node", "tunnelSource"),
}
NOT_IN_A_SPEC = {"span", "places", "name", "labels"}
SAID_OTHERWISE = {
    (model.Service, "algorithm"),       # its default depends on the mode
    (model.Service, "allowedSources"),  # an empty list would look as if it allowed nobody, so there is none
    (model.Service, "nodeSelector"),
    (model.Node, "healthAddress"),      # a mapping
    (model.HealthCheck, "headers"),     # a mapping
    (model.HealthCheck, "type"),        # a health check without a type is none
}


@pytest.mark.parametrize("cls", OF_EACH_CLASS)
def test_defaults_are_those_of_the_model(cls):
    for field in dataclasses.fields(cls):
        name = keyword_name(field.name)
        if field.name in NOT_IN_A_SPEC or field.default is dataclasses.MISSING or (cls, name) in SAID_OTHERWISE:
            continue
        assert OF_EACH_CLASS[cls]["properties"][name].get("default") == as_written(field.default), name


@pytest.mark.parametrize("cls", OF_EACH_CLASS)
def test_the_model_has_a_field_for_each_key(cls):
    in_model = {keyword_name(field.name) for field in dataclasses.fields(cls)} - {"span", "places"}
    in_schema = set(OF_EACH_CLASS[cls]["properties"])
    if cls in (model.Service, model.Pool, model.Node):
        in_model -= {"name", "labels"}
    assert in_schema - {"vip"} == in_model


def test_what_is_left_out_is_what_the_schema_says(write):
    """A manifest with every default written out means the same as one without."""

    def with_defaults(part, value):
        if isinstance(value, list):
            return [with_defaults(part["items"], item) for item in value]
        if not isinstance(value, dict):
            return value
        defaults = {name: inner["default"] for name, inner in part.get("properties", {}).items() if "default" in inner}
        if part is spec("Pool", "healthCheck"):
            defaults = {name: item for name, item in defaults.items() if "http" in OF_TYPES.get(name, ("http",))}
        return defaults | {name: with_defaults(part["properties"][name], item) for name, item in value.items()}

    least = {
        "Service": {"vip": "20.20.20.1", "ports": [80], "pool": "web", "affinity": {}},
        "Pool": {"endpoints": [{"address": "10.2.0.11"}], "healthCheck": {"type": "http"}},
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


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        (service().replace("vip: 20.20.20.1", f"vips: [{', '.join(f'20.20.20.{i}' for i in range(1, 66))}]"),
         "too-many", "expected at most 64 items in spec.vips, got 65"),
        (service(more=f"nodeSelector: {{{', '.join(f'l{i}: x' for i in range(65))}}}"),
         "too-many", "expected at most 64 keys in spec.nodeSelector, got 65"),
        (pool(more=f"healthCheck: {{type: http, path: /{'x' * 1024}}}"),
         "out-of-range", "expected 1 to 1024 characters, got 1025"),
        (pool(more=f"healthCheck: {{type: udp, send: {'x' * 1025}}}"),
         "out-of-range", "expected 1 to 1024 characters, got 1025"),
        (node(more="expectedFlows: 0"), "out-of-range", "expected a whole number from 1 to 1000000000, got 0"),
    ],
)  # fmt: skip
def test_what_may_be_written_has_limits(write, text, rule, message):
    found = {d.rule: d.message for d in load(write({"all.yaml": text})).diagnostics}
    assert found[rule] == message


def test_a_list_of_the_same_item_over_and_over_takes_bounded_time(write):
    text = service(more=f"allowedSources: [{', '.join(['10.0.0.0/8'] * 70_000)}]")
    assert {d.rule for d in load(write({"all.yaml": text})).diagnostics} == {"duplicate-item", "too-many"}


@pytest.mark.parametrize("directory", EXAMPLES, ids=lambda path: path.name)
def test_example_is_clean(directory):
    loaded = load(directory)
    assert loaded.diagnostics == ()
    assert loaded.fleet.services
    assert loaded.fleet.pools
    assert loaded.fleet.nodes


def test_all_examples_together_are_one_clean_fleet():
    loaded = load(ROOT / "examples" / "configs")
    assert loaded.diagnostics == ()
    assert len(loaded.fleet.services) >= len(EXAMPLES)


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
     " 10.2.0.1", "10.2.0.1 ", "10.2.0.1\n", "0x0a.2.0.1", "١.2.3.4", "", "1", "10.2.0.-1", "10..0.1", "::1", "::",
     "2001:db8::1", "2001:DB8:0:0:0:0:0:1", "::ffff:10.2.0.11", "fe80::1%eth0", "[::1]",
     "1::2::3", "1:2:3:4:5:6:7:8:9", "12345::", ":1", "::g", "::1/64", "1:2:3:4:5:6:7", "::010.2.0.1", "::1 "],
)  # fmt: skip
def test_what_the_compiled_validator_takes_for_an_address_is_one(address):
    """It checks addresses by itself; the model is then built from what it lets pass."""
    _, compiled = schema._compiled("Pool")
    document = {"apiVersion": "lbctl/v1", "kind": "Pool", "metadata": {"name": "x"},
                "spec": {"endpoints": [{"address": address}]}}  # fmt: skip
    assert compiled.is_valid(document) == (schema.FORMATS["address"].complaint(address) is None)
