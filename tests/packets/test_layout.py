# SPDX-License-Identifier: Apache-2.0
"""bpf/maps.h and reconciler/dataplane/layout.py say the same, field by field and number by number."""

from __future__ import annotations

import os
import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from reconciler.dataplane.layout import (
    INNER_IDS,
    MAPS,
    RING_CHUNKS,
    RING_NAMES,
    RINGS,
    SERVICES6,
    SOURCE_LISTS,
    VIPS6,
    AlgorithmCode,
    ConnectionState,
    EchoCode,
    EndpointRowState,
    MapSpec,
    MapType,
    Memory,
    ModeCode,
    TooBigCode,
    UndefinedCode,
    Verdict,
)
from reconciler.dataplane.program import program_name
from reconciler.dataplane.row import RowType
from reconciler.dataplane.stages import StageNumber, stages_of
from reconciler.kernel import bpf, holders, stages
from reconciler.kernel.build import build_all
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
    "connection_state": ("CONNECTION", ConnectionState),
    "verdict": ("VERDICT", Verdict),
    "memory": ("MEMORY", Memory),
    "stage": ("STAGE", StageNumber),
}

SIZES = {"__be32": 4, "__be16": 2, "u8": 1, "u16": 2, "u32": 4, "u64": 8}
"""The only types that rows are made of."""

WORDS = {
    "__be16": {">u2"}, "__be32": {"V4", ">u4"}, "__be32[4]": {"V16"}, "__be32[8]": {"V32"},
    "__be32[16]": {"V64"}, "__be32[32]": {"V128"},
    "u8": {"u1"}, "u16": {"u2"}, "u32": {"u4"}, "u64": {"u8"}, "u64[2]": {"2u8"}, "u64[4]": {"4u8"}, "u64[8]": {"8u8"},
    "u32[65536]": {"65536u4"}, "u64[16]": {"16u8"}, "u64[512]": {"512u8"}, "u64[4096]": {"4096u8"},
    **{f"u8[{count}]": {f"V{count}"} for count in (2, 3, 4, 6, 12, 20, 56, 128, 8192)},
}  # fmt: skip
"""The formats that user space may read a type of C in: addresses are bytes to it, and numbers numbers."""

SCALARS = {"struct address6": "__be32[4]"}
"""An IPv6 address is four words to the program, and one value to user space."""

MACROS = {
    "BPF_HASH": MapType.HASH,
    "BPF_ARRAY": MapType.ARRAY,
    "BPF_PERCPU_ARRAY": MapType.PERCPU_ARRAY,
}


def structs() -> dict[str, list[tuple[str, str]]]:
    """Name → (name, type) of its fields; the type of an array is one like `u8[3]`."""
    return {
        name: [(field, f"{type_}[{count}]" if count else type_)
               for type_, field, count in re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body)]
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", HEADER, re.DOTALL)
    }  # fmt: skip


def declared() -> dict[str, tuple[MapType, str, str]]:
    """Name → type, C types of key and value, of every map of the header."""
    found = {
        name: (MACROS[macro], key or "u32", value)
        for macro, name, key, value in re.findall(
            r"^(BPF_HASH|BPF_ARRAY|BPF_PERCPU_ARRAY)\((\w+),(?: ([^,)]+),)? ([^,)]+), 1\);", HEADER, re.MULTILINE
        )
    }
    lru = r'^BPF_TABLE\("lru_hash", ([^,)]+), ([^,)]+), (\w+), 1\);'
    for key, value, name in re.findall(lru, HEADER, re.MULTILINE):
        found[name] = (MapType.LRU_HASH, key, value)
    for name in re.findall(r"^BPF_PROG_ARRAY\((\w+), 1\);", HEADER, re.MULTILINE):
        found[name] = (MapType.PROG_ARRAY, "u32", "u32")
    for name in re.findall(r'^BPF_ARRAY_OF_MAPS\((\w+), "\w+_template", 1\);', HEADER, re.MULTILINE):
        found[name] = (MapType.ARRAY_OF_MAPS, "u32", "u32")
    return found


def fields_of(type_: str) -> list[tuple[str, str]]:
    """Names and types of the fields of a C type; a type that is no struct is one field without a name."""
    scalar = SCALARS.get(type_, type_)
    return [("", scalar)] if not scalar.startswith("struct ") else structs()[scalar.removeprefix("struct ")]


def assert_same_fields(type_: str, row: RowType[Any]) -> None:
    """AssertionError if the row has other fields, or at other places, or the compiler would put padding between."""
    fields = fields_of(type_)
    assert len(fields) == len(row.fields), f"{type_} has {fields}, the row {row.fields}"
    place, widest = 0, 1
    for (name, c_type), (row_name, form) in zip(fields, row.fields, strict=True):
        element, _, count = c_type.removesuffix("]").partition("[")
        assert not name or name == row_name, f"{type_} has {name} where the row has {row_name}"
        assert form in WORDS[c_type], f"{row_name} of {type_} is a {c_type}, in the row {form}"
        assert place % SIZES[element] == 0, f"{type_} has a hole at {place}"
        assert row.dtype.fields is not None and row.dtype.fields[row_name][1] == place
        place, widest = place + SIZES[element] * int(count or 1), max(widest, SIZES[element])
    assert place % widest == 0, f"{type_} has a tail that is not named"
    assert place == row.size


MODES = ("NAT", "FULLNAT", "DSR_L2", "DSR_L3")
SETS_OF_FEATURES = [
    (), *((feature,) for feature in FEATURES), FEATURES,
    *((mode, *(f for f in FEATURES if f not in MODES)) for mode in MODES),
]  # fmt: skip
SETS_OF_FEATURES += [("EXPLAIN",), *((*features, "EXPLAIN") for features in SETS_OF_FEATURES[-5:])]
_TWO_MODES = (f for f in FEATURES if f not in ("NAT", "FULLNAT", "DSR_L2"))
SETS_OF_FEATURES += [(*FEATURES, "WATCHING"), (*_TWO_MODES, "WATCHING")]
SETS_OF_FEATURES += [("NAT", "UDP"), ("NAT", "DSR_L3", "UDP", "ROUND_ROBIN", "MAGLEV", "ECHO")]
"""None, each alone, all, each mode with all but the other modes; the programs that explain or watch the latter; IPv4
alone."""
MOST_FOLLOWED = 400_000
"""Of each program, main or stage."""
TEMPLATES = {RING_CHUNKS: "chunk_template"}
"""What BCC knows the shape of inner arrays by."""
SHARED = [spec for spec in MAPS.values() if spec not in (RING_NAMES, SOURCE_LISTS, *INNER_IDS.values())]


def test_both_sides_have_the_same_maps() -> None:
    assert declared().keys() - TEMPLATES.values() == {spec.name for spec in SHARED}


@pytest.mark.parametrize("spec", TEMPLATES, ids=lambda spec: spec.name)
def test_inner_arrays_have_the_same_fields(spec: MapSpec) -> None:
    type_, _, value = declared()[TEMPLATES[spec]]
    assert type_ is MapType.ARRAY
    assert spec.inner is not None
    assert_same_fields(value, spec.inner)


@pytest.mark.parametrize("spec", SHARED, ids=lambda spec: spec.name)
def test_keys_and_values_have_the_same_fields(spec: MapSpec) -> None:
    type_, key, value = declared()[spec.name]
    assert type_ is (MapType.ARRAY if spec.type is MapType.CPU_ARRAY else spec.type)
    assert_same_fields(key, spec.key)
    assert_same_fields(value, spec.value)


@pytest.mark.parametrize("name", ENUMS)
def test_numbers_mean_the_same(name: str) -> None:
    prefix, codes = ENUMS[name]
    (body,) = re.findall(rf"enum {name} \{{(.*?)\}};", HEADER, re.DOTALL)
    values = {enumerator: int(value) for enumerator, value in re.findall(r"(\w+) = (\d+),", body)}
    assert values == {f"{prefix}_{code.name}": code.value for code in codes}


def test_no_enum_is_left_out() -> None:
    assert set(re.findall(r"enum (\w+) \{", HEADER)) == set(ENUMS)


def test_every_verdict_says_what_it_means_in_words_of_its_own() -> None:
    assert all(verdict.meaning for verdict in Verdict)
    assert len({verdict.meaning for verdict in Verdict}) == len(Verdict)


@pytest.mark.kernel
@pytest.mark.parametrize("features", SETS_OF_FEATURES, ids=lambda features: "+".join(features) or "none")
def test_every_set_of_features_loads_and_has_the_maps_that_it_needs(features: tuple[str, ...], tmp_path: Path) -> None:
    """And a map that no feature needs is in no program without that feature."""
    compiled = build_all(features).maps
    for name, shape in compiled.items():
        spec = MAPS[name]
        type_ = MapType.ARRAY if spec.type is MapType.CPU_ARRAY else spec.type
        assert shape == Shape(type_, spec.key_size, spec.value_size, 1)
        assert spec.is_used(features)
    instance = RealKernel(f"lbd-{os.getpid()}", tmp_path)
    try:
        instance.load_program(program_name(features), features)
    finally:
        instance.unload_program()
        instance.remove_instance()
    balances = bool(set(MODES) & set(features))
    assert ("explained" in compiled) == ("EXPLAIN" in features)
    assert ("connections" in compiled) == ("NAT" in features)
    assert (RINGS.name in compiled) == balances
    assert ("ring_turns" in compiled) == (balances and "ROUND_ROBIN" in features)
    has_services6 = bool({"DSR_L2", "DSR_L3"} & set(features)) or ("NAT6" in features and balances)
    assert (SERVICES6.name in compiled) == ("IPV6" in features and has_services6)
    assert (VIPS6.name in compiled) == ("IPV6" in features)
    assert ("settings" in compiled) == balances


@pytest.mark.kernel
@pytest.mark.parametrize("features", [FEATURES, (*FEATURES, "EXPLAIN"), (*FEATURES, "WATCHING")],
                         ids=["all", "all+EXPLAIN", "all+WATCHING"])
def test_the_verifier_has_room_for_more(features: tuple[str, ...], tmp_path: Path) -> None:
    """It follows a million instructions at most. The least that two kernels agree on is some way below that."""
    instance = RealKernel(f"lbd-{os.getpid()}", tmp_path)
    try:
        instance.load_program(program_name(features), features)
        for number in parts(instance):
            descriptor = bpf.open_program(number)
            assert descriptor
            with bpf.closing(descriptor):
                told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
            followed = re.search(r"^verified_insns:\s+(\d+)$", told, re.MULTILINE)
            assert followed is None or int(followed[1]) <= MOST_FOLLOWED  # Linux 5.16 and newer say so
    finally:
        instance.unload_program()
        instance.remove_instance()


def parts(instance: RealKernel) -> list[int]:
    """The numbers of the loaded program and of its stages."""
    loaded = instance.loaded_program()
    generation = holders.live(instance._instance)
    assert loaded and generation
    found = stages.numbers(generation) if stages_of(loaded.features) else {}
    assert len(found) == len(stages_of(loaded.features))
    return [loaded.id, *found.values()]
