# SPDX-License-Identifier: Apache-2.0
"""A program's name says what it was built from."""

import itertools

from reconciler.dataplane.program import features_of, program_name

FEATURES = ("NAT", "DSR_L3", "UDP", "IPV6", "MAGLEV")


def test_a_name_gives_back_the_features():
    for count in range(len(FEATURES) + 1):
        for features in itertools.combinations(FEATURES, count):
            assert features_of(program_name(features)) == tuple(sorted(features))


def test_a_name_from_another_source_gives_nothing():
    assert features_of("lbctl_123456789") is None


def test_what_the_source_does_not_ask_for_makes_no_other_program():
    assert program_name(("NAT", "NO_SUCH_FEATURE")) == program_name(("NAT",))
    assert program_name(("NAT",)) != program_name(("NAT", "REJECT"))
