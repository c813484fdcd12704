# SPDX-License-Identifier: Apache-2.0
"""Input that is damaged, of another format or meant to hurt: an error with a line, or manifests that hold."""

import importlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.config.document import parse as parse_yaml
from reconciler.errors import LbctlError
from reconciler.importers import FORMATS, emit
from reconciler.importers.draft import TooMuch
from tests.importers.test_golden import CASES

TEXTS = {path: path.read_text() for path in CASES}


def outcome(name, text):
    """What a format's parser makes of a text: Imported, or None for an error as there should be."""
    try:
        return importlib.import_module(f"reconciler.importers.{name}").parse(text)
    except LbctlError as error:
        assert error.message
        return None


def assert_holds(imported):
    """What was imported is written and reads back as it was, under names that are unique."""
    documents = parse_yaml("", emit.text(imported.manifests, "x"))
    assert [d.diagnostics for d in documents] == [[]] * len(imported.manifests)
    assert json.dumps([d.root for d in documents], sort_keys=True) == json.dumps(imported.manifests, sort_keys=True)
    names = [(m["kind"], m["metadata"]["name"]) for m in imported.manifests]
    assert len(set(names)) == len(names)


@st.composite
def damaged(draw):
    """A golden input with pieces of its own or another one's, or of nothing, put in the place of some."""
    path = draw(st.sampled_from(CASES))
    text = TEXTS[path]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 40)))
        other = TEXTS[draw(st.sampled_from(CASES))]
        at = draw(st.integers(0, len(other)))
        piece = draw(
            st.one_of(st.just(other[at : at + 30]), st.text(max_size=6), st.sampled_from(list('{}[]":,\n -0')))
        )
        text = text[:start] + piece + text[stop:]
    return path.parent.name, text


@given(st.sampled_from(sorted(FORMATS)), st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_error_or_holds(name, text):
    if imported := outcome(name, text):
        assert_holds(imported)


@given(damaged())
@settings(max_examples=400, deadline=None)
def test_damaged_input_is_an_error_or_holds(sample):
    if (imported := outcome(*sample)) and imported.manifests:
        assert_holds(imported)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_input_of_another_format_is_refused(name, path):
    if path.parent.name != name:
        assert outcome(name, TEXTS[path]) is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", "# nothing but a comment\n"])
def test_empty_input_is_refused(name, text):
    assert outcome(name, text) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("loxilb", '{"lbAttr":' + "[" * 100_000),
        ("loxilb", '{"lbAttr":[{"serviceArguments":{"port":' + "9" * 5000 + "}}]}"),
        ("keepalived", "a {\n" * 100_000),
        ("keepalived", "$A=${A}${A}\nvirtual_server ${A} 80 { }\n"),
        ("keepalived", "$A=" + "x" * 5000 + "\n$B=${A}${A}${A}\nvirtual_server ${B} 80 { }\n"),
        ("keepalived", "virtual_server_group g {\n" + " 10.0.0.0/22 80\n" * 200 + "}\nvirtual_server group g { }\n"),
        ("keepalived", "~SEQ(N, 1000000000) real_server 10.0.1.${N} 80 { }\n"),
        ("keepalived", "~SEQ(A, 9999) ~SEQ(B, 9999) real_server 10.0.1.${B} 80 { }\n"),
        ("keepalived", "$A= \\\n ${A} \\\n ${A} \\\n\n$A\n"),
        ("keepalived", "$A=${A}\n" + "$A\n" * 10),
        ("sbulb", "sbulb eth0 -vs 10.0.0.1 -rs 10.0.0.2 -p " + "9" * 5000),
        ("ipvsadm", "-A -t " + "[" * 100_000),
    ],
    ids=lambda value: value[:12],
)
def test_input_that_is_meant_to_hurt_is_refused_at_once(name, text):
    assert outcome(name, text) is None


LONG = "x" * (1 << 20)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        LONG,
        f'"{LONG}',
        f"'{LONG}'",
        "\\\n" * (1 << 18),
        "a\\" * (1 << 18),
        " " * (1 << 20),
        '"" ' * (1 << 18),
        f"-A -t {LONG}",
    ],
    ids=["word", "open quote", "quoted", "lines", "escapes", "blanks", "empty words", "value"],
)
def test_a_megabyte_in_one_piece_is_refused_or_read_in_time_that_grows_with_it(name, text):
    """No clock decides: with a tokenizer of quadratic time this would outlast the limit of any test run."""
    if (imported := outcome(name, text)) and imported.manifests:
        assert_holds(imported)


@pytest.mark.parametrize(
    ("module", "limit", "name", "text"),
    [
        ("draft", "MAX_NOTICES", "ipvsadm", "-A -f {}\n"),
        ("commands", "MAX_COMMANDS", "ipvsadm", "-A -t 10.0.0.1:{}\n"),
        ("commands", "MAX_COMMANDS", "katran", "-A -t 10.0.0.1:{}\n"),
        ("assemble", "MAX_SERVICES", "ipvsadm", "-A -t 10.0.0.1:{}\n"),
        ("assemble", "MAX_MEMBERS", "ipvsadm", "-A -t 10.0.0.1:{}\n"),
        ("keepalived_syntax", "MAX_STATEMENTS", "keepalived", "virtual_server 10.0.0.1 {}\n"),
        ("json_text", "MAX_OBJECTS", "loxilb", '{{"lbAttr": [], "x{}": 0}}\n'),
    ],
)
def test_more_than_fits_into_memory_is_refused_with_its_line(module, limit, name, text, monkeypatch):
    monkeypatch.setattr(importlib.import_module(f"reconciler.importers.{module}"), limit, 10)
    importer = importlib.import_module(f"reconciler.importers.{name}")
    importer.parse("".join(text.format(i) for i in range(1, 10)))
    with pytest.raises(TooMuch) as error:
        importer.parse("".join(text.format(i) for i in range(1, 13)))
    assert error.value.line == 11
    assert error.value.hint
