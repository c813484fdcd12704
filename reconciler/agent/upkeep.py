# SPDX-License-Identifier: Apache-2.0
"""The upkeep of a node: what the agent knows about it, and the rounds that keep it as it should be.

After a round, the agent knows each resource of the node: it was read, or written and read back. So the next round is
about the keys that the newer manifests ask otherwise for, those that are not as they should be yet, and those that
somebody named. A round about all keys comes first, and whenever that knowledge is lost. Between rounds, a survey
looks at the whole node for keys that are not as they should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler import connections, loads, ports, private, record, safe
from reconciler.agent.fights import FIGHT, PAUSE_S, WINDOW_S, Fights
from reconciler.agent.report import Report
from reconciler.apply import Result
from reconciler.compile import Compiled
from reconciler.concerns import concerns_of
from reconciler.dataplane import slots
from reconciler.dataplane.layout import CONNECTION_MAPS, TRANSLATED_MAPS
from reconciler.errors import ApplyError, LbctlError
from reconciler.kernel.port import Kernel
from reconciler.layered import folded
from reconciler.lock import apply_lock
from reconciler.plan import Plan, guard
from reconciler.reconcile import RECORD, carry_out, open_keys, plan_keys, plan_node, survey
from reconciler.record import Prints
from reconciler.resource import Change, Key, Reason, Resource
from reconciler.ring_store import settle, settling
from reconciler.standing import carriers

MANIFESTS = "manifests"
_SETTLED_AT_ONCE = 200
SWEEP_S = 1_800.0
"""How often the table of connections is looked through; it must be done within the hour in which a connection over a
timeout of four hours can be told from one that was seen just now."""
SWEPT_AT_ONCE = 32_768
"""Buckets, which take some milliseconds."""
PORTS_S = 30.0
"""How often the table of fullnat is looked through for ports that may come back."""


@dataclass
class Upkeep:
    """One node. `is_called` says whether somebody waits for an answer: then a survey is interrupted."""

    kernel: Kernel
    instance_dir: Path
    report: Report
    clock: Callable[[], float]
    ready: Callable[[], None]
    is_called: Callable[[], bool]
    allow_empty: bool
    max_prune: int | None = None

    offered: Compiled | None = None
    """The resources that the newest manifests ask for, not compared with the node yet."""
    offered_revision: str = ""
    desired: Compiled | None = None
    """The resources that are enforced."""
    revision: str = ""
    """The digest of the manifests that ask for `desired`."""
    known: Mapping[Key, Resource] | None = None
    """The resources that the node holds, as they were last seen; None: not known."""
    open: frozenset[Key] = frozenset()
    """The keys of which the node holds something else than it should: blocked, late, resting."""
    former: Mapping[Key, str] = field(default_factory=dict)
    """The fingerprints of what was applied last for the open keys."""
    late: frozenset[Key] = frozenset()
    """The keys that are deleted once the files have been at rest for a while."""
    resting: frozenset[Key] = frozenset()
    """The keys that somebody else keeps changing, and that are left alone for now."""
    written_s: float = -math.inf
    """When the last change of the node was made."""
    suspects: set[Key] = field(default_factory=set)
    """What the survey under way has found."""
    fights: Fights = field(default_factory=Fights)
    told_fights: dict[Key, str] = field(default_factory=dict)
    """What was told of the fights that are on."""
    astray: frozenset[Key] | None = None
    """While the node is left as it is: the keys of which it holds something else than it should; None: not known."""
    _observed: Compiled | None = None
    _survey: Iterator[Collection[Key]] | None = None
    _mark: tuple[int, ...] = ()
    _sweep_due: float = 0.0
    _ports_due: float = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether a survey was interrupted, and goes on with the next look."""
        return self._survey is not None

    def offer(self, offered: Compiled, revision: str) -> None:
        """The newest manifests, with their digest, ask for these resources."""
        self.offered, self.offered_revision = offered, revision

    def withdraw(self) -> None:
        """The manifests are broken by now: what was to wait until they are at rest is not done."""
        if self.late:
            self.offered = None

    @property
    def newest(self) -> str:
        """The digest of the manifests that ask for what is offered, or enforced."""
        return self.offered_revision if self.offered else self.revision

    def forget(self) -> None:
        """Know nothing about the node: the next round is about all keys."""
        self.known, self._survey, self.astray = None, None, None

    def observe(self, *, is_due: bool) -> None:
        """Find out how far the node is from what the newest manifests ask for, and change nothing: if it `is_due`, if
        they ask for something else than before, or if another process has been at work. Raises LbctlError."""
        wanted, mark = self.offered or self.desired, private.mark(self.instance_dir / RECORD)
        is_other = wanted is not self._observed or mark != self._mark
        if wanted is None or not (is_due or self.astray is None or is_other):
            return
        planned = plan_node(wanted.desired, self.kernel, self.instance_dir)
        self.astray = frozenset(change.key for change in planned.changes) | planned.blocked.keys()
        self._observed, self._mark, self.known = wanted, mark, None

    def look(self, named: Collection[Key], *, is_due: bool, may_delete: bool) -> None:
        """Bring the node to the state that the manifests ask for. `is_due`: look at all of it, too. Raises LbctlError.

        `may_delete`: what nobody asks for any more is deleted now; else it is late.
        """
        if self.offered is None and self.desired is None:
            return
        self._end_fights()
        if self.offered or self.known is None or named or self.late:
            is_whole = self._round(named, may_delete=may_delete)
            if is_whole:
                self._survey = None
                return
        if is_due and self.desired is not None and self.offered is None:
            self._look_around(may_delete=may_delete)

    def _look_around(self, *, may_delete: bool) -> None:
        """Survey the node, and mend what is found. Returns early if somebody calls."""
        assert self.desired is not None
        if self._survey is None:
            self.suspects = set()
            self._survey = self._slices()
        try:
            for found in self._survey:
                self.suspects.update(found)
                if self.is_called():
                    return
        except BaseException:
            self._survey = None
            raise
        self._survey = None
        if self.suspects or self.open:
            self._round(self.suspects, may_delete=may_delete)

    def _slices(self) -> Iterator[Collection[Key]]:
        assert self.desired is not None
        yield from survey(self.kernel, self.desired.desired)
        settled = 0
        for settle_some in settling(self.kernel, slots.now(), _SETTLED_AT_ONCE):
            with apply_lock(self.instance_dir):
                settled += settle_some()
            yield ()
        self._tell_settled(settled)
        yield from self._sweep()
        yield from self._sweep_ports()
        for _ in loads.recount(self.kernel, SWEPT_AT_ONCE):
            yield ()
        self.report.concerns(concerns_of(self.kernel, self.desired.desired))

    def _sweep(self) -> Iterator[Collection[Key]]:
        """Clear connections that are no more, a slice at a time. A million of them are two million places, and take a
        tenth of a second of CPU."""
        if self.clock() < self._sweep_due:
            return
        self._sweep_due = self.clock() + SWEEP_S
        for version, spec in CONNECTION_MAPS.items():
            for first in range(0, self.kernel.capacity(spec.name), SWEPT_AT_ONCE):
                connections.sweep(self.kernel, version, first, SWEPT_AT_ONCE)
                yield ()

    def _sweep_ports(self) -> Iterator[Collection[Key]]:
        """Have ports of fullnat come back whose connections are no more, a slice of the table at a time."""
        if self.clock() < self._ports_due:
            return
        self._ports_due = self.clock() + PORTS_S
        for version, spec in TRANSLATED_MAPS.items():
            for _ in range(0, self.kernel.capacity(spec.name), SWEPT_AT_ONCE):
                self.kernel.sweep_translated(version, SWEPT_AT_ONCE)
                yield ()
        with apply_lock(self.instance_dir):
            ports.prune(self.kernel)

    def _settle(self) -> None:
        """End the transitions that are over. Only under the lock."""
        self._tell_settled(settle(self.kernel, slots.now()))

    def _tell_settled(self, settled: int) -> None:
        if settled:
            self.report.say(f"{settled:,} slots of rings have settled: nobody used their former endpoints.")

    def _round(self, named: Collection[Key], *, may_delete: bool) -> bool:
        """Compare and carry out. Returns whether that was about all keys. Raises LbctlError."""
        with apply_lock(self.instance_dir), self.kernel.steady():
            if self._mark != private.mark(self.instance_dir / RECORD):
                self.known = None  # another process has been at work here
            offered = self.offered
            applied = self._applied(self.desired) if self.desired and self.known is not None else None
            planned = self._plan(named, may_delete=may_delete)
            if planned is None:
                return False
            is_whole = planned.keys is None
            applied = None if is_whole else applied
            if is_whole:
                self.report.concerns(planned.concerns)
                self._settle()
            is_new = offered is not None and self.desired is offered
            if planned.changes or planned.blocked or is_new:
                self._carry_out(planned, applied)
            else:
                self._remember(planned.live.resources, self.late | self.resting, applied)
            if is_new and not planned.changes and not self.late:
                self.report.say("No changes. The node holds what the manifests say.")
        self.ready()
        return is_whole

    def _plan(self, named: Collection[Key], *, may_delete: bool) -> Plan | None:
        """The plan for the newest state that the agent may make; None if there is none yet. Raises LbctlError."""
        if self.offered is not None:
            planned = self._compared(self.offered, named)
            try:
                guard(planned, allow_empty=self.allow_empty, max_prune=self.max_prune)
            except LbctlError as refusal:
                self.report.problem(MANIFESTS, str(refusal), "nothing was removed")
                self.offered = None
            else:
                planned = self._restrained(planned, may_delete=may_delete)
                if self.late and planned.keys is None:
                    return None  # the new program may lack what only services use that are late
                self.desired, self.revision, self.resting = self.offered, self.offered_revision, frozenset()
                self.offered = None
                self.report.recovered(MANIFESTS)
                return planned
        if self.desired is None:
            return None
        planned = self._compared(self.desired, named)
        guard(planned, allow_empty=self.allow_empty, max_prune=self.max_prune)
        now = self.clock()
        resting = {c.key for c in planned.changes if c.reason is Reason.DRIFT and self.fights.rests(c.key, now)}
        resting -= carriers(self.desired.desired.resources) if resting else set()
        self.resting = frozenset(resting)
        planned = replace(planned, changes=tuple(c for c in planned.changes if c.key not in resting))
        return self._restrained(planned, may_delete=may_delete)

    def _compared(self, wanted: Compiled, named: Collection[Key]) -> Plan:
        """The plan for these resources: about the keys that matter if the rest is known, else about all."""
        if self.known is None or self.desired is None or wanted.differs_as_a_whole(self.desired):
            return plan_node(wanted.desired, self.kernel, self.instance_dir)
        keys = wanted.differing(self.desired).union(self.open, named)
        return plan_keys(wanted.desired, self.kernel, self.known, self._applied(self.desired), keys)

    def _applied(self, enforced: Compiled) -> Prints:
        """The fingerprints of what was applied last, as in the record."""
        return Prints(enforced.desired.resources, self.open, self.former)

    def _restrained(self, planned: Plan, *, may_delete: bool) -> Plan:
        """The plan without deletes that are not to be made now."""
        late = frozenset() if may_delete else frozenset(
            change.key for change in planned.changes
            if change.after is None and (change.reason is not Reason.DRIFT or change.key in self.late)
        )  # fmt: skip
        self.late = late
        return replace(planned, changes=tuple(c for c in planned.changes if c.key not in late)) if late else planned

    def _carry_out(self, planned: Plan, applied: Mapping[Key, str] | None) -> None:
        """Make the changes and report them. Raises ApplyError if not all could be made."""
        done: list[Change] = []

        def notify(change: Change, error: Exception | None) -> None:
            if error is None:
                done.append(change)
                self.written_s = self.clock()

        started = self.clock()
        if planned.changes:
            self.report.begins(len(planned.changes))
        self.known = None  # until all of this is over
        try:
            result = carry_out(planned, self.kernel, self.instance_dir, notify, self.late | self.resting)
            done = [change for change in result.done if change.key not in result.failed]
        finally:
            self.report.applied(done, planned.effects, self.clock() - started, self.revision)
        self._mark = private.mark(self.instance_dir / RECORD)
        self._heed_fights(planned, done)
        if not result.failed:  # a restart mends nothing that is blocked
            self._remember(result.held, open_keys(planned, result) | self.late | self.resting, applied)
            self.ready()
        _raise_if_incomplete(result)

    def _remember(
        self, held: Mapping[Key, Resource], open_: frozenset[Key], applied: Mapping[Key, str] | None
    ) -> None:
        """What the node holds from now on, and which keys are open. `applied`: before this round; None: see the
        record."""
        if applied is None and open_:
            applied = record.load(self.instance_dir / RECORD)
        self.former = {key: applied[key] for key in open_ if key in applied} if applied else {}
        self.known, self.open = folded(held), open_

    def _heed_fights(self, planned: Plan, done: Collection[Change]) -> None:
        """Tell of keys that somebody else changes again and again."""
        drifted = [change.key for change in done if change.reason is Reason.DRIFT]
        begun = self.fights.mended(drifted, self.clock())
        carrying = carriers(planned.desired.resources) if begun else set()
        of = {change.key: change for change in done} if begun else {}
        for key in begun:
            seldom = f"from now on it is set back once in {PAUSE_S:g} s"
            does = "traffic stands on it, so it is set back each time" if key in carrying else seldom
            text = f"{_done_to(of[key])} by somebody else {FIGHT} times in {WINDOW_S / 60:g} minutes; {does}"
            self.told_fights[key] = text
            self.report.warning(str(key), text, "find out who does that, and have one of both manage it")

    def _end_fights(self) -> None:
        """Tell of keys that nobody changes any more."""
        on = self.fights.on(self.clock()) if self.told_fights else set()
        for key in self.told_fights.keys() - on:
            self.report.over(str(key), self.told_fights.pop(key))


def _done_to(change: Change) -> str:
    """What somebody else did to what a change mends, e.g. `value was changed`."""
    if change.before is None or change.after is None:
        return "was removed" if change.before is None else "was made"
    before, after = change.before.describe(), change.after.describe()
    names = [name for name in dict.fromkeys((*after, *before)) if before.get(name) != after.get(name)]
    return f"{safe.some(list(map(safe.line, names)))} {'was' if len(names) == 1 else 'were'} changed"


def _raise_if_incomplete(result: Result) -> None:
    lines = [f"{key}: {why}" for key, why in sorted(result.blocked.items())]
    lines += [f"{key}: {error}" for key, error in sorted(result.failed.items())]
    lines += [f"{key} could not be undone: {error}" for key, error in sorted(result.stuck.items())]
    lines += [f"{key}: {why}" for key, why in sorted(result.skipped.items())]
    if lines:
        raise ApplyError(safe.some(lines, "\n"))
