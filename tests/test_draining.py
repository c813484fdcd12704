# SPDX-License-Identifier: Apache-2.0
"""What `drain --wait` waits for: that nothing is open any more, of any service; and that somebody takes it out."""

from __future__ import annotations

from argparse import Namespace
from ipaddress import ip_address

import pytest

from reconciler.cli import drain as verb
from reconciler.errors import LbctlError
from reconciler.health import roster, store
from reconciler.health.state import Health, State
from reconciler.health.target import Target, Use
from reconciler.model import CheckType, Endpoint, HealthCheck, Pool
from reconciler.readings.draining import Left, Place, check_room, left, pools_with
from reconciler.wish import drains
from reconciler.wish.drains import Drain
from tests.agent.conftest import Node, edit, fixed_source

__all__ = ["fixed_source"]

BOTH, COUNTED, UNCOUNTED = (ip_address(f"10.2.0.{number}") for number in (11, 12, 13))
MANIFESTS = """\
apiVersion: lbctl/v1
kind: Node
metadata: {name: lb1}
spec:
  interfaces: [{name: front, addresses: [10.1.0.1/24]}, {name: back, addresses: [10.2.0.1/24]}]
---
apiVersion: lbctl/v1
kind: Service
metadata: {name: web}
spec: {vip: 20.20.20.1, ports: [80], pool: web}
---
apiVersion: lbctl/v1
kind: Service
metadata: {name: mail}
spec: {vip: 20.20.20.2, ports: [25], mode: dsr-l2, pool: mail}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec: {endpoints: [{address: 10.2.0.11}, {address: 10.2.0.12}]}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {name: mail}
spec: {endpoints: [{address: 10.2.0.11}, {address: 10.2.0.13}]}
"""


@pytest.fixture
def node(tmp_path):
    """A node with a service whose connections are counted, and one of direct server return."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "all.yaml").write_text(MANIFESTS)
    node = Node(directory, tmp_path / "run" / "lba")
    node.start()
    return node


@pytest.mark.parametrize(
    ("place", "pools", "found"),
    [
        (Place(COUNTED, None, None), {"web"}, Left(0, 0, is_counted=True)),
        (Place(UNCOUNTED, None, None), {"mail"}, Left(None, 0, is_counted=False)),
        (Place(BOTH, None, None), {"web", "mail"}, Left(0, 0, is_counted=False)),
        (Place(BOTH, None, "web"), {"web"}, Left(0, 0, is_counted=True)),
        (Place(BOTH, None, "mail"), {"mail"}, Left(None, 0, is_counted=False)),
    ],
)  # fmt: skip
def test_that_nothing_is_open_is_known_only_where_all_is_counted(node, tmp_path, place, pools, found):
    assert pools_with(node.kernel, tmp_path / "run" / "lba", [place]) == pools
    assert left(node.kernel, [place], pools) == found


def test_where_it_is_not_known_whose_connections_there_are_all_services_of_the_node_count(node, tmp_path):
    directory = tmp_path / "run" / "lba"
    place = Place(UNCOUNTED, None, None)
    drains.change(directory / drains.FILE, lambda _: (Drain(UNCOUNTED, None, None),))
    assert pools_with(node.kernel, directory, [place]) is None
    assert left(node.kernel, [place], None) == Left(0, 0, is_counted=False)


def test_a_pool_that_has_an_endpoint_down_counts_as_well(node, tmp_path):
    """It is in no ring, and in the list of those that are checked."""
    directory = tmp_path / "run" / "lba"
    check = HealthCheck(CheckType.TCP)
    use, target = Use("mail", COUNTED, 25), Target(COUNTED, 25, check)
    lines = {"mail": (Pool("mail", (Endpoint(COUNTED),), check), ("mail",), (((use, target),),))}
    roster.Roster(directory / roster.FILE).write(lines, lines)
    assert pools_with(node.kernel, directory, [Place(COUNTED, None, None)]) == {"web", "mail"}


def test_the_last_one_that_is_well_is_not_drained_though_dead_ones_get_connections_too(node, tmp_path):
    directory = tmp_path / "run" / "lba"
    check, endpoints = HealthCheck(CheckType.TCP), (BOTH, COUNTED)
    targets = {address: Target(address, 80, check) for address in endpoints}
    of_pool = tuple(((Use("web", address, 80), target),) for address, target in targets.items())
    lines = {"web": (Pool("web", tuple(map(Endpoint, endpoints)), check, min_healthy=2), ("web",), of_pool)}
    roster.Roster(directory / roster.FILE).write(lines, lines)
    now_s = store.clocks().now_s
    states = {COUNTED: State(Health.UP, now_s), BOTH: State(Health.DOWN, now_s, error="refused")}
    store.Store(directory / store.FILE, [(targets[a].digest, state) for a, state in states.items()]).close()
    with pytest.raises(LbctlError, match="pool web would be left with 0 of 1 endpoints, and needs 2"):
        check_room(node.kernel, directory, [Place(COUNTED, None, None)])
    check_room(node.kernel, directory, [Place(BOTH, None, "web")])
    (directory / store.FILE).unlink()  # where nothing is known, all count
    with pytest.raises(LbctlError, match="left with 1 of 2 endpoints, and needs 2"):
        check_room(node.kernel, directory, [Place(COUNTED, None, None)])


def test_nobody_waits_where_no_agent_takes_it_out(node, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "run" / "lba"
    monkeypatch.setattr(verb, "open_kernel", lambda _: node.kernel)
    monkeypatch.setattr(verb, "instance_dir", lambda _: directory)
    args = Namespace(
        what=f"web/{COUNTED}", balancer=False, force=False, for_s=None, deadline_s=None, reason="", wait=True
    )
    with pytest.raises(LbctlError, match="no agent runs here"):
        verb.run(args)
    args.wait = False
    assert verb.run(args) == 0
    edit(node.directory / "all.yaml", f"{{address: {COUNTED}}}", f"{{address: {COUNTED}, weight: 0}}")
    node.files_moved()  # as `lbctl apply` would take it out
    args.wait = True
    assert verb.run(args) == 0
    assert "drained after 0 s" in capsys.readouterr().out
