# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes come in, an answer or a clear error comes out. `make fuzz` runs the same for an hour."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.config.diagnostic import LINE_BREAK
from reconciler.config.fmt import canonical
from reconciler.config.load import load
from reconciler.config.source import read_tree
from reconciler.errors import LbctlError
from reconciler.importers import ipvsadm, katran, keepalived, loxilb, sbulb
from reconciler.snapshot import live_from_json, plan_from_json

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((CHECKOUT / "examples" / "configs").rglob("*.yaml"))
SEEDS = [path.read_bytes() for path in EXAMPLES]
SYNTAX = [b"\n", b"  ", b"\t", b"- ", b": ", b"{", b"}", b"[", b"]", b"'", b"&a ", b"*a", b"---\n", b"!!", b"\0"]
EDITS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 20), st.sampled_from(SYNTAX)), max_size=5)

IMPORTERS = [ipvsadm, katran, keepalived, loxilb, sbulb]

fuzz = settings(deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def manifests(draw):
    """A real manifest with some of its bytes cut, doubled or replaced; or bytes of any kind."""
    text = draw(st.sampled_from(SEEDS) | st.binary(max_size=300))
    for place, cut, put in draw(EDITS):
        place %= len(text) + 1
        text = text[:place] + put + text[place + cut :]
    return text


def tree(directory, files):
    for name, content in files.items():
        path = Path(directory) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return Path(directory)


@fuzz
@given(manifests(), manifests())
def test_any_manifests_are_a_fleet_or_diagnostics(one, other):
    with tempfile.TemporaryDirectory() as directory:
        loaded = load(tree(directory, {"a.yaml": one, "b.yml": other}))
    assert loaded.fleet is not None or loaded.diagnostics
    for diagnostic in loaded.diagnostics:
        assert diagnostic.message
        assert 0 <= diagnostic.span.line <= 1 + len(LINE_BREAK.findall(loaded.texts.get(diagnostic.span.file, "")))


@fuzz
@given(manifests())
def test_formatting_never_writes_what_it_could_not_read_back(content):
    with tempfile.TemporaryDirectory() as directory:
        for file in read_tree(tree(directory, {"a.yaml": content})).files:
            text, problems = canonical(file)
            if not problems:
                again, problems = canonical(type(file)(file.name, text))
                assert not problems
                assert again == text


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda module: module.__name__.rpartition(".")[2])
@fuzz
@given(data=st.data())
def test_any_text_is_imported_or_refused(importer, data):
    cases = CHECKOUT / "tests" / "importers" / importer.__name__.rpartition(".")[2]
    seeds = [path.read_text() for path in sorted(cases.rglob("*")) if path.suffix in (".txt", ".conf", ".json")]
    text = data.draw(st.sampled_from(seeds) | st.text(max_size=300))
    for place, put in data.draw(st.lists(st.tuples(st.integers(0, 4000), st.text(max_size=4)), max_size=5)):
        place %= len(text) + 1
        text = text[:place] + put + text[place + len(put) :]
    try:
        importer.parse(text)
    except LbctlError as error:
        assert error.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SNAPSHOT = {
    "format_version": 1, "foreign": [], "connections": [], "desired": [], "resource_changes": [],
    "node": "lb1", "instance": "default", "host": None,
    "resources": [{"kind": "vip", "address": "20.20.20.1", "undefined_traffic": "drop"}],
}  # fmt: skip


@pytest.mark.parametrize("read", [live_from_json, plan_from_json])
@fuzz
@given(st.sampled_from(sorted(SNAPSHOT)), json_values)
def test_a_damaged_snapshot_or_plan_is_refused_or_read(read, field, value):
    try:
        version = {"format_version": 2} if read is plan_from_json else {}
        read(json.loads(json.dumps(SNAPSHOT | version | {field: value})))
    except LbctlError as error:
        assert error.message
