# SPDX-License-Identifier: Apache-2.0
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.config import document
from reconciler.config.document import parse


def only(text):
    [found] = parse("f.yaml", text)
    return found


def problems(text):
    return [(d.rule, d.span.line, d.span.column) for found in parse("f.yaml", text) for d in found.diagnostics]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("0", 0), ("80", 80), ("-1", -1), ("+1", 1), ("1e3", 1000), ("80.0", 80), ("1.5", 1.5), (".5", 0.5),
        ("123456789012345678901234567890", 123456789012345678901234567890.0),
        # Text, where YAML 1.1 sees booleans, octal, hexadecimal and sexagesimal numbers, dates.
        *((text, text) for text in (
            "yes", "no", "on", "off", "True", "NULL", "010", "0x1F", "0o17", "0b1", "1_000", "1:30", "2026-01-31",
            "10.2.0.11", "1e999", ".inf", ".nan", "80-90", "1" * 5000, "=",
        )),
        # Quotes and blocks make a text of everything.
        ("'80'", "80"), ('"true"', "true"), ("''", ""), ('"\\u00e9"', "é"), ("|-\n  80", "80"),
        (">-\n  a\n  b", "a b"),
    ],
)  # fmt: skip
def test_scalar_is_read_as_yaml_1_2_does(written, meant):
    value = only(f"key: {written}\n").root["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_documents_are_plain_data():
    text = "a: {b: [1, x, {c: null}]}\n---\n# nothing\n---\n- y\n...\n---\nz\n"
    assert [found.root for found in parse("f.yaml", text)] == [{"a": {"b": [1, "x", {"c": None}]}}, ["y"], "z"]


@pytest.mark.parametrize(("text", "count"), [("", 0), ("---\n---\n# x\n", 0), ("--- null\n", 1), ("--- ''\n", 1)])
def test_only_what_says_nothing_is_skipped(text, count):
    assert len(parse("f.yaml", text)) == count


FLOW = """\
# é
{name: web, "ports": [80,
   '443'], more: {deep: [ {x: ü, y: 1} ]}}
"""
BLOCK = """\
name: web
"ports":
- 80
-   '443'
more:
    deep:
      - x: ü
        y: >
          folded
      -
        - z
"""


@pytest.mark.parametrize(
    ("text", "path", "key", "value"),
    [
        # text, path, (line, column, length) of the key, of the value
        (FLOW, (), (2, 1, 1), (2, 1, 1)),
        (FLOW, ("name",), (2, 2, 4), (2, 8, 3)),
        (FLOW, ("ports",), (2, 13, 7), (2, 22, 1)),
        (FLOW, ("ports", 0), (2, 23, 2), (2, 23, 2)),
        (FLOW, ("ports", 1), (3, 4, 5), (3, 4, 5)),
        (FLOW, ("more", "deep", 0), (3, 27, 1), (3, 27, 1)),
        (FLOW, ("more", "deep", 0, "y"), (3, 34, 1), (3, 37, 1)),
        (BLOCK, (), (1, 1, 1), (1, 1, 1)),
        (BLOCK, ("name",), (1, 1, 4), (1, 7, 3)),
        (BLOCK, ("ports",), (2, 1, 7), (3, 1, 1)),
        (BLOCK, ("ports", 1), (4, 5, 5), (4, 5, 5)),
        (BLOCK, ("more",), (5, 1, 4), (6, 5, 1)),
        (BLOCK, ("more", "deep"), (6, 5, 4), (7, 7, 1)),
        (BLOCK, ("more", "deep", 0), (7, 9, 1), (7, 9, 1)),
        (BLOCK, ("more", "deep", 0, "x"), (7, 9, 1), (7, 12, 1)),
        (BLOCK, ("more", "deep", 0, "y"), (8, 9, 1), (8, 12, 1)),
        (BLOCK, ("more", "deep", 1, 0), (11, 11, 1), (11, 11, 1)),
        # What is not there is shown where it would be.
        (BLOCK, ("more", "shallow", 3), (5, 1, 4), (6, 5, 1)),
    ],
)  # fmt: skip
def test_every_key_and_value_has_its_place(text, path, key, value):
    for prefix, line in (("", 0), ("---\na: [\n---\n", 3)):  # also behind a document that is broken
        found = parse("f.yaml", prefix + text)[-1]
        for event, (wanted_line, column, length) in ((found.key_at(path), key), (found.value_at(path), value)):
            span, actual_length = found.extent_of(event)
            assert (span.line - line, span.column, actual_length) == (wanted_line, column, length)


def test_duplicate_key_is_found_at_any_depth_and_the_first_counts():
    found = only("a: 1\nb: {c: 1, d: 2, c: [3]}\na: {x: {}}\n")
    assert found.root == {"a": 1, "b": {"c": 1, "d": 2}}
    assert [(d.rule, d.span.line, d.span.column) for d in found.diagnostics] == [
        ("duplicate-key", 2, 17),
        ("duplicate-key", 3, 1),
    ]


def test_duplicate_keys_are_reported_up_to_a_bound():
    assert len(problems("a: 1\n" * 1000)) == document.MAX_DUPLICATES


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x 1\n", ("yaml-anchor", 1, 4)),
        ("a: *x\n", ("yaml-anchor", 1, 4)),
        ("&x a: 1\n", ("yaml-anchor", 1, 1)),
        ("a:\n  <<: {b: 1}\n", ("yaml-anchor", 2, 3)),
        ("a: !!str 1\n", ("yaml-tag", 1, 4)),
        ("a: !x [1]\n", ("yaml-tag", 1, 4)),
        ("%TAG !e! tag:e,2000:\n---\na: !e!x 1\n", ("yaml-tag", 1, 1)),
        ("? [a]\n: 1\n", ("yaml-key", 1, 3)),
        ("{a: 1}: 1\n", ("yaml-key", 1, 1)),
        ("[" * 40 + "]" * 40, ("yaml-depth", 1, 33)),
        ("a:\n\tb: 1\n", ("yaml-tab", 2, 1)),
        ("a: 1\n\x7f: 1\n", ("yaml-syntax", 2, 1)),
    ],
)
def test_what_is_not_part_of_the_language_is_refused(text, problem):
    assert problems(text) == [problem]


def test_quoted_merge_key_is_a_key():
    assert only("'<<': 1\n").root == {"<<": 1}


def test_nesting_up_to_the_limit_is_read():
    text = "[" * document.MAX_DEPTH + "]" * document.MAX_DEPTH
    assert problems(text) == []
    assert problems(f"[{text}]") == [("yaml-depth", 1, document.MAX_DEPTH + 1)]


@pytest.mark.parametrize(
    "broken",
    ["a: [1\n", "a: 'x\n", "a: b: c\n", "a:\n\tb: 1\n", "- a\nb: 1\n", "a: *x\n", "%FOO\n", "--- }\n", "a: @\n",
     "{a: 1\n"],
)  # fmt: skip
def test_reading_goes_on_behind_a_broken_document(broken):
    before, after = "x: 1\n", "---\ny: 2\n---\nz: 3\n"
    found = parse("f.yaml", f"{before}---\n{broken}{after}")
    assert [d.root for d in found if not d.diagnostics] == [{"x": 1}, {"y": 2}, {"z": 3}]
    assert sum(len(d.diagnostics) for d in found) == 1
    shift = broken.count("\n")
    assert [d.span.line for d in found if d.root] == [1, 4 + shift, 6 + shift]


def test_reading_stops_after_many_broken_documents():
    found = parse("f.yaml", "---\na: [\n" * 100)
    assert len(found) == document.MAX_BROKEN + 1
    assert "the rest of it was not read" in found[-1].diagnostics[0].message
    assert found[-1].diagnostics[0].span.line == 2 * document.MAX_BROKEN + 1


def test_each_document_keeps_its_own_text():
    texts = [found.text for found in parse("f.yaml", "a: 1\n---\nb: [\n---\nc: 3\n")]
    assert [text.strip("-\n") for text in texts] == ["a: 1", "b: [", "c: 3"]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028"])
def test_lines_are_counted_whatever_ends_them(line_break):
    found = only(line_break.join(["a: 1", "b:", "  c: 2"]))
    assert found.extent_of(found.value_at(("b", "c")))[0].line == 3


def test_too_many_values_are_refused(monkeypatch):
    monkeypatch.setattr(document, "MAX_EVENTS", 100)
    for text in ("[" + "a," * 100 + "]", "---\na\n" * 100, "- - - - a\n" * 100):
        assert [rule for rule, _, _ in problems(text)] == ["source-too-large"]
    assert problems("[" + "a," * 50 + "]") == []


yaml_like = st.lists(
    st.sampled_from(
        ["a", "b: ", "- ", "  ", "\n", "\n---\n", "{", "}", "[", "]", ", ", "'", '"', "&x ", "*x", "!t ", "|", ">",
         "#", "? ", ": ", "\t", "%TAG", "%YAML 1.2\n", "...\n", "80", "é", "\u2028", "\r", "\\", "\x00", "\ufeff",
         "<<: ", "@"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=500, derandomize=True)
@given(st.one_of(yaml_like, st.text(st.characters(exclude_categories=["Cs"]))))
def test_no_text_raises_and_every_problem_lies_within_it(text):
    lines = document.line_and_column(text, len(text))[0]
    for found in parse("f.yaml", text):
        assert (found.start is None) <= bool(found.diagnostics)
        for diagnostic in found.diagnostics:
            assert 1 <= diagnostic.span.line <= lines
            assert diagnostic.span.column >= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_brief_reading_finds_the_same_values_or_gives_up(seed):
    """Whatever is wrong is left to the full reading, which knows all places."""
    chance = random.Random(seed)
    parts = ["a: 1\n", "b: {c: [1, 2.5, 007, 1.2.3.4, x]}\n", "d: [{e: {f: {g: 1}}}, {h: 'y'}]\n", "---\n"]
    parts += [
        "  k: v\n",
        "a: 2\n",
        "x: {y: {z: {q: 1, q: 2}}}\n",
        "&a\n",
        "- 1\n",
        "!!str t\n",
        "]\n",
        "'\n",
        "{{ v }}\n",
    ]
    for _ in range(200):
        text = "".join(chance.choice(parts[: chance.randrange(1, 14)]) for _ in range(chance.randrange(1, 7)))
        full, brief = document.parse("a.yaml", text), document.parse_briefly("a.yaml", text)
        is_fine = all(d.start is not None and not d.diagnostics for d in full)
        assert (brief is not None) == is_fine, text
        if brief is not None:
            assert [(d.root, d.span, d.text, d.begin) for d in brief] == [
                (d.root, d.span, d.text, d.begin) for d in full
            ]
