# SPDX-License-Identifier: Apache-2.0
"""Reading some keys is the reading of everything, restricted to them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.kernel.fake import FakeKernel
from reconciler.live import read_live
from reconciler.plan import plan
from reconciler.resource import Live
from reconciler.view import view
from tests.strategies import fake_source, fleets
from tests.test_apply_properties import damage_rows


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def restricted(live, keys):
    return Live(*({k: v for k, v in part.items() if k in keys} for part in (live.resources, live.foreign)),
                impossible={k: why for k, why in live.impossible.items() if k in keys})  # fmt: skip


@given(fleets(), fleets(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_reading_some_keys_says_what_reading_everything_says_about_them(start, goal, seed):
    chance = random.Random(seed)
    kernel = FakeKernel()
    held, desired = (compile_node(view(fleet, None, "host")) for fleet in (start, goal))
    apply(plan(held, read_live(kernel, held.resources)), kernel).raise_if_failed()
    for rows in kernel.maps.values():
        for key in [k for k in rows if chance.random() < 0.1]:
            del rows[key]
    if chance.random() < 0.5:
        damage_rows(kernel, chance)
    kernel.interfaces = kernel.interfaces[: chance.randrange(3)]
    kernel.foreign_vips = {key.id: "address on eth9" for key in desired.resources if key.kind == "loopback"}
    whole = read_live(kernel, desired.resources)
    keys = {key for key in {**desired.resources, **held.resources} if chance.random() < 0.3}
    assert read_live(kernel, desired.resources, only=keys) == restricted(whole, keys)


def test_kinds_that_are_not_asked_about_are_not_read(monkeypatch):
    kernel = FakeKernel()
    monkeypatch.setattr(kernel, "dump", None)
    assert read_live(kernel, only=()) == Live()
