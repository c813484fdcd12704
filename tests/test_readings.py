# SPDX-License-Identifier: Apache-2.0
"""What `lbctl get` reads and renders, and the work that it takes: counted, since those who may only ask have the agent
do it."""

import copy
import json
import sys
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from reconciler import ports
from reconciler.dataplane.layout import ENDPOINTS, RING_NAMES, SERVICE_MAPS, Verdict
from reconciler.dataplane.rows import RingName
from reconciler.health import roster
from reconciler.health.target import Target, Use
from reconciler.kinds.held_ring import HeldRing
from reconciler.model import CheckType, Endpoint, HealthCheck, Pool
from reconciler.readings import health
from reconciler.readings.announcements import Announced
from reconciler.readings.flows import Flow
from reconciler.readings.health import Checker, Drained, EndpointHealth
from reconciler.readings.rows import ROWS, Node, document
from reconciler.readings.transitions import Transition
from reconciler.render.table import as_json
from tests.agent.conftest import Node as AgentsNode
from tests.agent.conftest import fixed_source, manifests

USE, TARGET = Use("web", ip_address("10.2.0.1"), 80), Target(ip_address("10.2.0.1"), 80, HealthCheck(CheckType.TCP))
__all__ = ["fixed_source", "manifests"]

SCHEMA = json.loads((Path(__file__).parents[1] / "schema" / "output" / "get.v1.json").read_text())


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


def test_endpoints_tell_what_they_are_to_get_and_what_they_get(node):
    """Pools and services of one that gets nothing, too, as far as somebody has written them down."""

    def shown():
        rows = {row["endpoint"]: row for row in ROWS["endpoints"](node)}
        return {id: (row["state"], row["pools"], row["services"]) for id, row in rows.items()}

    web, mail = [{"pool": "web", "weight": None}], [{"pool": "mail", "weight": None}]
    users = {"web": ["20.20.20.1:80/tcp"], "mail": ["20.20.20.2:25/tcp"]}
    assert shown() == {
        "10.2.0.1:8080": ("usable", web, users["web"]), "10.2.0.2:8080": ("usable", web, users["web"]),
        "10.2.0.3:2525": ("usable", mail, users["mail"]),
    }  # fmt: skip
    first, second, third = (
        Endpoint(ip_address(f"10.2.0.{number}"), port, weight) for number, port, weight in (
            (1, 8080, 2), (2, 8080, 1), (3, 2525, 3)
        )
    )  # fmt: skip
    check = HealthCheck(CheckType.TCP)
    pools = Pool("web", (first, second, replace(third, weight=7)), check), Pool("mail", (third,), check)
    lines = {pool.name: (pool, (), tuple(((USE, TARGET),) for _ in pool.endpoints)) for pool in pools}
    roster.Roster(node.directory / roster.FILE).write(lines, lines)
    ring = RING_NAMES.key.pack(RingName(b"mail/source-hash".ljust(RING_NAMES.key_size, b"\0")))
    assert node.kernel().delete(RING_NAMES.name, [ring]) == [None]  # as if nobody of the pool were to get anything
    assert shown()["10.2.0.1:8080"] == ("usable", [{"pool": "web", "weight": 2}], users["web"])
    state, known, services = shown()["10.2.0.3:2525"]
    assert (state, known) == ("draining", [{"pool": "mail", "weight": 3}, {"pool": "web", "weight": 7}])
    assert services == users["web"]


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


FOUND = {
    "flows.flows": lambda kernel: SimpleNamespace(in_order=lambda: [Flow("c", "s", "e", "open", 9)]),
    "transitions.transitions": lambda kernel: [Transition("web/maglev", 1, 4, ("10.2.0.1:80",), 5, 6, 7)],
    "counters.verdicts": lambda kernel: {Verdict.REQUEST: 3},
    "announcements.announcements": lambda kernel, directory: [
        Announced("20.20.20.1", "announced", 20, 251, ""), Announced("20.20.20.2", "withdrawn", None, None, "why"),
    ],
    "health.health": lambda directory: [
        EndpointHealth("e", "p", "down", 1, 2, 0.5, "refused", 1.5, "tcp", 1.0, 0, 1, None, ("s",), 3.5),
        EndpointHealth("e", "p", "never checked", None, 0, None, "", None, "tcp", None, 0, 0, "20.20.20.1", ()),
    ],
    "health.history": lambda directory: [health.Transition(1, "e", "p", "up", "")],
    "health.drained": lambda directory: [
        Drained("e", "all", 1, None, None, "root", ""), Drained("e", "web", 1, 2, 3, "root", "why"),
    ],
    "health.checker": lambda directory: [Checker("1", 1, 0, 0.5, 1, None), Checker("1", 1, 0, 0.5, 1, 2.5)],
}  # fmt: skip
"""What a node may tell, by who reads it."""


@pytest.mark.parametrize("what", ROWS)
def test_rows_are_as_the_schema_says_with_every_field_filled(node, what, monkeypatch):
    for name, read in FOUND.items():
        module, _, function = name.partition(".")
        monkeypatch.setattr(f"reconciler.readings.{module}.{function}", read)
    pool = ports.Pool("10.2.0.1", "10.2.0.11:80", "tcp", 1, 2, 3, 4, 5, 4)
    monkeypatch.setattr("reconciler.ports.pools", lambda kernel: [pool])
    told = json.loads(as_json(document(what, ROWS[what](node))))
    assert told["items"]
    jsonschema.Draft202012Validator(SCHEMA).validate(told)
