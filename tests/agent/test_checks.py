# SPDX-License-Identifier: Apache-2.0
"""The process that checks, with real servers on the loopback: what the agent hears of it, and what outlives it."""

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler import children
from reconciler.agent.checks import Checks
from reconciler.health import roster, store
from reconciler.health.state import Health
from reconciler.model import CheckType, Endpoint, HealthCheck, Interface, Node, Pool, Protocol, Service
from reconciler.view import NodeView
from reconciler.wish import drains
from reconciler.wish.drains import Drain
from reconciler.wish.known import known
from reconciler.wish.wish import Wish

PATIENCE_S = 60
HERE = ip_address("127.0.0.1")
CHECK = HealthCheck(CheckType.TCP, interval_s=0.4, timeout_s=0.3)


def view(*ports, check=CHECK):
    pool = Pool("web", tuple(Endpoint(HERE, port) for port in ports), check)
    service = Service("web", (ip_address("20.20.20.1"),), Protocol.TCP, (80,), "web")
    return NodeView(Node("lb1", (Interface("front"),)), (service,), {"web": pool})


class Site:
    """One server that listens, one port where nobody does."""

    def __init__(self, directory):
        self.directory = directory
        self.server = socket.create_server(("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", 0)) as other:
            self.closed = other.getsockname()[1]
        self.port = self.server.getsockname()[1]
        self.rung = threading.Event()
        self.wish = Wish(known(directory, "applied.json"))
        self.drains = self.troubles = ()
        self.start()

    def start(self):
        self.checks = Checks(self.directory, self.rung.set)
        self.checks.start()

    def want(self, asked):
        found = self.wish.of(asked)
        self.checks.want(self.wish)
        return found

    def hear(self, until):
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert self.rung.wait(deadline - time.monotonic())
            self.rung.clear()
            if found := self.checks.take():
                self.wish.learn(found.states)
                self.troubles += tuple(found.troubles)
                self.drains = self.drains if found.drains is None else found.drains

    def health(self):
        return {use.port: self.wish.states[target.digest].health for use, target in self.wish.targets.items()}


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "run")
    yield made
    made.checks.stop()
    made.server.close()


def test_what_it_finds_is_heard_and_written_down(site):
    site.want(view(site.port, site.closed))
    site.hear(lambda: site.health() == {site.port: Health.UP, site.closed: Health.DOWN})
    (listed,) = roster.read(site.directory / roster.FILE).values()
    found = store.read(site.directory / store.FILE).entries
    (_, digest), *_ = listed.endpoints[1].targets
    assert found[digest].state.error == "refused"
    again = Wish(known(site.directory, "applied.json"))
    assert [e.weight for e in again.of(view(site.port, site.closed)).pools["web"].endpoints] == [1, 0]


def test_it_is_started_again_if_it_is_killed_and_goes_on_where_it_was(site):
    site.want(view(site.port, site.closed))
    site.hear(lambda: Health.UNKNOWN not in site.health().values())
    before = dict(site.wish.states)
    path = site.directory / store.FILE
    former = store.read(path).progress.pid
    os.kill(former, signal.SIGKILL)
    site.hear(lambda: site.troubles)
    assert "was ended by signal 9" in site.troubles[0]
    site.server.close()
    site.hear(lambda: site.health()[site.port] is Health.DOWN)
    after = site.wish.states
    assert [state for digest, state in after.items() if state == before[digest]]  # the dead one is not born again
    assert store.read(path).progress.pid != former


def test_an_agent_that_is_gone_before_its_checks_began_forgets_nobody(site, monkeypatch):
    """It started with an edited check, and was killed before the process that checks had written anything."""
    site.want(view(site.port, site.closed))
    site.hear(lambda: Health.UNKNOWN not in site.health().values())
    site.checks.stop()
    edited = view(site.port, site.closed, check=replace(CHECK, fall=2))
    monkeypatch.setattr(children, "module", lambda *_: ["sleep", str(PATIENCE_S)])
    site.wish = Wish(known(site.directory, "applied.json"))
    site.start()
    site.want(edited)
    site.checks.stop()
    again = Wish(known(site.directory, "applied.json"))
    assert [e.weight for e in again.of(edited).pools["web"].endpoints] == [1, 0]


def test_it_ends_with_the_agent_and_edits_are_heard(site):
    site.want(view(site.port))
    site.hear(lambda: site.health() == {site.port: Health.UP})
    site.want(view(site.port, site.closed))
    site.hear(lambda: site.health().get(site.closed) is Health.DOWN)
    pid = store.read(site.directory / store.FILE).progress.pid
    site.checks.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    site.start()
    site.checks.stop()  # with nothing to check there is no process


def test_drains_of_others_are_heard(site):
    drains.write(site.directory / drains.FILE, [Drain(HERE, site.port, "web", by="ann")])
    site.hear(lambda: site.drains)
    assert site.drains[0].by == "ann"
