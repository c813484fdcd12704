# SPDX-License-Identifier: Apache-2.0
"""`lbctl status`: what the instance's agent says about itself and the node."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from reconciler import progress
from reconciler.cli.common import add_json, add_output, from_agent, stdout_style
from reconciler.cli.duration import seconds
from reconciler.errors import LbctlError

DESCRIPTION = """\
Ask the agent how the node stands: in sync with the manifests or not, healthy or not, at which revision, what
is wrong at which line, and what changed last. For root and the group of `lbctl run --group`."""
EPILOG = """\
examples:
  lbctl status
  lbctl status --json
  git pull && lbctl status --wait synced --timeout 1m     # the files as they are now are in force

sync:
  Synced     the node holds what the newest manifests ask for
  OutOfSync  it does not yet, or can't
  Unknown    the newest manifests can't be used: see the conditions; or none were read yet
health:
  Healthy, Progressing (changes are under way or wait for something), Degraded (see the conditions)

exit codes: 0 answered, and what --wait asks for is so; 1 no agent answers, or not within --timeout; 2 wrong usage
"""

_WAITS = {"synced": ("sync", "Synced"), "healthy": ("health", "Healthy")}
_POLL_S = 0.1


def arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser, schema="status.v1.json")
    add_json(parser)
    parser.add_argument(
        "--wait", choices=tuple(_WAITS), help="have the files looked at, and wait until the node is like that"
    )
    parser.add_argument(
        "--timeout", metavar="TIME", type=seconds, default="1m", help="how long to wait, e.g. 30s or 5m (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from reconciler.render.status import status_text

    if args.wait:
        with progress.step(f"waiting until the node is {args.wait}"):
            status = _waited(args)
    else:
        status = from_agent(args, {"ask": "status"})
    print(json.dumps(status, indent=2) if args.format == "json" else status_text(status, stdout_style(args)))
    return 0


def _waited(args: argparse.Namespace) -> dict[str, Any]:
    """The status as soon as the agent has read the files as they are now and the node is as it is waited for. An agent
    that is only starting is waited for, too."""
    from reconciler.agent.control import NoAgentError

    field, word = _WAITS[args.wait]
    give_up = time.monotonic() + args.timeout
    since_s: float | None = None
    while True:
        is_late = time.monotonic() >= give_up
        try:
            if since_s is None:
                since_s = float(from_agent(args, {"ask": "look"})["now_s"])
            status = from_agent(args, {"ask": "status"})
        except NoAgentError:
            if is_late:
                raise
        else:
            if (status["read_s"] or 0) >= since_s and status[field] == word:
                return status
            if is_late:
                conditions = "; ".join(condition["message"].splitlines()[0] for condition in status["conditions"][:3])
                raise LbctlError(
                    f"after {args.timeout} seconds the node is {status['sync']} and {status['health']}",
                    hint=conditions or "`lbctl status` shows more, `lbctl events --follow` what is being done",
                )
        time.sleep(_POLL_S)
