# SPDX-License-Identifier: Apache-2.0
"""`lbctl apply`: make the changes of a directory or of a saved plan."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import progress, record
from reconciler.cli.common import (
    add_adopt,
    add_env,
    add_max_prune,
    add_node,
    add_ref,
    add_targets,
    adopting,
    aimed_at,
    confirm,
    instance_dir,
    left_out,
    load_whole,
    look_again,
    most_shown,
    open_kernel,
    say,
    stdout_style,
    target,
)
from reconciler.cli.confirm import refuse_unconfirmed, unless_confirmed
from reconciler.cli.leaving import wait_out_grace
from reconciler.cli.pause import poke
from reconciler.cli.recording import Source, note_down, source_of
from reconciler.cli.run import seconds
from reconciler.config.load import no_garbage_collection
from reconciler.errors import BlockedError, PlanStaleError, UsageError
from reconciler.kernel.port import Kernel
from reconciler.live import read_node, with_connections
from reconciler.lock import apply_lock
from reconciler.model import Fleet
from reconciler.plan import Plan, guard, plan
from reconciler.reconcile import RECORD, carry_out, desired_of, known_wish, plan_node, settle_transitions
from reconciler.render.style import Style
from reconciler.render.text import More, applied, change_line, concern_lines, more_line, plan_text, summary
from reconciler.resource import Action, Change, Key, Live, Resource
from reconciler.safe import some
from reconciler.standing import carriers

if TYPE_CHECKING:
    from reconciler.config.load import Loaded

MOST_MADE = 1_000
"""So many changes that are alike are named as they are made where the output goes to no terminal; `plan` names all."""

DESCRIPTION = """\
Bring the node to what the manifests say: make before break, verified by reading back, and a service whose
change fails is put back as it was while the others go through."""
EPILOG = """\
examples:
  lbctl apply /etc/lbctl
  lbctl apply /etc/lbctl --auto-approve
  lbctl apply /etc/lbctl --confirm-within 2m && lbctl confirm
  lbctl apply /etc/lbctl --target service/web
  lbctl apply change.plan          # exactly what `lbctl plan --out change.plan` showed, or nothing

exit codes: 0 done; 1 failed, and the node is as it was; 2 wrong usage; 4 failed, and not everything could be undone;
5 the saved plan is stale; 6 blocked: what can't be done on this node was left out, the rest is done;
7 in part: what failed was undone, or had to wait, the rest is done
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a directory of manifests, or a plan saved by `plan --out`")
    add_node(parser)
    add_env(parser)
    add_ref(parser)
    add_targets(parser)
    add_adopt(parser)
    parser.add_argument("--auto-approve", action="store_true", help="don't ask")
    parser.add_argument("--allow-empty", action="store_true", help="also if no service at all is left")
    add_max_prune(parser)
    parser.add_argument(
        "--confirm-within", metavar="TIME", type=seconds,
        help="take the change back after this time, unless `lbctl confirm` is said, e.g. 2m",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    _check_source(args.source)
    refuse_unconfirmed(args)
    blocked: BlockedError | None = None
    code = BlockedError.exit_code
    try:
        code = _once(args)
    except BlockedError as error:
        blocked = error
    if code in (0, BlockedError.exit_code) and args.source.is_dir() and wait_out_grace(args):
        return _once(argparse.Namespace(**vars(args) | {"auto_approve": True}))
    if blocked is not None:
        raise blocked
    return code


def _once(args: argparse.Namespace) -> int:
    read = load_whole(args.source, args) if args.source.is_dir() else None
    if read is None and args.adopt:
        raise UsageError("a saved plan takes nothing over", hint="apply the directory with --adopt")
    kernel = open_kernel(args)
    # Whoever approves it beforehand needs no look at the node between the plan and the changes: nobody else writes.
    with apply_lock(instance_dir(args)) if args.auto_approve else nullcontext():
        if read is None:
            planned, source, rest = _saved(args, kernel), Source(), ""
        else:
            planned, source, rest = _planned(args, kernel, *read)
        return _run(replace(planned, live=with_connections(planned.live, kernel)), kernel, args, source, rest)


def _planned(args: argparse.Namespace, kernel: Kernel, fleet: Fleet, loaded: Loaded) -> tuple[Plan, Source, str]:
    """The plan for a directory that was read, what is written down of it, and a line on what --target leaves out."""
    desired = desired_of(fleet, args.node, kernel, known_wish(instance_dir(args)))
    adopting(args, kernel, desired)
    whole = plan_node(desired, kernel, instance_dir(args))
    planned = aimed_at(args, whole, fleet, record.load(instance_dir(args) / RECORD) if args.target else {})
    look_again(args.source, loaded.digest, planned.count(Action.DELETE), args)
    if args.target:
        return planned, Source(), left_out(whole, planned, args)  # not all of the revision is in force then
    return planned, source_of(loaded, args.source, args), ""


def _run(planned: Plan, kernel: Kernel, args: argparse.Namespace, source: Source, rest: str) -> int:
    """Show the plan and carry it out once that is approved; the exit code. With --auto-approve, the lock is held."""
    style = stdout_style(args)
    about = target(args, planned.desired.node)
    if not planned.changes:
        print(plan_text(planned, style, about, most_shown()))
        if rest:
            print(rest)
        settle_transitions(kernel, instance_dir(args), is_locked=args.auto_approve)
        return BlockedError.exit_code if planned.blocked else 0
    # With --auto-approve each change is shown as it is made; otherwise the whole plan is shown before the question.
    short = [style.dim(f"Plan for {about}"), *concern_lines(planned.concerns, style), summary(planned)]
    if rest:
        say(rest)
    if args.auto_approve:
        say("\n".join(short) + "\n")
    else:
        print(plan_text(planned, style, about, most_shown()), end="\n\n")
    guard(planned, allow_empty=args.allow_empty, max_prune=args.max_prune)
    if not confirm("Make these changes?", args):
        print("Nothing was changed.")
        return 1
    with nullcontext() if args.confirm_within is None else unless_confirmed(args, planned):
        return execute(planned, kernel, args, style, source, is_locked=args.auto_approve)


def _check_source(source: Path) -> None:
    """Raises UsageError unless the source is a directory of manifests or a saved plan."""
    from reconciler.config.listing import SUFFIXES, nearby

    if source.is_file() and source.name.endswith(SUFFIXES):
        hint = f"`lbctl apply {source.parent}` applies the whole directory, and removes objects that no file asks for"
        raise UsageError(f"{source} is a manifest, neither a directory nor a saved plan", hint=hint)
    if not source.exists():
        hint = nearby(source) or "give a directory of manifests, or a plan that `lbctl plan . --out FILE` wrote"
        raise UsageError(f"there is no {source}", hint=hint)


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


def _saved(args: argparse.Namespace, kernel: Kernel) -> Plan:
    """A saved plan, if it is for this node and a new plan equals it. Raises SnapshotError, UsageError,
    PlanStaleError."""
    from reconciler.aim import narrowed
    from reconciler.snapshot import plan_from_json, read

    saved = plan_from_json(read(args.source))
    for name, what in (("env", "environment"), ("ref", "commit"), ("target", "targets")):
        if getattr(args, name):
            raise UsageError(f"a saved plan has its {what} already", hint=f"say --{name} when you plan")
    if difference := saved.target.difference(target(args, args.node or "")):
        raise UsageError(f"{args.source} is a plan for {difference}", hint="make a plan for this one")
    planned = plan_node(saved.desired, kernel, instance_dir(args))
    if saved.keys is not None:
        planned = narrowed(planned, saved.keys, record.load(instance_dir(args) / RECORD))
    _refuse_stale({key for key, _, _ in _steps(planned.changes) ^ _steps(saved.changes)})
    return planned


def _steps(changes: Iterable[Change]) -> set[tuple[Key, Resource | None, Resource | None]]:
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
    moved = {key for key, _, _ in _steps(again.changes) ^ _steps(planned.changes)}
    moved |= again.blocked.keys() ^ planned.blocked.keys()
    _refuse_stale(moved & ({change.key for change in planned.changes} | carriers(planned.desired.resources)))


def _refuse_stale(moved: Collection[Key]) -> None:
    if moved:
        shown = some([str(key) for key in sorted(moved)])
        raise PlanStaleError(f"the node has changed since the plan was made: {shown}", hint="make a new plan")
