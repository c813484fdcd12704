# SPDX-License-Identifier: Apache-2.0
"""`lbctl drain`: take endpoints out of service for a while, without touching git."""

from __future__ import annotations

import argparse
import os
import pwd
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler import progress
from reconciler.cli.common import instance_dir, open_kernel, say
from reconciler.cli.duration import seconds
from reconciler.cli.leaving import leave
from reconciler.errors import LbctlError, UsageError
from reconciler.kernel.port import Kernel

if TYPE_CHECKING:
    from reconciler.readings.draining import Place

DESCRIPTION = """\
Take endpoints out of service for a while: they get no new connections, open ones go on. It needs no edit of the
manifests, ends by itself or with `undrain`, and `plan`, `apply`, `run` and `get` know of it."""
EPILOG = """\
examples:
  lbctl drain 10.2.0.11                       # in all pools that have it
  lbctl drain web/10.2.0.11:8080 --for 30m --reason 'new disk'
  lbctl drain web1 --deadline 10m --wait      # all endpoints of the Node web1; what is open then ends
  lbctl drain --balancer --wait --reason 'new kernel'    # this whole node: routers turn to other balancers
  lbctl get drains

exit codes: 0 done, with --wait: nothing is open any more; 1 failed, or refused since too few endpoints would be
left, or --wait where no agent runs and it is not out yet; 2 wrong usage; 3 with --wait: the deadline has passed, and
connections were still open
"""

CAUGHT_UP_S, LOOK_S = 30.0, 0.05
PACE_S = 1.0
SILENT_S = 60.0
"""Where nobody counts connections, an endpoint that got no packet for so long counts as drained."""
DEADLINE = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    add_what(parser)
    parser.add_argument("--for", dest="for_s", metavar="TIME", type=seconds, help="end by itself after this, e.g. 30m")
    parser.add_argument(
        "--deadline", dest="deadline_s", metavar="TIME", type=seconds, help="what is still open then is ended"
    )
    parser.add_argument("--wait", action="store_true", help="until nothing is open any more, or the deadline")
    parser.add_argument("--reason", metavar="TEXT", default="", help="for others who look")
    parser.add_argument("--force", action="store_true", help="also if fewer than minHealthy would be left")


def add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="ENDPOINT|POOL/ENDPOINT|NODE", nargs="?", help="an address, with or without its port"
    )
    parser.add_argument("--balancer", action="store_true", help="the VIPs that this node announces, in its place")


def run(args: argparse.Namespace) -> int:
    from reconciler.agent.single import is_running
    from reconciler.cli.confirm import held_by
    from reconciler.notes import clock_text
    from reconciler.readings.draining import check_room, chosen, is_out, pools_with
    from reconciler.wish import drains
    from reconciler.wish.drains import Drain

    check_what(args)
    if args.balancer:
        return leave(args)
    kernel = open_kernel(args)
    directory = instance_dir(args)
    places = chosen(kernel, directory, args.what)
    if not args.force:
        check_room(kernel, directory, places)
    pools = pools_with(kernel, directory, places)
    now_s = time.time()
    new = [
        Drain(
            place.address, place.port, place.pool, now_s, None if args.for_s is None else now_s + args.for_s,
            None if args.deadline_s is None else now_s + args.deadline_s, author(), args.reason,
        )
        for place in places
    ]  # fmt: skip
    drains.change(directory / drains.FILE, lambda before: drains.added(before, new, now_s))
    for place in places:
        say(f"{place} is drained" + (f" until {clock_text(args.for_s)}" if args.for_s else ""))
    if not is_running(directory) and not (args.wait and is_out(kernel, places)):
        if args.wait:
            raise LbctlError("there is nothing to wait for: no agent runs here, so it gets new connections still",
                             hint="`lbctl apply` takes it out; then say this again")  # fmt: skip
        say("No agent runs here: `lbctl apply` takes it out.")
        return 0
    give_up_s = time.monotonic() + CAUGHT_UP_S
    while not is_out(kernel, places):
        if held := held_by(directory)[0]:
            raise LbctlError(f"the agent has to leave the node as it is: {held}", hint="it heeds the drain afterwards")
        if time.monotonic() >= give_up_s:
            raise LbctlError(f"the agent has not taken it out within {CAUGHT_UP_S:g} s", hint="see its log")
        time.sleep(LOOK_S)
    if not args.wait:
        return 0
    with progress.step("waiting until nothing is open"):
        code = _wait(kernel, places, pools, args.deadline_s)
    if code == DEADLINE:
        ends = "is ended" if is_running(directory) else "ends with the next `lbctl apply`, as no agent runs here"
        say(f"the deadline has passed; what was still open {ends}")
    return code


def check_what(args: argparse.Namespace) -> None:
    """Raises UsageError unless either an endpoint or the balancer is named."""
    if bool(args.what) is args.balancer:
        hint = "`lbctl get endpoints` shows those that there are"
        raise UsageError("name either an endpoint or --balancer", hint=hint)


def _wait(kernel: Kernel, places: Sequence[Place], pools: Collection[str] | None, deadline_s: float | None) -> int:
    """Wait until nothing is open any more, and say how much is; the exit code."""
    from reconciler.readings.draining import left

    began_s = silent_since_s = time.monotonic()
    packets, said, was_open = -1, "", True
    while True:
        found, now_s = left(kernel, places, pools), time.monotonic()
        if found.packets != packets:
            packets, silent_since_s = found.packets, now_s
        silent_s = now_s - silent_since_s
        is_late = deadline_s is not None and now_s - began_s >= deadline_s
        is_done = not found.open and (found.is_counted or silent_s >= SILENT_S)
        if is_done and not (is_late and was_open):  # at the deadline, what is open is ended
            say(f"drained after {now_s - began_s:.0f} s")
            return 0
        text = f"{found.open:,} open" if found.open is not None else "nobody counts"
        if not found.is_counted:
            text += f"{'; others are not counted' if found.open is not None else ''}; silent for {silent_s:.0f} s"
        if text != said:
            say(text)
            said = text
        was_open = not is_done
        if is_late:
            return DEADLINE
        time.sleep(PACE_S)


def author() -> str:
    """Who is at work here, for others who look."""
    name = os.environ.get("SUDO_USER", "")
    with suppress(KeyError, OSError):
        name = name or pwd.getpwuid(os.getuid()).pw_name
    return name
