# SPDX-License-Identifier: Apache-2.0
"""`lbctl pause`: the agent leaves the node as it is for a while."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from reconciler.cli.common import instance_dir, stdout_style
from reconciler.cli.duration import seconds
from reconciler.cli.poke import MAX_REASON
from reconciler.errors import LbctlError, UsageError

if TYPE_CHECKING:
    from reconciler.notes import Pause

DESCRIPTION = """\
Have the agent leave the node as it is: it goes on reading the manifests and telling what it would have to do, and
changes nothing. `lbctl apply` and `lbctl rollback` still work. Traffic goes on. A reboot ends a pause."""
EPILOG = """\
examples:
  lbctl pause --for 1h --reason 'tracing a problem with the uplink'
  lbctl pause --reason 'change freeze'          # until `lbctl resume`

exit codes: 0 the agent has heard of it, or none runs: the next one will; 1 failed, 2 wrong usage
"""

PATIENCE_S = 60.0
"""How long the round that is under way may take."""
_POLL_S = 0.1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--for", dest="for_s", metavar="TIME", type=seconds, help="how long, e.g. 30m or 1h")
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why; `lbctl status` shows it")


def run(args: argparse.Namespace) -> int:
    from reconciler import notes

    if not args.reason.strip() or len(args.reason) > MAX_REASON:
        raise UsageError(f"a reason has from 1 to {MAX_REASON} characters")
    until: dict[str, Any] = {}
    if args.for_s:
        until = {"until_s": notes.now_s() + args.for_s, "until": notes.clock_text(args.for_s)}
    pause = notes.Pause(notes.user(), args.reason, **until)
    hears = hold(args, pause)
    told = f"The node is {pause}." + ("" if hears else " No agent runs: the next one will heed it.")
    print(stdout_style(args).fitted(told))
    return 0


def hold(args: argparse.Namespace, pause: Pause) -> bool:
    """Leave the note, and wait until the agent changes nothing more; False if there is none. Raises LbctlError."""
    from reconciler import notes
    from reconciler.agent.control import NoAgentError, ask

    notes.write(instance_dir(args), pause)
    give_up = time.monotonic() + PATIENCE_S
    try:
        next(ask(instance_dir(args), {"ask": "look"}))
        while not next(ask(instance_dir(args), {"ask": "status"}))["paused"]:
            if time.monotonic() >= give_up:
                raise LbctlError(f"the agent is still at work after {PATIENCE_S:g} seconds, and heeds the pause then")
            time.sleep(_POLL_S)
    except (NoAgentError, StopIteration):
        return False
    return True
