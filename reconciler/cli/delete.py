# SPDX-License-Identifier: Apache-2.0
"""`lbctl delete`: remove everything of the instance from this node."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from reconciler.apply import Result
from reconciler.cli.common import (
    confirm,
    instance_dir,
    instance_name,
    most_shown,
    open_kernel,
    say,
    stdout_style,
    target,
)
from reconciler.cli.execute import MOST_MADE, execute
from reconciler.cli.recording import Source, note_down
from reconciler.resource import Desired

DESCRIPTION = """\
Remove everything that lbctl put on this node: VIPs first, then services, programs, maps and pins; settings
get their former values back. What belongs to others is not touched."""
EPILOG = """\
examples:
  lbctl delete
  lbctl --netns lb1 delete --auto-approve

exit codes: 0 done; 1 failed, nothing was removed; 2 wrong usage; 4 and 7 failed in part, see `lbctl apply --help`
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--auto-approve", action="store_true", help="don't ask")


def run(args: argparse.Namespace) -> int:
    from reconciler.agent.single import only_agent
    from reconciler.kernel import netns
    from reconciler.live import with_connections
    from reconciler.lock import apply_lock
    from reconciler.reconcile import plan_node
    from reconciler.render.text import plan_text

    if args.netns and not netns.exists(args.netns) and instance_dir(args).is_dir():
        return _abandon(args)
    style = stdout_style(args)
    kernel = open_kernel(args)
    with only_agent(instance_dir(args)):  # a running agent would put everything back
        with ExitStack() as held:
            if args.auto_approve:
                held.enter_context(apply_lock(instance_dir(args)))
            planned = plan_node(Desired(), kernel, instance_dir(args))
            if not planned.changes:
                print("Nothing of lbctl's is on this node.")
            else:
                planned = replace(planned, live=with_connections(planned.live, kernel))
                most = MOST_MADE if args.auto_approve else None  # who approves it may want to see all of it
                text = plan_text(planned, style, target(args, planned.desired.node), most_shown() or most)
                (say if args.auto_approve else print)(f"{text}\n")
                if not confirm("Remove all of it?", args):
                    print("Nothing was changed.")
                    return 1
                execute(planned, kernel, args, style, Source(removes=True), is_locked=args.auto_approve)
        kernel.remove_instance()
        return 0


def _abandon(args: argparse.Namespace) -> int:
    """Remove an instance whose network namespace is gone."""
    from reconciler.agent.single import only_agent
    from reconciler.kernel.real import RealKernel

    name = instance_name(args)
    kernel = RealKernel(name, Path(args.run_dir), netns=args.netns)
    with only_agent(instance_dir(args)):
        print(f"The network namespace {args.netns} is gone, and with it all that instance {name} had there.")
        if not confirm("Remove its maps, pins and notes, too?", args):
            print("Nothing was changed.")
            return 1
        kernel.abandon()
        note_down(args, Source(removes=True), Result())
        print(f"Instance {name} is removed.")
        return 0
