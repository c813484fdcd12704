# SPDX-License-Identifier: Apache-2.0
"""`lbctl apply`: make the changes of a directory or of a saved plan."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import record
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
from reconciler.cli.duration import seconds
from reconciler.cli.execute import execute, refuse_stale, steps
from reconciler.cli.leaving import wait_out_grace
from reconciler.cli.recording import Source, source_of
from reconciler.errors import BlockedError, UsageError
from reconciler.kernel.port import Kernel
from reconciler.live import with_connections
from reconciler.lock import apply_lock
from reconciler.model import Fleet
from reconciler.plan import Plan, guard
from reconciler.reconcile import RECORD, desired_of, known_wish, plan_node, settle_transitions
from reconciler.render.text import concern_lines, plan_text, summary
from reconciler.resource import Action

if TYPE_CHECKING:
    from reconciler.config.load import Loaded

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
    refuse_stale({key for key, _, _ in steps(planned.changes) ^ steps(saved.changes)})
    return planned
