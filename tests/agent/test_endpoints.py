# SPDX-License-Identifier: Apache-2.0
"""What the agent makes of what checks found, round by round, whatever the manifests are like meanwhile."""

import os
import time
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from reconciler.agent.checks import Found
from reconciler.agent.endpoints import Endpoints
from reconciler.agent.event import What
from reconciler.agent.wake import Wake
from reconciler.health.state import Health, State
from reconciler.kinds import KINDS
from reconciler.kinds.ring import Ring
from reconciler.model import LEAVING_METRIC
from reconciler.readings.announcements import announcements
from reconciler.reconcile import RECORD
from reconciler.wish import drains
from reconciler.wish.announcing import FILE, FIRST_HOLD_S, Leaving, read
from reconciler.wish.drains import Drain
from tests.agent.conftest import Node, edit

FIRST, SECOND = ip_address("10.2.0.1"), ip_address("10.2.0.2")
(RingKind,) = [kind for kind in KINDS if kind.resource is Ring]
CHECK = "metadata: {name: web}\nspec:\n  healthCheck: {type: tcp}\n"


class Checks:
    """In the place of the process that checks: what it was told to check, and what it found."""

    def __init__(self):
        self.targets = {}
        self.found = None

    def want(self, wish):
        edits = wish.take_edits()
        self.targets |= {use: target for use, target in edits.targets.items() if target}
        for use in [use for use, target in edits.targets.items() if target is None]:
            del self.targets[use]

    def take(self):
        found, self.found = self.found, None
        return found


class Site:
    def __init__(self, directory, instance_dir):
        edit(directory / "pools.yaml", "metadata: {name: web}\nspec:\n", CHECK)
        self.node = Node(directory, instance_dir)
        self.checks = Checks()
        self.directory = instance_dir
        self.endpoints = Endpoints(instance_dir, self.node.agent.report, lambda: self.node.now, lambda: None)
        self.endpoints._checks = self.checks
        self.endpoints.wish._clock = lambda: self.node.now
        self.node.agent.endpoints = self.endpoints
        self.node.start()

    def find(self, address, health, **more):
        """A check finds something, and the agent wakes for it. What it says."""
        (digest,) = {target.digest for use, target in self.checks.targets.items() if use.address == address}
        self.node.now += 1
        self.checks.found = Found({digest: State(health, self.node.now, **more)})
        return self.wake()

    def wake(self):
        self.node.agent.round(Wake.KEYS)
        return self.node.told()

    def members(self):
        rings = [ring for ring in RingKind(self.node.kernel).read({}).resources if isinstance(ring, Ring)]
        return {member for ring in rings if ring.name.startswith("web/") for member in ring.members}

    def checked(self):
        return {use.address for use in self.checks.targets}


@pytest.fixture
def site(manifests, tmp_path):
    return Site(manifests, tmp_path / "run")


BOTH = {"10.2.0.1:8080", "10.2.0.2:8080"}


def test_an_endpoint_that_is_down_leaves_the_ring_and_comes_back(site):
    told = site.find(FIRST, Health.DOWN, error="refused")
    assert "endpoint 10.2.0.1:8080 of pool web is down: tcp check: refused\n" in told
    assert "~ ring web/round-robin" in told
    assert "because: 10.2.0.1:8080 is down: tcp check: refused" in told
    assert site.members() == {"10.2.0.2:8080"}
    told = site.find(FIRST, Health.UP, has_returned=True)
    assert "because: 10.2.0.1:8080 is up again" in told
    assert site.members() == BOTH


def test_events_name_endpoint_pool_state_and_check_for_machines(site):
    told = []
    site.node.agent.report._listeners = [told.append]
    site.find(FIRST, Health.DOWN, error="refused")
    site.find(SECOND, Health.DOWN, error="timed out")
    site.find(FIRST, Health.UP, has_returned=True)
    site.checks.found = Found(drains=(Drain(FIRST, 8080, "web", by="ann", reason="disk"),))
    site.wake()
    facts = [{key: event.to_json().get(key) for key in ("about", "pool", "state", "cause")} for event in told
             if event.what in (What.NOTE, What.ALARM)]  # fmt: skip
    first, second, pool = "endpoint 10.2.0.1:8080", "endpoint 10.2.0.2:8080", "pool web"
    assert [tuple(each.values()) for each in facts] == [
        (first, "web", "down", "tcp check: refused"), (second, "web", "down", "tcp check: timed out"),
        (pool, None, None, None), (first, "web", "up", None), (pool, None, None, None),
        (first, "web", None, "disk"), (pool, None, None, None),
    ]  # fmt: skip


def test_an_edit_after_somebody_came_back_is_an_edit(site, manifests):
    site.find(FIRST, Health.DOWN, error="refused")
    site.find(FIRST, Health.UP, has_returned=True)
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    told = site.node.files_moved()
    assert "~ ring web/round-robin" in told
    assert "health" not in told and "because" not in told


def test_an_edit_of_weights_while_another_endpoint_is_down_or_drained_is_an_edit(site, manifests):
    more = "    - {address: 10.2.0.9}\n    - {address: 10.2.0.8}\n"
    edit(manifests / "pools.yaml", "port: 8080}\n---", f"port: 8080}}\n{more}---")
    site.node.files_moved()
    (down,) = {use.address for use in site.checks.targets if str(use.address) == "10.2.0.9"}
    assert "is down" in site.find(down, Health.DOWN, error="refused")
    site.checks.found = Found(drains=(Drain(ip_address("10.2.0.8"), began_s=time.time(), reason="disk"),))
    assert "is drained: disk" in site.wake()
    assert site.members() == BOTH
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    told = site.node.files_moved()
    assert "~ ring web/round-robin" in told
    assert "because" not in told


def test_who_came_back_before_others_changed_a_node_that_was_left_alone_is_no_cause(site, manifests):
    site.node.agent.held = lambda: "paused"
    site.find(FIRST, Health.DOWN, error="refused")
    site.find(FIRST, Health.UP, has_returned=True)
    changed_s = site.node.now + 1 + time.time() - time.monotonic()
    os.utime(site.directory / RECORD, (changed_s, changed_s))
    edit(manifests / "pools.yaml", "weight: 2", "weight: 3")
    site.node.agent.held = lambda: ""
    told = site.node.files_moved()
    assert "~ ring web/round-robin" in told
    assert "because" not in told


def test_open_connections_of_a_dead_endpoint_end_if_the_pool_says_so(site, manifests):
    edit(manifests / "pools.yaml", "{type: tcp}", "{type: tcp}\n  onUnhealthy: reset")
    site.node.files_rested()
    told = site.find(FIRST, Health.DOWN, error="refused")
    assert "~ endpoint 10.2.0.1:8080" in told
    assert "usable -> disabled" in told
    assert told.count("because: 10.2.0.1:8080 is down: tcp check: refused") == 2  # of the ring, and of the row
    told = site.find(FIRST, Health.UP, has_returned=True)
    assert "disabled -> usable" in told
    assert told.count("because: 10.2.0.1:8080 is up again") == 2


def test_nobody_healthy_is_said_loudly_once_and_changes_what_was_left(site):
    site.find(FIRST, Health.DOWN)
    told = site.find(SECOND, Health.DOWN)
    assert "AllUnhealthy: pool web, 0 healthy; nobody is healthy: all serve" in told
    assert site.members() == BOTH
    assert "AllUnhealthy" not in site.wake()
    assert "pool web has enough healthy endpoints again" in site.find(FIRST, Health.UP, has_returned=True)
    assert site.members() == {"10.2.0.1:8080"}


def test_a_node_that_suspects_itself_says_so_once_and_when_it_is_over(site):
    until_s = site.node.now + 4.0
    site.checks.found = Found(suspect_until_s=until_s, suspect_why="back has no carrier")
    assert "CheckerSuspect: nearly all endpoints fell silent at once" in (told := site.wake())
    assert "(back has no carrier); none goes down for 4.0 s" in told
    site.checks.found = Found(suspect_until_s=until_s + 1)
    assert "Suspect" not in site.wake()
    site.checks.found = Found(suspect_until_s=0.0)
    assert "This node does not suspect itself any more." in site.wake()
    assert site.members() == BOTH


def test_a_drain_is_told_heeded_and_over(site):
    site.checks.found = Found(drains=(Drain(FIRST, pool="web", by="ann", reason="disk"),))
    told = site.wake()
    assert "DrainStarted: 10.2.0.1 of pool web by ann: disk" in told
    assert "because: 10.2.0.1:8080 is drained by ann: disk" in told
    assert site.members() == {"10.2.0.2:8080"}
    site.checks.found = Found(drains=())
    assert "DrainEnded: 10.2.0.1 of pool web by ann: disk" in site.wake()
    assert site.members() == BOTH


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("services.yaml", "algorithm: round-robin", "idleTimeout: 5h", "is not supported"),
        ("pools.yaml", "endpoints:", "endpionts:", "unknown key"),
        ("services.yaml", "ports: [25]", "ports: [25]\n  idleTimeout: 5h", "is not supported"),
    ],
    ids=["not supported here", "broken", "not supported elsewhere"],
)  # fmt: skip
def test_manifests_that_can_not_be_made_make_nobody_forget_who_is_dead(site, manifests, name, old, new, said):
    site.find(FIRST, Health.DOWN)
    edit(manifests / "pools.yaml", "{type: tcp}", "{type: tcp, fall: 7}")
    edit(manifests / name, old, new)
    assert said in site.node.files_rested()
    assert site.members() == {"10.2.0.2:8080"}
    assert site.checked() == {FIRST, SECOND}
    site.find(SECOND, Health.DOWN)  # the very next answer counts
    assert site.members() == BOTH  # as nobody is healthy
    site.find(SECOND, Health.UP, has_returned=True)
    assert site.members() == {"10.2.0.2:8080"}


def test_manifests_that_ask_for_nothing_are_refused_and_what_is_enforced_is_still_checked(site, manifests):
    site.find(FIRST, Health.DOWN)
    services = (manifests / "services.yaml").read_text()
    pools = (manifests / "pools.yaml").read_text()
    (manifests / "services.yaml").unlink()
    (manifests / "pools.yaml").unlink()
    assert "say --allow-empty" in site.node.files_rested()
    assert site.checked() == {FIRST, SECOND}
    assert site.members() == {"10.2.0.2:8080"}
    site.find(SECOND, Health.UP)
    site.find(FIRST, Health.UP, has_returned=True)
    assert site.members() == BOTH
    site.find(SECOND, Health.DOWN)
    assert site.members() == {"10.2.0.1:8080"}
    (manifests / "services.yaml").write_text(services)
    (manifests / "pools.yaml").write_text(pools)
    site.node.files_rested()
    assert site.members() == {"10.2.0.1:8080"}


def test_an_edit_of_the_check_writes_no_ring(site, manifests):
    site.find(FIRST, Health.DOWN)
    edit(manifests / "pools.yaml", "{type: tcp}", "{type: tcp, fall: 7, timeout: 500ms}")
    assert "ring" not in site.node.files_rested()
    assert {target.check.fall for target in site.checks.targets.values()} == {7}
    assert site.members() == {"10.2.0.2:8080"}


@pytest.fixture
def announcing(manifests, tmp_path):
    edit(manifests / "node.yaml", "  role: balancer\n", "  role: balancer\n  announce: {grace: 10s}\n")
    edit(manifests / "node.yaml", "{name: front}", "{name: front, gateway: 10.1.0.254}")
    web = "metadata: {name: web}\nspec:\n"
    edit(manifests / "pools.yaml", web, f"{web}  announceMin: 2\n")
    site = Site(manifests, tmp_path / "run")
    assert told_of(site) == {"20.20.20.1", "20.20.20.2"}
    return site


def told_of(site):
    return {route.to.partition("/")[0] for route in site.node.kernel.announcements}


def test_a_vip_with_too_few_healthy_endpoints_is_withdrawn_and_named(announcing):
    told = announcing.find(FIRST, Health.DOWN, error="refused")
    assert "VIPs are withdrawn: pool web: 1 of 2 endpoints are healthy, announceMin is 2\n" in told
    assert "because: pool web: 1 of 2 endpoints are healthy" in told
    assert told_of(announcing) == {"20.20.20.2"}
    (found,) = [row for row in announcements(announcing.node.kernel, announcing.directory) if row.why]
    assert (found.vip, found.state, found.metric) == ("20.20.20.1", "withdrawn", None)
    announcing.find(FIRST, Health.UP, has_returned=True)
    announcing.find(SECOND, Health.UP)
    assert told_of(announcing) == {"20.20.20.2"}  # it has to hold for a while
    assert announcing.node.agent.next_look_s() <= FIRST_HOLD_S
    announcing.node.now += FIRST_HOLD_S
    assert "VIPs are announced as usual again." in announcing.wake()
    assert told_of(announcing) == {"20.20.20.1", "20.20.20.2"}


def test_a_withdrawal_waits_for_no_disk_and_is_written_down_all_the_same(announcing, monkeypatch):
    order = []
    announcing.node.kernel.on_write = lambda: order.append(announcing.node.kernel.writes[-1][0])
    monkeypatch.setattr("reconciler.files.os.fsync", lambda _: order.append("disk"))
    announcing.find(FIRST, Health.DOWN)
    assert order[0] == "remove_route"
    assert order[-1] == "disk"
    assert "20.20.20.1" in read(announcing.directory / FILE).withheld


def test_a_balancer_that_is_drained_leaves_is_quiet_and_comes_back(announcing):
    announcing.checks.found = Found(leaving=Leaving("by ann", announcing.node.now))
    assert "VIPs are leaving: this balancer is drained by ann" in announcing.wake()
    assert {route.metric for route in announcing.node.kernel.announcements} == {LEAVING_METRIC}
    assert announcing.node.agent.next_look_s() <= 10
    announcing.node.now += 10
    announcing.wake()
    assert told_of(announcing) == set()
    assert announcing.members() == BOTH  # what comes nevertheless is served
    announcing.checks.found = Found(leaving=None)
    announcing.wake()
    assert told_of(announcing) == {"20.20.20.1", "20.20.20.2"}


def test_with_a_gateway_that_does_not_answer_nothing_is_announced(announcing):
    announcing.node.kernel.mute.add("10.1.0.254")
    assert "VIPs are withdrawn: the gateway 10.1.0.254 does not answer" in announcing.wake()
    assert told_of(announcing) == set()
    announcing.node.kernel.mute.clear()
    announcing.wake()
    announcing.node.now += FIRST_HOLD_S
    announcing.wake()
    assert told_of(announcing) == {"20.20.20.1", "20.20.20.2"}


def test_a_damaged_file_of_drains_is_told_and_nobody_who_was_drained_comes_back(site):
    path = site.directory / drains.FILE
    drains.write(path, (Drain(FIRST),))
    path.write_bytes(b"[")
    again = Endpoints(site.directory, site.node.agent.report, lambda: site.node.now, lambda: None)
    assert again.wish.drains == (Drain(FIRST),)
    again._checks = SimpleNamespace(start=lambda: None)
    again.start()
    assert "drains.json is damaged; its copy counts" in site.node.told()
