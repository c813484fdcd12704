# SPDX-License-Identifier: Apache-2.0
"""A round about what changed leaves the node, and says, just what a round about everything does."""

import copy
import io
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.agent import loop, upkeep
from reconciler.agent.loop import Agent, Manifests
from reconciler.agent.report import Report
from reconciler.agent.wake import Wake
from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.config.load import Loaded
from reconciler.kernel.faulty import FaultyKernel
from reconciler.kinds import KINDS
from reconciler.kinds.base import differing
from reconciler.live import read_live
from reconciler.plan import plan
from reconciler.render.style import Style
from reconciler.view import view
from tests.strategies import fleets
from tests.test_compile import mixed

STEPS = 40
RESYNC_S = 30.0


class Node:
    """An agent whose manifests are a fleet, and whose clock is moved by hand. `is_whole`: each round is about all."""

    def __init__(self, directory, *, is_whole=False):
        self.kernel, self.is_whole, self.now, self.fleet, self.number = FaultyKernel(), is_whole, 1000.0, None, 0
        self._out = io.StringIO()
        self.agent = Agent(
            manifests=Manifests(lambda afresh: None, lambda afresh: Loaded(self.fleet, (), {}, str(self.number))),
            kernel=self.kernel, instance_dir=directory, node=None, allow_empty=False, resync_s=RESYNC_S,
            clock=lambda: self.now, wait=None, ready=lambda: None,
            report=Report(self._out, Style(), lambda: datetime(2026, 1, 2, tzinfo=UTC)),
        )  # fmt: skip

    def ask(self, fleet):
        self.fleet, self.number = fleet, self.number + 1

    def round(self, wake, keys=(), fault_seed=None):
        chance = random.Random(fault_seed)
        self.kernel.fails = lambda: fault_seed is not None and chance.random() < 0.15
        if self.is_whole:
            self.agent.upkeep.forget()
        self.kernel.writes.clear()
        self.agent.round(wake, keys)
        self.kernel.fails = lambda: False
        text = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return text, list(self.kernel.writes), read_live(self.kernel)

    def tick(self, fault_seed=None):
        self.now = max(self.now, self.agent.due)
        return self.round(Wake.TIME, fault_seed=fault_seed)


def drift(kernel, chance):
    """What somebody else may do to rows, VIPs and settings; also take places that are ours, and leave them again."""
    for name, rows in sorted(kernel.maps.items()):
        for key in sorted(rows):
            if chance.random() < 0.05 and name != "endpoint_counters":
                del rows[key]
    for vip in sorted(kernel.vips):
        if chance.random() < 0.2:
            kernel.vips.remove(vip)
            if chance.random() < 0.5:
                kernel.foreign_vips[vip.address] = "address on eth9"
    for vip in sorted(kernel.foreign_vips):
        if chance.random() < 0.3:
            del kernel.foreign_vips[vip]
    if chance.random() < 0.2:
        kernel.interfaces = ("front", "back") if len(kernel.interfaces) < 2 else ("back",)


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    """Transitions end by the clock of the kernel; files are at rest at once, unless a test says otherwise."""
    monkeypatch.setattr("reconciler.dataplane.slots.now", lambda: 100_000)
    monkeypatch.setattr(upkeep, "settle", lambda *_: 0)
    monkeypatch.setattr(upkeep, "settling", lambda *_: ())
    monkeypatch.setattr("reconciler.reconcile.settle", lambda *_: 0)
    monkeypatch.setattr(loop, "SECOND_LOOK_S", 0.0)


@given(st.lists(fleets(), min_size=2, max_size=4), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_rounds_about_what_changed_do_and_say_what_rounds_about_everything_do(several, seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        nodes = [Node(Path(directory) / str(i), is_whole=bool(i)) for i in range(2)]
        fleet = several[0]
        for _ in range(STEPS):
            what, fault_seed = chance.random(), chance.randrange(10_000) if chance.random() < 0.3 else None
            if what < 0.6:
                fleet = mixed(fleet, chance.choice(several), chance)
            elif what < 0.8:
                some = random.Random(seed)
                state = some.getstate()
                for node in nodes:
                    some.setstate(state)
                    drift(node.kernel, some)
            did = []
            for node in nodes:
                if what < 0.6:
                    node.ask(fleet)
                    node.now += 1.5
                    did.append(node.round(Wake.FILES, fault_seed=fault_seed))
                else:
                    did.append(node.tick(fault_seed))
            narrow, whole = did
            assert narrow[0] == whole[0]
            assert narrow[1] == whole[1]
            assert narrow[2] == whole[2]
            assert nodes[0].agent.upkeep.known is None or known_is_true(nodes[0])


def known_is_true(node):
    """What the agent believes about the node is so, whatever it has not read in this round."""
    enforced, open_ = node.agent.upkeep.desired.desired.resources, node.agent.upkeep.open
    held = read_live(node.kernel, enforced).resources
    settled = [{k: r for k, r in some.items() if k not in open_} for some in (node.agent.upkeep.known, held, enforced)]
    assert settled[0] == settled[1] == {key: r for key, r in settled[2].items() if not r.is_given}
    return True


@given(st.lists(fleets(), min_size=2, max_size=3), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_an_edit_writes_exactly_the_rows_that_differ(several, seed):
    """The same writes as a plan makes that knows the node's state before and after; and none for what is the same."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        node = Node(Path(directory))
        fleet = several[0]
        node.ask(fleet)
        node.round(Wake.TIME)
        for _ in range(25):
            fleet = mixed(fleet, chance.choice(several), chance)
            before = copy.deepcopy(read_live(node.kernel).resources)
            node.ask(fleet)
            node.now += 1.5
            _, writes, live = node.round(Wake.FILES)
            desired = compile_node(view(fleet, None, "host"))
            if not node.agent.upkeep.desired or node.agent.upkeep.desired.desired.resources != desired.resources:
                continue  # refused: no service would be left
            after = live.resources
            assert bool(writes) == (before != after)
            assert not plan(desired, read_live(node.kernel, desired.resources)).changes


@given(fleets(), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_look_in_slices_names_what_a_reading_at_once_shows(fleet, seed):
    kernel, desired = FaultyKernel(), compile_node(view(fleet, None, ""))
    kernel.fails = lambda: False
    apply(plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    drift(kernel, random.Random(seed))
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("endpoint", "rings", "service"):
            patch.setattr(f"reconciler.kinds.{kind}._LOOKED_AT_ONCE", 2)
        for kind in KINDS:
            own = desired.of_kind.get(kind.resource.kind, {})
            looked = {key for found in kind(kernel).look(own) for key in found}
            assert looked == set(differing(kind(kernel).read(own), own))
