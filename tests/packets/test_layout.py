# SPDX-License-Identifier: Apache-2.0
"""bpf/maps.h and reconciler/dataplane/layout.py say the same, field by field and number by number."""

from __future__ import annotations

import os
import re
import struct
from enum import IntEnum
from pathlib import Path

import pytest

from reconciler.dataplane.layout import (
    EXPLANATION,
    INNER_IDS,
    MAPS,
    PREVIOUS,
    RING_NAMES,
    RINGS,
    SERVICES6,
    VIPS6,
    AlgorithmCode,
    Direction,
    EchoCode,
    EndpointRowState,
    FlowState,
    MapSpec,
    MapType,
    Memory,
    ModeCode,
    TooBigCode,
    UndefinedCode,
    Verdict,
)
from reconciler.dataplane.program import program_name
from reconciler.kernel.build import build
from reconciler.kernel.maps import Shape
from reconciler.kernel.real import RealKernel
from reconciler.paths import data_dir
from tests.packets.balancer import FEATURES

HEADER = re.sub(r"/\*.*?\*/", "", (data_dir("bpf") / "maps.h").read_text(), flags=re.DOTALL)

ENUMS: dict[str, tuple[str, type[IntEnum]]] = {
    "mode": ("MODE", ModeCode),
    "algorithm": ("ALGORITHM", AlgorithmCode),
    "undefined": ("UNDEFINED", UndefinedCode),
    "echo": ("ECHO", EchoCode),
    "endpoint_state": ("ENDPOINT", EndpointRowState),
    "too_big": ("TOO_BIG", TooBigCode),
    "direction": ("DIRECTION", Direction),
    "flow_state": ("FLOW", FlowState),
    "verdict": ("VERDICT", Verdict),
    "memory": ("MEMORY", Memory),
}

FORMATS = {
    "__be128": "16s", "__be32": "4s", "__be16": "2s", "bitmap": "8192s", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
}  # fmt: skip
"""The only types that rows are made of: what is in network byte order is bytes to user space."""

ALIGNMENTS = {"__be128": 4, "bitmap": 1}
"""Of types that are not aligned to their size."""

MACROS = {
    "BPF_HASH": MapType.HASH,
    "BPF_ARRAY": MapType.ARRAY,
    "BPF_PERCPU_ARRAY": MapType.PERCPU_ARRAY,
}


def structs() -> dict[str, list[tuple[str, str]]]:
    """Name → (type, name) of its fields; `pad` fields as many as they are bytes."""
    found = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", HEADER, re.DOTALL):
        # An IPv6 address is four words to the program, and one value to user space.
        body = re.sub(r"__be32 (\w+)\[4\];", r"__be128 \1;", body)
        # A bitmap is one value, too.
        body = re.sub(r"u8 bits\[8192\];", "bitmap bits;", body)
        fields = re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body)
        found[name] = [(type_, field) for type_, field, count in fields for _ in range(int(count or 1))]
    return found


def declared() -> dict[str, tuple[MapType, str, str]]:
    """Name → type, C types of key and value, of every map of the header."""
    found = {
        name: (MACROS[macro], key or "u32", value)
        for macro, name, key, value in re.findall(
            r"^(BPF_HASH|BPF_ARRAY|BPF_PERCPU_ARRAY)\((\w+),(?: ([^,]+),)? ([^,]+), 1\);", HEADER, re.MULTILINE
        )
    }
    for key, value, name in re.findall(r'^BPF_TABLE\("lru_hash", ([^,]+), ([^,]+), (\w+), 1\);', HEADER, re.MULTILINE):
        found[name] = (MapType.LRU_HASH, key, value)
    for name in re.findall(r'^BPF_ARRAY_OF_MAPS\((\w+), "\w+_template", 1\);', HEADER, re.MULTILINE):
        found[name] = (MapType.ARRAY_OF_MAPS, "u32", "u32")
    return found


def as_format(type_: str) -> str:
    """The `struct` format of a C type. AssertionError if the compiler would put padding into it."""
    if not type_.startswith("struct "):
        return f"={FORMATS[type_]}"
    fields = structs()[type_.removeprefix("struct ")]
    sizes = [struct.calcsize(f"={FORMATS[t]}") for t, _ in fields]
    alignments = [ALIGNMENTS.get(t, size) for (t, _), size in zip(fields, sizes, strict=True)]
    offset = 0
    for size, alignment in zip(sizes, alignments, strict=True):
        assert offset % alignment == 0, f"{type_} has a hole at {offset}"
        offset += size
    assert offset % max(alignments) == 0, f"{type_} has a tail that is not named"
    return "=" + "".join("x" if name == "pad" else FORMATS[t] for t, name in fields)


def plain(format_: str) -> str:
    """A format with its counts written out, except those of byte strings."""
    return re.sub(r"(\d+)([^\ds])", lambda match: match[2] * int(match[1]), format_)


MODES = ("NAT", "DSR_L2", "DSR_L3")
SETS_OF_FEATURES = [
    (), *((feature,) for feature in FEATURES), FEATURES,
    *((mode, *(f for f in FEATURES if f not in MODES)) for mode in MODES),
]  # fmt: skip
SETS_OF_FEATURES += [("EXPLAIN",), *((*features, "EXPLAIN") for features in SETS_OF_FEATURES[-4:])]
"""None, each alone, all, each mode with all but the other modes; and the programs that explain the latter."""
TEMPLATES = {RINGS: "ring_template", PREVIOUS: "previous_template"}
"""What BCC knows the shape of inner arrays by."""
SHARED = [spec for spec in MAPS.values() if spec not in (RING_NAMES, *INNER_IDS.values())]


def test_both_sides_have_the_same_maps() -> None:
    assert declared().keys() - TEMPLATES.values() == {spec.name for spec in SHARED}


@pytest.mark.parametrize("spec", TEMPLATES, ids=lambda spec: spec.name)
def test_inner_arrays_have_the_same_fields(spec: MapSpec) -> None:
    type_, _, value = declared()[TEMPLATES[spec]]
    assert type_ is MapType.ARRAY
    assert as_format(value) == plain(spec.inner)


@pytest.mark.parametrize("spec", SHARED, ids=lambda spec: spec.name)
def test_keys_and_values_have_the_same_fields(spec: MapSpec) -> None:
    type_, key, value = declared()[spec.name]
    assert type_ is spec.type
    assert as_format(key) == plain(spec.key)
    assert as_format(value) == plain(spec.value)


@pytest.mark.parametrize("name", ENUMS)
def test_numbers_mean_the_same(name: str) -> None:
    prefix, codes = ENUMS[name]
    (body,) = re.findall(rf"enum {name} \{{(.*?)\}};", HEADER, re.DOTALL)
    values = {enumerator: int(value) for enumerator, value in re.findall(r"(\w+) = (\d+),", body)}
    assert values == {f"{prefix}_{code.name}": code.value for code in codes}


def test_no_enum_is_left_out() -> None:
    assert set(re.findall(r"enum (\w+) \{", HEADER)) == set(ENUMS)


def test_the_fields_of_an_explanation_have_the_same_names() -> None:
    assert tuple(field for _, field in structs()["explained"]) == EXPLANATION


def test_every_verdict_says_what_it_means_in_words_of_its_own() -> None:
    assert all(verdict.meaning for verdict in Verdict)
    assert len({verdict.meaning for verdict in Verdict}) == len(Verdict)


@pytest.mark.kernel
@pytest.mark.parametrize("features", SETS_OF_FEATURES, ids=lambda features: "+".join(features) or "none")
def test_every_set_of_features_loads_and_has_the_maps_that_it_needs(features: tuple[str, ...], tmp_path: Path) -> None:
    """And a map that no feature needs is in no program without that feature."""
    compiled = build(features).maps
    for name, shape in compiled.items():
        spec = MAPS[name]
        assert shape == Shape(spec.type, spec.key_size, spec.value_size, 1)
        assert spec.is_used(features)
    instance = RealKernel(f"lbd-{os.getpid()}", tmp_path)
    try:
        instance.load_program(program_name(features), features)
    finally:
        instance.unload_program()
        instance.remove_instance()
    balances = bool(set(MODES) & set(features))
    assert ("explained" in compiled) == ("EXPLAIN" in features)
    assert ("flows" in compiled) == ("NAT" in features)
    assert (RINGS.name in compiled) == balances
    assert ("ring_turns" in compiled) == (balances and "ROUND_ROBIN" in features)
    assert (SERVICES6.name in compiled) == ("IPV6" in features and bool({"DSR_L2", "DSR_L3"} & set(features)))
    assert (VIPS6.name in compiled) == ("IPV6" in features)
    assert ("settings" in compiled) == bool({"DSR_L2", "DSR_L3"} & set(features))
