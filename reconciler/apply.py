# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: in order, verified, and undone where it fails.

The unit is a VIP: when a write fails, the changes for all VIPs that need the failed resource are undone; changes for
other VIPs go on. A resource is written only after its needs are present, a VIP only after all of them were read back.
A resource is deleted only when no remaining resource needs it and its replacement is present.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from reconciler import progress
from reconciler.errors import ApplyError, BlockedError, KernelError, LbctlError, PartialError, RollbackError
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS, PHASES, RESOURCES
from reconciler.kinds.base import Kind
from reconciler.kinds.program import PROGRAM
from reconciler.layered import Layered
from reconciler.live import read_live
from reconciler.plan import Held, Plan
from reconciler.resource import Change, Key, Resource
from reconciler.safe import some
from reconciler.standing import fallen, kept_for, missed

ATTEMPTS = 3
"""How often a write is tried before it counts as failed; an undo is tried twice as often."""

Notify = Callable[[Change, Exception | None], None]


@dataclass(slots=True)
class Result:
    """The outcome of a plan. `blocked` are the keys that the plan called blocked, with the reasons; `skipped` also has
    the changes that wait for these keys."""

    done: list[Change] = field(default_factory=list)
    blocked: dict[Key, str] = field(default_factory=dict)
    failed: dict[Key, Exception] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)
    undone: list[Change] = field(default_factory=list)
    stuck: dict[Key, Exception] = field(default_factory=dict)
    """The changes that should have been undone, but could not be."""
    held: Mapping[Key, Resource] = field(default_factory=dict)
    """What the node holds now, as far as no change has failed."""

    @property
    def lost(self) -> list[Key]:
        """The keys that are not in the state that the plan leads to."""
        return [*self.blocked, *self.failed, *self.skipped]

    def raise_if_failed(self) -> None:
        """Raises RollbackError, PartialError, ApplyError or BlockedError if the plan was not carried out whole. Each
        names some objects and the number of the others."""
        causes = some([f"{key}: {_message(error)}" for key, error in sorted(self.failed.items())], "; ")
        hint = next((error.hint for _, error in sorted(self.failed.items()) if isinstance(error, LbctlError)), "")
        if self.stuck:
            left = some(list(map(str, sorted(self.stuck))))
            raise RollbackError(f"{causes}. Not everything could be undone: {left}", hint=hint or "run `lbctl plan`")
        if self.failed and self.done:
            raise PartialError(f"{causes}. {_changes(self.undone)} undone, {_changes(self.done)} in place", hint=hint)
        if self.failed:
            undone = f"{_changes(self.undone)} undone, the" if self.undone else "The"
            raise ApplyError(f"{causes}. {undone} node is as it was", hint=hint)
        if self.blocked:
            reasons = some([f"{key}: {why}" for key, why in sorted(self.blocked.items())], "; ")
            raise BlockedError(f"{reasons}. {_changes(self.done)} in place")
        if self.skipped:
            waiting = some([f"{key}: {why}" for key, why in sorted(self.skipped.items())], "; ")
            raise PartialError(f"some changes had to wait: {waiting}", hint="run `lbctl plan` to see what is left")


def _message(error: Exception) -> str:
    """What went wrong, without the hint, which ends the whole text."""
    return error.message if isinstance(error, LbctlError) else str(error)


def _changes(changes: Sequence[Change]) -> str:
    return f"{len(changes)} change{' is' if len(changes) == 1 else 's are'}"


@dataclass(slots=True)
class _Run:
    """A plan under way. `current` follows the kernel's state, change by change."""

    plan: Plan
    kinds: Mapping[str, Kind]
    current: MutableMapping[Key, Resource]
    notify: Notify
    result: Result = field(default_factory=Result)
    unverified: set[Key] = field(default_factory=set)
    """The keys of changes that were made and not yet read back."""
    needs: Counter[Key] | None = None
    """How many resources need each key, while changes are undone."""
    others: dict[str, list[Key]] | None = None
    """The keys of what is not as the manifests want it, by kind, once deletes have begun."""

    def make(self, changes: Iterable[Change], attempts: int = ATTEMPTS) -> Iterator[tuple[Change, Exception | None]]:
        """Write changes of one kind as one batch, failed ones again; each with its last outcome."""
        left = list(changes)
        outcomes: dict[Key, Exception | None] = {}
        for _ in range(attempts):
            if not left:
                break
            results = self._write(left)
            outcomes |= {change.key: outcome for change, outcome in zip(left, results, strict=True)}
            for change in left:
                if outcomes[change.key] is None:
                    self._remember(change)
                    yield change, None
            left = [change for change in left if outcomes[change.key]]
        yield from ((change, outcomes[change.key]) for change in left)

    def _write(self, changes: Sequence[Change]) -> Sequence[Exception | None]:
        try:
            with progress.step(f"writing {changes[0].key.kind}"):
                return self.kinds[changes[0].key.kind].write(changes)
        except KernelError as error:  # not even the present state could be read
            return [error] * len(changes)

    def _remember(self, change: Change) -> None:
        former = self.current.pop(change.key, None)
        if change.after is not None:
            self.current[change.key] = change.after
        if self.needs is not None:
            self.needs.subtract(former.needs if former else ())
            self.needs.update(change.after.needs if change.after else ())

    def drop(self, changes: Iterable[Change]) -> None:
        """Take the objects of these deletes for gone."""
        for change in changes:
            self._remember(change)

    def needed(self, kind: str) -> set[Key]:
        """The keys of a kind, of those that go, that a resource in the kernel needs by now.

        No resource that is as the manifests want it needs one that they don't want. So only the others are asked.
        """
        wanted = self.plan.desired.resources
        if self.others is None:
            self.others = {}
            keys = self.current if self.plan.keys is None else [k for k in self.plan.keys if k in self.current]
            for key in keys:
                if wanted.get(key) is not self.current[key]:
                    self.others.setdefault(key.kind, []).append(key)
        users = [keys for name, keys in self.others.items() if _may_need(name, kind)]
        left = (self.current[key] for keys in users for key in keys if key in self.current)
        return {need for resource in left for need in resource.needs if need.kind == kind}


def _may_need(user: str, kind: str) -> bool:
    """Whether resources of the one kind may need some of the other."""
    needs = RESOURCES[user].may_need
    return needs is None or kind in needs


def apply(plan: Plan, kernel: Kernel, notify: Notify = lambda change, error: None) -> Result:
    """Make the changes of a plan and read them back; `notify` hears of each as it is made or fails.

    Raises nothing for a failed write: see `Result.raise_if_failed`.
    """
    kinds = {kind.resource.kind: kind(kernel) for kind in KINDS}
    held = plan.live.resources
    run = _Run(plan, kinds, dict(held) if plan.keys is None else Layered(held), notify)
    result = run.result
    result.held = run.current
    result.blocked = dict(plan.blocked)
    result.skipped = {held.change.key: str(held) for held in plan.held}
    puts = [change for change in plan.changes if change.after]
    deletes = [change for change in plan.changes if change.after is None]
    for kind, batch in groupby(puts, key=lambda change: change.key.kind):
        if kinds[kind].resource.announces:
            _verify(run, kernel, puts)
        _put(run, list(batch))
    _verify(run, kernel, puts)
    if result.failed:
        _undo(run, kernel, puts)
    _delete(run, deletes)
    _verify(run, kernel, deletes)
    return result


def _put(run: _Run, batch: Sequence[Change]) -> None:
    ready = []
    lost = set(run.result.lost)
    for change in batch:
        need = _unmet_need(run, lost, change.after) if change.after else None
        if need:
            run.result.skipped[change.key] = f"needs {need}"
        else:
            ready.append(change)
    _note(run, run.make(ready))


def _unmet_need(run: _Run, lost: Collection[Key], resource: Resource) -> Key | None:
    """The first need that is missing; for a given one, the first of its own needs that is missing."""
    for need in resource.needs:
        if need in lost:
            return need
        if need.kind in RESOURCES and RESOURCES[need.kind].is_given:
            given = run.plan.desired.resources.get(need)
            if given and (deeper := _unmet_need(run, lost, given)):
                return deeper
        elif need not in run.current:
            return need
    if resource.needs_any and not any(need in run.current for need in resource.needs_any):
        return resource.needs_any[0]
    return None


def _delete(run: _Run, deletes: Sequence[Change]) -> None:
    result, desired = run.result, run.plan.desired.resources
    causes = fallen(desired, run.plan.live.resources, result.lost)
    missing = missed(desired, causes)
    announced: Key | None = None
    # Rows go with the program, whose maps have no other user. They may be of a layout that this version doesn't write.
    postponed: list[Change] = []
    goes = any(change.key == PROGRAM for change in deletes)
    for kind, batch in groupby(deletes, key=lambda change: change.key.kind):
        awaited, ready, needed = kept_for(kind, causes, missing, PHASES), [], run.needed(kind)
        for change in batch:
            if awaited:
                result.skipped[change.key] = str(Held(change, awaited))
            elif announced:
                result.skipped[change.key] = f"kept while there is {announced}"
            elif change.key in needed:
                result.skipped[change.key] = "something that is left needs it"
            else:
                ready.append(change)
        if goes and run.kinds[kind].is_in_maps:
            run.drop(ready)
            postponed += ready
            continue
        _note(run, run.make(ready))
        if run.kinds[kind].resource.announces and announced is None:
            announced = next((change.key for change in ready if change.key in result.failed), None)
    if PROGRAM not in run.current:
        _note(run, ((change, None) for change in postponed))
        return
    for _, batch in groupby(postponed, key=lambda change: change.key.kind):
        _note(run, run.make(list(batch)))


def _note(run: _Run, outcomes: Iterable[tuple[Change, Exception | None]]) -> None:
    for change, error in outcomes:
        if error:
            run.result.failed[change.key] = error
        else:
            run.result.done.append(change)
            run.unverified.add(change.key)
        run.notify(change, error)


def _verify(run: _Run, kernel: Kernel, changes: Collection[Change]) -> None:
    """Read back the changes that were made and not yet read back; one that differs counts as failed."""
    made = [change for change in changes if change.key in run.unverified] if run.unverified else []
    if not made:
        return
    wrong: dict[Key, Exception] = {}
    try:
        live = _read_back(kernel, made)
    except KernelError as refusal:
        wrong |= dict.fromkeys((change.key for change in made), refusal)
    else:
        for change in made:
            if (found := live.get(change.key)) is not change.after and found != change.after:
                wrong[change.key] = KernelError(f"reads back as {_shown(found)}, not as {_shown(change.after)}")
    run.unverified.difference_update(change.key for change in made)
    if wrong:
        run.result.done = [change for change in run.result.done if change.key not in wrong]
        for change in made:
            if error := wrong.get(change.key):
                run.result.failed[change.key] = error
                run.notify(change, error)


def _read_back(kernel: Kernel, changes: Iterable[Change]) -> Mapping[Key, Resource]:
    """The resources that the node holds now, of those that were to be changed. Raises KernelError."""
    written = {change.key: change.after for change in changes}
    wanted = {key: resource for key, resource in written.items() if resource}
    return read_live(kernel, wanted, only=written).resources


def _shown(resource: Resource | None) -> str:
    if resource is None:
        return "nothing"
    return some([f"{name} {value}" for name, value in resource.describe().items()])


def _undo(run: _Run, kernel: Kernel, puts: Sequence[Change]) -> None:
    """Undo the changes that only the failed VIPs need."""
    result = run.result
    doomed = fallen(run.plan.desired.resources, run.plan.live.resources, result.lost).keys() - result.skipped.keys()
    # Many writes fail without effect: a resource in its former state needs no undoing.
    touched = [change for change in reversed(puts) if change.key in doomed]
    try:
        live = _read_back(kernel, touched)
        touched = [change for change in touched if live.get(change.key) != change.before]
    except KernelError:
        pass  # then all changes are undone
    needs = run.needs = Counter(need for resource in run.current.values() for need in resource.needs)
    for _, batch in groupby(touched, key=lambda change: change.key.kind):
        changes = {change.key: change for change in batch}
        inverses = [change.inverse() for change in changes.values()]
        ready = [inverse for inverse in inverses if inverse.after or not needs[inverse.key]]
        for key in changes.keys() - {inverse.key for inverse in ready}:
            result.stuck[key] = KernelError("something that could not be undone needs it")
        for inverse, error in run.make(ready, 2 * ATTEMPTS):
            if error:
                result.stuck[inverse.key] = error
            else:
                result.undone.append(changes[inverse.key])
    run.needs = None
    undone = {change.key for change in result.undone}
    result.done = [change for change in result.done if change.key not in undone]
