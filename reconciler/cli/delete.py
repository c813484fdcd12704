# SPDX-License-Identifier: Apache-2.0
"""`lbctl delete`: take everything of ours off this node."""

from __future__ import annotations

import argparse
from dataclasses import replace

from reconciler.cli.apply import execute
from reconciler.cli.common import confirm, instance_dir, open_kernel, stdout_style
from reconciler.resource import Desired

DESCRIPTION = """\
Remove everything that lbctl put on this node: VIPs first, then services, programs, maps and pins; settings
get their former values back. What belongs to others is not touched."""
EPILOG = """\
examples:
  lbctl delete
  lbctl --netns lb1 delete --auto-approve

exit codes: 0 done, 1 failed
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--auto-approve", action="store_true", help="don't ask")


def run(args: argparse.Namespace) -> int:
    from reconciler.agent.single import only_agent
    from reconciler.live import with_connections
    from reconciler.reconcile import plan_node
    from reconciler.render.text import plan_text

    style = stdout_style(args)
    kernel = open_kernel(args)
    with only_agent(instance_dir(args)):  # an agent would put it all back
        planned = plan_node(Desired(), kernel, instance_dir(args))
        if not planned.changes:
            print("Nothing of lbctl's is on this node.")
        else:
            planned = replace(planned, live=with_connections(planned.live, kernel))
            print(plan_text(planned, style), end="\n\n")
            if not confirm("Remove all of it?", args):
                print("Nothing was changed.")
                return 1
            execute(planned, kernel, args, style)
        kernel.remove_instance()
        return 0
