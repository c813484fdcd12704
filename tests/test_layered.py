# SPDX-License-Identifier: Apache-2.0
"""Large dictionaries that change little are, to whoever looks at them, dictionaries."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.layered import Layered, folded
from reconciler.versions import Version

keys = st.integers(0, 5)
contents = st.dictionaries(keys, st.integers())
changes = st.lists(st.tuples(keys, st.none() | st.integers()), max_size=6)


def change(mapping, edits):
    for key, value in edits:
        if value is None:
            mapping.pop(key, None)
        else:
            mapping[key] = value
    return mapping


def assert_is(mapping, content):
    assert dict(mapping) == dict(mapping.items()) == content
    assert len(mapping) == len(content)
    assert [mapping.get(key, "none") for key in range(6)] == [content.get(key, "none") for key in range(6)]
    assert [key in mapping for key in range(6)] == [key in content for key in range(6)]


@given(contents, changes, changes)
def test_a_layer_shows_its_changes_and_the_mapping_below_has_none_until_they_are_folded_in(content, lower, upper):
    base = dict(content)
    below = change(Layered(base), lower)
    above = change(Layered(below), upper)
    assert base == content
    assert_is(below, change(dict(content), lower))
    wanted = change(change(dict(content), lower), upper)
    assert_is(above, wanted)
    assert folded(above) is base
    assert base == wanted


@given(contents, st.lists(st.tuples(st.integers(0, 9), changes), max_size=8))
def test_no_version_changes_when_another_one_is_made_of_it(content, edits):
    versions = [(Version(dict(content)), content)]
    for at, edit in edits:
        version, known = versions[at % len(versions)]
        made = version.with_changes(change(Layered(version), edit))
        versions.append((made, change(dict(known), edit)))
        for mapping, wanted in versions:
            assert_is(mapping, wanted)
