# SPDX-License-Identifier: Apache-2.0
"""What becomes of files: `cases/NAME.before.yaml` is written as `NAME.after.yaml`.

After a change of the form: LBCTL_WRITE_EXPECTED=1 pytest tests/fmt/test_cases.py, and read the diff.
"""

import os
from pathlib import Path

import pytest

from reconciler.config.fmt import canonical
from reconciler.config.source import SourceFile

CASES = Path(__file__).parent / "cases"
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("before", sorted(CASES.glob("*.before.yaml")), ids=lambda path: path.name.split(".")[0])
def test_form_is_as_expected(before):
    form, problems = canonical(SourceFile(before.name, before.read_text()))
    expected = before.with_name(before.name.replace("before", "after"))
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        expected.write_text(form)
    assert problems == []
    assert form == expected.read_text()
    assert canonical(SourceFile("", form)) == (form, [])


def test_examples_are_in_their_form():
    for path in sorted((CHECKOUT / "examples").rglob("*.yaml")):
        if "environments" not in path.parts:
            assert canonical(SourceFile(path.name, path.read_text()))[0] == path.read_text(), path


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", ""),
        ("\n\n", ""),
        ("---\n", ""),
        ("# only\n", "# only\n"),
        ("a: 1", "a: 1\n"),
        ("a: 1\r\n# b\r\nc: 2\r\n", "a: 1\n# b\nc: 2\n"),
        ("a: # b\n", "a:  # b\n"),
        ("- a\n- - b\n  - c\n", "- a\n- - b\n  - c\n"),
        ("{a: , b}\n", "{a: null, b: null}\n"),
        ("text\n", "text\n"),
    ],
)
def test_odd_files_have_a_form(text, form):
    assert canonical(SourceFile("", text)) == (form, [])


def test_file_that_is_no_yaml_stays_as_it_is():
    text = "a:   [1\r\nb: 2\n"
    form, problems = canonical(SourceFile("f.yaml", text))
    assert form == text
    assert [(d.span.file, d.span.line) for d in problems] == [("f.yaml", 1)]


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: &x 1\nb: *x\n", "a: !!str 1\n"])
def test_what_is_not_part_of_the_language_is_not_written(text):
    form, problems = canonical(SourceFile("f.yaml", text))
    assert form == text
    assert problems
