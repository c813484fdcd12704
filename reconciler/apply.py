# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: in order, verified, and taken back where it fails.

A service is the unit: when a write fails, what was done for the services that stand on it is undone, and the
others go through. Nothing is written before what it needs is there, and nothing is deleted while something
that is left needs it, whatever failed before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from reconciler.errors import ApplyError, KernelError, RollbackError
from reconciler.kernel.port import Kernel
from reconciler.kinds import KINDS
from reconciler.kinds.base import Kind
from reconciler.live import read_live
from reconciler.plan import Plan
from reconciler.resource import Change, Key, Resource

ATTEMPTS = 3
"""How often a write is tried before it counts as failed; an undo is tried twice as often."""

Notify = Callable[[Change, Exception | None], None]


@dataclass(slots=True)
class Result:
    """What became of a plan."""

    done: list[Change] = field(default_factory=list)
    failed: dict[Key, Exception] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)
    undone: list[Change] = field(default_factory=list)
    stuck: dict[Key, Exception] = field(default_factory=dict)
    """What should have been undone and could not be."""

    def raise_if_failed(self) -> None:
        """Raises ApplyError, or RollbackError if something that was done could not be taken back."""
        if not self.failed:
            return
        causes = "; ".join(f"{key}: {error}" for key, error in sorted(self.failed.items()))
        if self.stuck:
            left = ", ".join(str(key) for key in sorted(self.stuck))
            raise RollbackError(f"{causes}. Not everything could be undone: {left}", hint="run `lbctl plan`")
        raise ApplyError(f"{causes}. {len(self.undone)} changes were undone, {len(self.done)} are in place")


@dataclass(slots=True)
class _Run:
    """A plan under way. `current` follows what the kernel holds, change by change."""

    kinds: Mapping[str, Kind]
    current: dict[Key, Resource]
    notify: Notify
    result: Result = field(default_factory=Result)

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
            return self.kinds[changes[0].key.kind].write(changes)
        except KernelError as error:  # not even what is there could be read
            return [error] * len(changes)

    def _remember(self, change: Change) -> None:
        if change.after is None:
            self.current.pop(change.key, None)
        else:
            self.current[change.key] = change.after


def apply(plan: Plan, kernel: Kernel, notify: Notify = lambda change, error: None) -> Result:
    """Make the changes of a plan and read them back; `notify` hears of each as it is made or fails.

    Raises nothing for a failed write: see `Result.raise_if_failed`.
    """
    kinds = {kind.resource.kind: kind(kernel) for kind in KINDS}
    run = _Run(kinds, dict(plan.live.resources), notify)
    result = run.result
    for key, owner in plan.blocked.items():
        result.failed[key] = KernelError(f"in the way: {owner}, which is not lbctl's")
    puts = [change for change in plan.changes if change.after]
    deletes = [change for change in plan.changes if change.after is None]
    for _, batch in groupby(puts, key=lambda change: change.key.kind):
        _put(run, list(batch))
    _verify(run, kernel, puts)
    if result.failed:
        _undo(run, plan, kernel, puts)
    for _, batch in groupby(deletes, key=lambda change: change.key.kind):
        _delete(run, list(batch))
    _verify(run, kernel, deletes)
    return result


def _put(run: _Run, batch: Sequence[Change]) -> None:
    ready = []
    for change in batch:
        need = _unmet_need(run, change.after) if change.after else None
        if need:
            run.result.skipped[change.key] = f"needs {need}"
        else:
            ready.append(change)
    _note(run, run.make(ready))


def _unmet_need(run: _Run, resource: Resource) -> Key | None:
    for need in resource.needs:
        if need not in run.current or _is_lost(run.result, need):
            return need
    if resource.needs_any and not any(need in run.current for need in resource.needs_any):
        return resource.needs_any[0]
    return None


def _delete(run: _Run, batch: Sequence[Change]) -> None:
    needed = _needed(run)
    ready = []
    for change in batch:
        if change.key in needed:
            run.result.skipped[change.key] = "something that is left needs it"
        else:
            ready.append(change)
    _note(run, run.make(ready))


def _note(run: _Run, outcomes: Iterable[tuple[Change, Exception | None]]) -> None:
    for change, error in outcomes:
        if error:
            run.result.failed[change.key] = error
        else:
            run.result.done.append(change)
        run.notify(change, error)


def _is_lost(result: Result, key: Key) -> bool:
    return key in result.failed or key in result.skipped


def _verify(run: _Run, kernel: Kernel, changes: Collection[Change]) -> None:
    """Read back what was written; what differs counts as failed."""
    done = set(run.result.done)
    made = [change for change in changes if change in done]
    if not made:
        return
    kinds = {change.key.kind for change in made}
    wrong: dict[Change, Exception] = {}
    try:
        live = read_live(kernel, [change.key for change in made if change.after], kinds).resources
    except KernelError as refusal:
        wrong |= dict.fromkeys(made, refusal)
    else:
        for change in made:
            if (found := live.get(change.key)) != change.after:
                wrong[change] = KernelError(f"reads back as {_shown(found)}, not as {_shown(change.after)}")
    run.result.done = [change for change in run.result.done if change not in wrong]
    for change, error in wrong.items():
        run.result.failed[change.key] = error
        run.notify(change, error)


def _shown(resource: Resource | None) -> str:
    if resource is None:
        return "nothing"
    return ", ".join(f"{name} {value}" for name, value in resource.describe().items())


def _undo(run: _Run, plan: Plan, kernel: Kernel, puts: Sequence[Change]) -> None:
    """Take back what stands under the services that failed, and under no other."""
    result = run.result
    desired = plan.desired.resources
    needs, dependents = _needs(desired), _dependents(desired)
    tainted = _closure((key for key in desired if _is_lost(result, key)), dependents)
    sound = _closure((key for key in desired if key not in tainted and key not in dependents), needs)
    doomed = _closure(tainted, needs) - sound - result.skipped.keys()
    # Many a write fails without effect: what is as it was needs no undoing.
    touched = [change for change in reversed(puts) if change.key in doomed]
    try:
        live = read_live(kernel, doomed, {key.kind for key in doomed}).resources
        touched = [change for change in touched if live.get(change.key) != change.before]
    except KernelError:
        pass  # then all of it is written back
    for _, batch in groupby(touched, key=lambda change: change.key.kind):
        inverses = {change.inverse(): change for change in batch}
        needed = _needed(run)
        ready = [inverse for inverse in inverses if inverse.after or inverse.key not in needed]
        for inverse in inverses.keys() - set(ready):
            result.stuck[inverse.key] = KernelError("something that could not be undone needs it")
        for inverse, error in run.make(ready, 2 * ATTEMPTS):
            if error:
                result.stuck[inverse.key] = error
            else:
                result.undone.append(inverses[inverse])
    undone = set(result.undone)
    result.done = [change for change in result.done if change not in undone]


def _needed(run: _Run) -> set[Key]:
    """What something that the kernel holds just now stands on."""
    return {need for resource in run.current.values() for need in resource.needs}


def _needs(resources: Mapping[Key, Resource]) -> Mapping[Key, Collection[Key]]:
    return {key: resource.needs for key, resource in resources.items()}


def _dependents(resources: Mapping[Key, Resource]) -> Mapping[Key, Collection[Key]]:
    found: dict[Key, list[Key]] = {}
    for key, resource in resources.items():
        for need in resource.needs:
            found.setdefault(need, []).append(key)
    return found


def _closure(start: Iterable[Key], edges: Mapping[Key, Collection[Key]]) -> set[Key]:
    """Everything that can be reached from `start`, itself included."""
    found: set[Key] = set()
    left = list(start)
    while left:
        key = left.pop()
        if key not in found:
            found.add(key)
            left += edges.get(key, ())
    return found
