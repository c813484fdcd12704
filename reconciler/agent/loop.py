# SPDX-License-Identifier: Apache-2.0
"""The agent: look at the manifests, compare with the node, close the gap; again and again, for years.

It remembers one thing: the last state that valid manifests asked for and that the agent may make. It enforces this
state until there is a newer one; a directory that is broken, gone or empty changes nothing on the node.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.agent.fights import FIGHT, PAUSE_S, WINDOW_S, Fights
from reconciler.agent.report import Report
from reconciler.agent.wake import Wake
from reconciler.apply import Result
from reconciler.config.diagnostic import render_text
from reconciler.config.load import Loaded
from reconciler.config.rest import SECOND_LOOK_S
from reconciler.dataplane import slots
from reconciler.errors import ApplyError, ConfigError, LbctlError
from reconciler.kernel.port import Kernel
from reconciler.lock import apply_lock
from reconciler.model import Fleet
from reconciler.plan import Plan, guard
from reconciler.reconcile import carry_out, desired_of, plan_node
from reconciler.resource import Action, Change, Desired, Reason
from reconciler.ring_store import settle
from reconciler.standing import carriers

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 60.0
SHOWN = 20
"""The most failed changes that are named in the log."""

WATCHING, MANIFESTS, NODE = "watching", "manifests", "node"


@dataclass(frozen=True, slots=True)
class Manifests:
    """A directory of manifests. Each of these functions may raise LbctlError or OSError.

    `watch` makes sure that changes from now on wake the loop; `digest` changes if and only if the content does.
    """

    watch: Callable[[], None]
    digest: Callable[[], str]
    load: Callable[[], Loaded]


@dataclass
class Agent:
    """One node and its manifests. Times are seconds of `clock`.

    `wait` returns the reason to look again, at the latest after the given seconds. `ready` is called when the node is
    first in the state that the manifests ask for, apart from what it can't hold.
    """

    manifests: Manifests
    kernel: Kernel
    instance_dir: Path
    node: str | None
    allow_empty: bool
    resync_s: float
    clock: Callable[[], float]
    wait: Callable[[float], Wake]
    report: Report
    ready: Callable[[], None]
    pause: Callable[[float], None] = time.sleep

    seen: str = ""
    """The digest of the manifests that were loaded last, valid or not."""
    fleet: Fleet | None = None
    """The loaded fleet, until its resources for this node are known."""
    offered: Desired | None = None
    """The resources that the newest manifests ask for, not compared with the node yet."""
    desired: Desired | None = None
    """The resources that are enforced."""
    revision: str = ""
    """The digest of the manifests that ask for `desired`."""
    due: float = 0.0
    """The time of the next comparison with the node if nothing happens before."""
    retry_s: float = FIRST_RETRY_S
    is_ready: bool = False
    fights: Fights = field(default_factory=Fights)

    def run(self) -> None:
        """Run until told to stop. Then the node is left as it is: traffic goes on."""
        wake = Wake.TIME
        while wake is not Wake.STOP:
            self.round(wake)
            wake = self.wait(max(0.0, self.due - self.clock()))

    def round(self, wake: Wake) -> None:
        """One look at the manifests, and at the node if that is due. Raises nothing."""
        if wake is Wake.RELOAD:
            self.seen, self.due = "", 0.0
            self.report.repeat()
        if self._attempt(WATCHING, self.manifests.watch, f"changes are found by looking every {self.resync_s:g} s"):
            self.report.recovered(WATCHING)
        kept = "the node is kept as it was last asked for" if self.desired else "nothing was changed"
        self._attempt(MANIFESTS, self._look, kept)
        if self.clock() < self.due:
            return
        last_s = min(LAST_RETRY_S, self.resync_s)  # failures must not delay the resync of the rest
        reconciled = self._attempt(NODE, self._reconcile, f"trying again, at last every {last_s:g} s")
        if reconciled:
            self.report.recovered(NODE)
        is_looked_at = self.seen or self.fleet is not None  # not if files were on their way at the second look
        if reconciled and self.fleet is None and is_looked_at:
            self.retry_s = FIRST_RETRY_S
            self.due = self.clock() + self.resync_s
        else:
            self.due = self.clock() + min(self.retry_s, last_s)
            self.retry_s = min(2 * self.retry_s, last_s)

    def _attempt(self, about: str, step: Callable[[], None], consequence: str) -> bool:
        """Whether the step succeeded; its error is reported."""
        try:
            step()
        except (LbctlError, OSError) as error:
            self.report.problem(about, str(error), consequence)
        except Exception:  # noqa: BLE001 - a mistake in lbctl must not end the upkeep of a node
            self.report.problem(about, traceback.format_exc().rstrip(), consequence)
        else:
            return True
        return False

    def _look(self) -> None:
        """Load the manifests if they have changed, and find out which resources they ask of this node.

        This also depends on the host's name and on answers of the kernel, so it may fail now and succeed later: it is
        tried until it succeeds. Raises LbctlError, OSError.
        """
        if self.manifests.digest() != self.seen:
            self.seen, self.fleet = "", None  # if loading fails altogether, it is tried again
            loaded = self.manifests.load()
            self.seen = loaded.digest
            text = render_text(loaded.diagnostics, loaded.texts, colour=self.report.style.colour, most=SHOWN).rstrip()
            if loaded.fleet is None:
                raise ConfigError(text)
            if text:
                self.report.say(text)
            self.fleet = loaded.fleet
            self.due, self.retry_s = 0.0, FIRST_RETRY_S
        if self.fleet is not None:
            self.offered, self.fleet = desired_of(self.fleet, self.node, self.kernel), None
            self.due = 0.0

    def _reconcile(self) -> None:
        """Bring the node to the state that the manifests ask for. Raises LbctlError."""
        if self.offered is None and self.desired is None:
            return
        with apply_lock(self.instance_dir):
            offered = self.offered
            planned = self._plan()
            if planned is None:
                return
            self.report.concerns(planned.concerns)
            if settled := settle(self.kernel, slots.now()):
                self.report.say(f"{settled:,} slots of rings have settled: nobody used their former endpoints.")
            is_new = self.desired is offered
            if planned.changes or planned.blocked or is_new:
                self._carry_out(planned)
            if is_new and not planned.changes:
                self.report.say("No changes. The node holds what the manifests say.")
        self._be_ready()

    def _be_ready(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            self.ready()

    def _plan(self) -> Plan | None:
        """The plan for the newest state that the agent may make; None if there is none. Raises LbctlError."""
        if self.offered is not None:
            planned = plan_node(self.offered, self.kernel, self.instance_dir)
            offered, self.offered = self.offered, None
            try:
                guard(planned, allow_empty=self.allow_empty)
                self._look_again(planned)
            except (LbctlError, OSError) as refusal:
                self.report.problem(MANIFESTS, str(refusal), "nothing was removed")
            else:
                self.desired, self.revision = offered, self.seen
                self.report.recovered(MANIFESTS)
                return planned
        if self.desired is None:
            return None
        planned = plan_node(self.desired, self.kernel, self.instance_dir)
        guard(planned, allow_empty=self.allow_empty)
        now = self.clock()
        resting = {c.key for c in planned.changes if c.reason is Reason.DRIFT and self.fights.rests(c.key, now)}
        resting -= carriers(self.desired.resources) if resting else set()
        return replace(planned, changes=tuple(c for c in planned.changes if c.key not in resting))

    def _look_again(self, planned: Plan) -> None:
        """Before anything is removed, make sure that no files are on their way. Raises LbctlError, OSError."""
        if planned.count(Action.DELETE):
            self.pause(SECOND_LOOK_S)
            seen, self.seen = self.seen, ""  # if this raises, they are loaded again
            if self.manifests.digest() != seen:
                raise ConfigError("the files are changing: objects whose files are missing just now would be removed")
            self.seen = seen

    def _carry_out(self, planned: Plan) -> None:
        """Make the changes and report them. Raises ApplyError if not all could be made."""
        done: list[Change] = []

        def notify(change: Change, error: Exception | None) -> None:
            if error is None:
                done.append(change)

        started = self.clock()
        try:
            result = carry_out(planned, self.kernel, self.instance_dir, notify)
            done = [change for change in result.done if change.key not in result.failed]
        finally:
            self.report.applied(done, planned.effects(), self.clock() - started, self.revision)
        drifted = [change.key for change in done if change.reason is Reason.DRIFT]
        begun = self.fights.mended(drifted, self.clock())
        carrying = carriers(planned.desired.resources) if begun else set()
        for key in begun:
            text = f"{key} was changed by somebody else {FIGHT} times in {WINDOW_S / 60:g} minutes"
            if key in carrying:
                self.report.alarm(f"{text}; traffic stands on it, so it is set back each time: find out who does that")
            else:
                self.report.say(f"{text}; from now on it is set back once in {PAUSE_S:g} s")
        if not result.failed:  # a restart mends nothing that is blocked
            self._be_ready()
        _raise_if_incomplete(result)


def _raise_if_incomplete(result: Result) -> None:
    lines = [f"{key}: {why}" for key, why in sorted(result.blocked.items())]
    lines += [f"{key}: {error}" for key, error in sorted(result.failed.items())]
    lines += [f"{key} could not be undone: {error}" for key, error in sorted(result.stuck.items())]
    lines += [f"{key}: {why}" for key, why in sorted(result.skipped.items())]
    if lines:
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise ApplyError("\n".join([*lines[:SHOWN], *more]))
