# SPDX-License-Identifier: Apache-2.0
"""`lbctl plan`: show the changes that `apply` would make, and their effects on traffic. Writes nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reconciler.cli.common import (
    add_adopt,
    add_env,
    add_node,
    add_output,
    add_ref,
    add_targets,
    adopting,
    aimed_at,
    from_agent,
    instance_dir,
    left_out,
    load_at_rest,
    look_again,
    may_only_ask,
    most_shown,
    open_kernel,
    stdout_style,
    target,
)
from reconciler.errors import BlockedError, LbctlError, UsageError
from reconciler.files import write_output
from reconciler.model import Fleet
from reconciler.plan import Plan
from reconciler.resource import Action, Key, Live
from reconciler.target import Target

DESCRIPTION = "Compare the manifests with the node and show what `apply` would change. Changes nothing."
EPILOG = """\
examples:
  lbctl plan /etc/lbctl
  lbctl plan . --node lb1 --live node-lb1.json --format markdown   # in CI, with no kernel at hand
  lbctl plan . --out change.plan && lbctl apply change.plan
  lbctl plan . --target service/web --target 'ring mail/maglev'

exit codes: 0 done; 1 failed; 2 wrong usage; 6 blocked: the node, as it is, can't hold all of it

with --detailed-exitcode: 0 nothing to do; 1 failed, or wrong usage; 2 changes; 6 blocked
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="where the manifests are")
    add_node(parser)
    add_env(parser)
    add_ref(parser)
    add_targets(parser)
    add_adopt(parser)
    parser.add_argument("--live", metavar="FILE", help="compare with a snapshot (see `export`), or with `empty`")
    add_output(parser, "markdown", schema="plan.v2.json")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the plan there, for `lbctl apply FILE`")
    parser.add_argument("--detailed-exitcode", action="store_true", help="exit with 2 if there are changes")


def run(args: argparse.Namespace) -> int:
    from reconciler.dataplane.description import own_layout
    from reconciler.snapshot import plan_to_json

    if args.adopt and (args.live or args.out):
        raise UsageError("--adopt is for a plan of this node that is shown", hint="lbctl apply DIR --adopt")
    fleet, digest = load_at_rest(args.directory, args)
    whole, applied = _plan(args, fleet)
    planned = aimed_at(args, whole, fleet, applied)
    if not args.live:
        look_again(args.directory, digest, planned.count(Action.DELETE), args)
    about = Target(planned.desired.node, layout=own_layout()) if args.live else target(args, planned.desired.node)
    if args.out:
        _write(args.out, json.dumps(plan_to_json(planned, about)))
    if args.format == "json":
        from reconciler.render.table import as_json

        print(as_json(plan_to_json(planned, about)))
    elif args.format == "markdown":
        from reconciler.render.markdown import plan_markdown

        print(plan_markdown(planned, planned.desired.node), end="")
    else:
        from reconciler.render.text import plan_text

        print(plan_text(planned, stdout_style(args), about, most_shown()))
        if rest := left_out(whole, planned, args):
            print(rest)
    if planned.blocked:
        return BlockedError.exit_code
    return 2 if args.detailed_exitcode and planned.changes else 0


def _plan(args: argparse.Namespace, fleet: Fleet) -> tuple[Plan, Mapping[Key, str]]:
    """The whole plan, and the fingerprints of what was applied last."""
    from reconciler import record
    from reconciler.live import with_connections
    from reconciler.plan import plan
    from reconciler.reconcile import RECORD, desired_of, known_wish, plan_node
    from reconciler.snapshot import known_from_json, live_from_json, read
    from reconciler.wish.wish import Wish

    if args.live == "empty":
        return plan(desired_of(fleet, args.node, Live()), Live()), {}
    if args.live or may_only_ask(args):
        from reconciler.health.store import clocks

        snapshot = read(Path(args.live)) if args.live else from_agent(args, {"ask": "export"})
        live = live_from_json(snapshot)
        return plan(desired_of(fleet, args.node, live, Wish(known_from_json(snapshot, clocks()))), live), {}
    kernel = open_kernel(args)
    wish = known_wish(instance_dir(args))
    desired = desired_of(fleet, args.node, kernel, wish)
    adopting(args, kernel, desired)
    planned = plan_node(desired, kernel, instance_dir(args))
    planned = replace(planned, live=with_connections(planned.live, kernel))
    return planned, record.load(instance_dir(args) / RECORD) if args.target else {}


def _write(path: Path, text: str) -> None:
    try:
        write_output(path, text.encode())
    except OSError as error:
        raise LbctlError(f"{path} can't be written: {error.strerror}") from error
