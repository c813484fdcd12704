# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan that was shown, tells of it and writes it down; refuses one that the node has left behind."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import nullcontext

from reconciler import progress
from reconciler.cli.common import instance_dir, most_shown, say
from reconciler.cli.poke import poke
from reconciler.cli.recording import Source, note_down
from reconciler.config.load import no_garbage_collection
from reconciler.errors import PlanStaleError
from reconciler.kernel.port import Kernel
from reconciler.live import read_node
from reconciler.lock import apply_lock
from reconciler.plan import Plan, plan
from reconciler.reconcile import carry_out
from reconciler.render.style import Style
from reconciler.render.text import More, applied, change_line, more_line
from reconciler.resource import Change, Key, Live, Resource
from reconciler.safe import some
from reconciler.standing import carriers

MOST_MADE = 1_000
"""So many changes that are alike are named as they are made where the output goes to no terminal; `plan` names all."""


def execute(
    planned: Plan, kernel: Kernel, args: argparse.Namespace, style: Style, source: Source, who: str = "", *,
    is_locked: bool = False,
) -> int:  # fmt: skip
    """Carry out a plan that was shown, print changes as they are made, of many that are alike the first ones, and
    write it down in the history. `is_locked`: the plan was made under the lock of the instance, which is held still.
    Raises ApplyError, PlanStaleError."""
    alike = Counter(map(_sort, planned.changes))
    told: Counter[tuple[_Sort, bool]] = Counter()
    most = most_shown() or MOST_MADE

    def notify(change: Change, error: Exception | None) -> None:
        advance(1)
        what = _sort(change), error is None
        told[what] = count = told[what] + 1
        if count <= most:
            line = change_line(change, style)
            say(f"  {style.bad('failed')} {line}: {error}" if error else f"  {line}")
        elif count == most + 1 and not error:
            say(more_line(More(change.key.kind, change.action, alike[what[0]] - most), style))

    started = time.monotonic()
    with nullcontext() if is_locked else apply_lock(instance_dir(args)), no_garbage_collection():
        # Between the plan and its approval, an agent or somebody else may have changed the node.
        if not is_locked:
            check_fresh(planned, read_node(kernel, planned.desired))
        with progress.step("making changes", len(planned.changes)) as advance:
            result = carry_out(planned, kernel, instance_dir(args), notify)
    skipped = [f"  {style.warn('skipped')} {key}: {why}" for key, why in sorted(result.skipped.items())]
    if skipped:
        print(some(skipped, "\n"), file=sys.stderr)
    word = style.bad("Failed") if result.failed else style.bad("Blocked") if result.blocked else style.good("Applied")
    say(f"\n{word}: {applied(result.done, time.monotonic() - started)}")
    note_down(args, source, result, who)
    poke(args)  # an agent that leaves the node as it is says how that is now
    result.raise_if_failed()
    return 0


_Sort = tuple[str, bool, bool]


def _sort(change: Change) -> _Sort:
    """The same for changes that are alike."""
    return change.key.kind, change.before is None, change.after is None


def steps(changes: Iterable[Change]) -> set[tuple[Key, Resource | None, Resource | None]]:
    """Changes without their reasons, for comparison."""
    return {(change.key, change.before, change.after) for change in changes}


def check_fresh(planned: Plan, live: Live) -> None:
    """Raises PlanStaleError if something that the plan changes, or that traffic stands on, is not as it was then.

    A program that was taken off an interface is in no plan that was made before, and no VIP works without it.
    """
    then = planned.live
    if (live.foreign, live.impossible, live.resources) == (then.foreign, then.impossible, then.resources):
        return
    again = plan(planned.desired, live, keys=planned.keys)
    moved = {key for key, _, _ in steps(again.changes) ^ steps(planned.changes)}
    moved |= again.blocked.keys() ^ planned.blocked.keys()
    refuse_stale(moved & ({change.key for change in planned.changes} | carriers(planned.desired.resources)))


def refuse_stale(moved: Collection[Key]) -> None:
    if moved:
        shown = some([str(key) for key in sorted(moved)])
        raise PlanStaleError(f"the node has changed since the plan was made: {shown}", hint="make a new plan")
