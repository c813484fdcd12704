# SPDX-License-Identifier: Apache-2.0
"""`lbctl events`: what the instance's agent has done."""

from __future__ import annotations

import argparse
import json

from reconciler.cli.common import add_json, add_output, instance_dir, stdout_style

DESCRIPTION = """\
Show the last events of the agent: changes that it made and why, problems, warnings, and what others asked of it.
It remembers a thousand. For root and the group of `lbctl run --group`."""
EPILOG = """\
examples:
  lbctl events
  lbctl events --last 100 --json
  lbctl events --follow

exit codes: 0 done, 1 no agent answers, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--last", metavar="N", type=int, default=10, help="show so many earlier events (%(default)s)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new ones, until interrupted")
    add_output(parser, schema="event.v1.json")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from reconciler.agent.control import ask
    from reconciler.render.status import event_line

    style = stdout_style(args)
    request = {"ask": "events", "last": args.last, "follow": args.follow}
    for event in ask(instance_dir(args), request, None if args.follow else 10.0):
        print(json.dumps(event) if args.format == "json" else event_line(event, style), flush=True)
    return 0
