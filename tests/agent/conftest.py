# SPDX-License-Identifier: Apache-2.0
"""A node in memory, a directory of manifests, and a clock that stands still unless it is moved."""

import io
import re
from datetime import UTC, datetime

import pytest

from reconciler.agent.loop import Agent, Manifests
from reconciler.agent.report import Report
from reconciler.agent.wake import Wake
from reconciler.config.load import load
from reconciler.config.rest import SECOND_LOOK_S
from reconciler.kernel.faulty import FaultyKernel
from reconciler.render.style import Style
from tests.strategies import fake_source

RESYNC_S = 30.0

NODE = """\
apiVersion: lbctl/v1
kind: Node
metadata: {name: lb1}
spec:
  role: balancer
  interfaces: [{name: front}, {name: back}]
"""
SERVICES = """\
apiVersion: lbctl/v1
kind: Service
metadata: {name: web}
spec:
  vip: 20.20.20.1
  protocol: tcp
  ports: [80]
  mode: nat
  algorithm: round-robin
  pool: web
---
apiVersion: lbctl/v1
kind: Service
metadata: {name: mail}
spec:
  vip: 20.20.20.2
  protocol: tcp
  ports: [25]
  mode: nat
  algorithm: source-hash
  pool: mail
"""
POOLS = """\
apiVersion: lbctl/v1
kind: Pool
metadata: {name: web}
spec:
  endpoints:
    - {address: 10.2.0.1, port: 8080, weight: 2}
    - {address: 10.2.0.2, port: 8080}
---
apiVersion: lbctl/v1
kind: Pool
metadata: {name: mail}
spec:
  endpoints:
    - {address: 10.2.0.3, port: 2525}
"""


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def manifests(tmp_path):
    """A directory with two services in three files."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    for name, text in (("node", NODE), ("services", SERVICES), ("pools", POOLS)):
        (directory / f"{name}.yaml").write_text(text)
    return directory


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class Node:
    """An agent whose rounds are called one by one."""

    def __init__(self, directory, instance_dir, *, allow_empty=False):
        self.directory = directory
        self.kernel = FaultyKernel()
        self.now = 1000.0
        self.ready = 0
        self.watched = 0
        self.waits = []
        self.wakes = iter(())
        self._out = io.StringIO()
        self.agent = Agent(
            manifests=Manifests(self._watch, lambda afresh: load(self.directory)),
            kernel=self.kernel,
            instance_dir=instance_dir,
            node=None,
            allow_empty=allow_empty,
            resync_s=RESYNC_S,
            clock=lambda: self.now,
            wait=self._wait,
            report=Report(self._out, Style(), lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
            ready=self._ready,
        )

    def _watch(self, afresh):
        self.watched += 1

    def _ready(self):
        self.ready += 1

    def _wait(self, timeout_s):
        self.waits.append(timeout_s)
        self.now += timeout_s
        return next(self.wakes, Wake.STOP)

    def start(self):
        """The first round; what it says and writes is forgotten."""
        self.agent.round(Wake.TIME)
        assert "Applied" in self.told()
        self.kernel.writes.clear()

    def share(self, kernel):
        """Look after another node's kernel from now on."""
        self.kernel = self.agent.kernel = self.agent.upkeep.kernel = kernel

    def files_moved(self):
        """A settled change of files, a moment after what was before."""
        self.now += 1.0
        self.agent.round(Wake.FILES)
        return self.told()

    def files_rested(self):
        """A settled change of files, after which they are at rest."""
        told = self.files_moved()
        self.now += SECOND_LOOK_S
        self.agent.round(Wake.TIME)
        return told + self.told()

    def tick(self):
        """The next time at which the agent wants to look by itself."""
        self.now = self.agent.due
        self.agent.round(Wake.TIME)
        return self.told()

    def told(self):
        """What was said since this was last called, without the times."""
        text = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return re.sub(r"(?m)^2026-01-02T03:04:05\+00:00 ", "", text)

    def wrote(self):
        """What was written since this was last called: the methods of the kernel."""
        methods = [method for method, _ in self.kernel.writes]
        self.kernel.writes.clear()
        return methods


@pytest.fixture
def node(manifests, tmp_path):
    return Node(manifests, tmp_path / "run")
