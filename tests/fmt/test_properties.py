# SPDX-License-Identifier: Apache-2.0
"""Whatever is written: the form is stable, means the same, and holds every comment."""

import json

from hypothesis import assume, given, settings

from reconciler.config.document import parse
from reconciler.config.fmt import canonical
from reconciler.config.source import SourceFile
from tests.config.test_document import yaml_like
from tests.fmt.written import written


def data(text):
    """The documents of a text; as JSON, where 1 and true differ."""
    return json.dumps([document.root for document in parse("f.yaml", text)], sort_keys=True)


def form_of(text):
    form, problems = canonical(SourceFile("f.yaml", text))
    assert problems == []
    return form


@settings(deadline=None, max_examples=150, derandomize=True)
@given(written())
def test_form_is_stable_means_the_same_and_keeps_every_comment(sample):
    text, documents, comments = sample
    assert data(text) == json.dumps(documents, sort_keys=True)
    form = form_of(text)
    assert data(form) == data(text)
    assert form_of(form) == form
    lines = form.split("\n")
    for comment in comments:  # each has a number of its own
        assert sum(line.strip() == comment or line.endswith(f"  {comment}") for line in lines) == 1
    assert [line for line in lines if line.endswith(" ")] == []


@settings(deadline=None, max_examples=300, derandomize=True)
@given(yaml_like)
def test_any_text_that_can_be_read_has_a_stable_form_of_the_same_meaning(text):
    assume(not any(document.diagnostics for document in parse("f.yaml", text)))
    form, problems = canonical(SourceFile("f.yaml", text))
    if not problems:  # with other line breaks, some texts are no YAML
        assert data(form) == data(text)
        assert form_of(form) == form
