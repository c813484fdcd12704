# SPDX-License-Identifier: Apache-2.0
"""A program's name says what it was built from, to whoever knows its features: nobody searches for them."""

import itertools
import re

import pytest

from reconciler.dataplane.program import DECAPSULATE, is_built_of, main_file, program_name, source

FEATURES = ("NAT", "DSR_L3", "UDP", "IPV6", "MAGLEV")
COMBINATIONS = [some for count in range(len(FEATURES) + 1) for some in itertools.combinations(FEATURES, count)]


def test_a_name_belongs_to_its_features_in_any_order_and_to_no_others():
    names = {program_name(features): features for features in COMBINATIONS}
    assert len(names) == len(COMBINATIONS)
    for name, features in names.items():
        assert is_built_of(name, features[::-1])
        assert not any(is_built_of(name, others) for others in COMBINATIONS if others != features)


def test_a_name_from_another_source_belongs_to_nothing():
    assert not any(is_built_of("lbctl_123456789", features) for features in COMBINATIONS)


def test_words_that_name_no_feature_are_refused():
    assert not is_built_of(program_name(("NAT",)), ("NAT", "no feature"))


def test_what_the_source_does_not_ask_for_makes_no_other_program():
    assert program_name(("NAT", "NO_SUCH_FEATURE")) == program_name(("NAT",))
    assert program_name(("NAT",)) != program_name(("NAT", "REJECT"))


@pytest.mark.parametrize("features", [(), (DECAPSULATE,)])
def test_the_source_asks_for_features_in_one_way_only(features):
    """What it asked for in another would be missing from the names of programs."""
    assert not re.search(r"^\s*#\s*(if|elif)", source(main=main_file(features)), re.MULTILINE)
