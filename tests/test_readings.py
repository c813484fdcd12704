# SPDX-License-Identifier: Apache-2.0
"""What `lbctl get` reads and renders, and the work that it takes: counted, since those who may only ask have the agent
do it."""

import copy
import json
import sys
from collections import Counter

import pytest

from reconciler.dataplane.layout import ENDPOINTS, SERVICE_MAPS
from reconciler.kinds.held_ring import HeldRing
from reconciler.readings.rows import ROWS, Node, document
from reconciler.render.table import as_json
from tests.agent.conftest import Node as AgentsNode
from tests.agent.conftest import fixed_source, manifests

__all__ = ["fixed_source", "manifests"]


@pytest.fixture
def node(manifests, tmp_path):
    """What rows are made of, of a node that holds two services."""
    node = AgentsNode(manifests, tmp_path / "run" / "lba")
    node.start()
    return Node(lambda: node.kernel, tmp_path / "run" / "lba")


class Counting:
    """A kernel that counts how often each map is read as a whole."""

    def __init__(self, kernel):
        self._kernel, self.read = kernel, Counter()

    def __getattr__(self, name):
        return getattr(self._kernel, name)

    def joined(self, map_name):
        self.read[map_name] += 1
        return self._kernel.joined(map_name)

    def dump(self, map_name):
        self.read[map_name] += 1
        return self._kernel.dump(map_name)


@pytest.mark.parametrize("what", ["services", "endpoints"])
def test_the_rows_of_services_are_read_once(node, what):
    kernel = Counting(node.kernel())
    assert ROWS[what](Node(lambda: kernel, node.directory))
    assert {kernel.read[spec.name] for spec in SERVICE_MAPS.values()} == {1}


def test_the_rows_of_endpoints_are_read_for_their_names_in_rings_and_for_themselves(node):
    kernel = Counting(node.kernel())
    assert len(ROWS["endpoints"](Node(lambda: kernel, node.directory))) == 3
    assert kernel.read[ENDPOINTS.name] == 2


def test_endpoints_of_services_are_counted_and_not_named(node, monkeypatch):
    expected = [2, 1]
    assert [row["endpoints"] for row in ROWS["services"](node)] == expected
    monkeypatch.setattr(HeldRing, "members", property(lambda _: pytest.fail("named")))
    assert [row["endpoints"] for row in ROWS["services"](node)] == expected


def test_numbers_are_copied_one_by_one_and_not_deeply(node, monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("copied deeply"))
    assert all(row["connections"] == 0 for what in ("services", "endpoints") for row in ROWS[what](node))


def calls_of_python(work):
    """How many functions in Python are called."""
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_json_is_indented_as_python_does_it_but_by_work_in_c(node):
    rows = ROWS["endpoints"](node)
    for items in ([], rows, [{"text": "→ \x1b[1m", "none": None, "share": 1e-7, "of": {}, "all": [[], [1]]}]):
        told = document("endpoints", items)
        assert as_json(told) == json.dumps(told, indent=2)
    as_json({})  # the first one imports
    few, many = document("endpoints", rows), document("endpoints", rows * 100)
    assert calls_of_python(lambda: as_json(few)) == calls_of_python(lambda: as_json(many))
