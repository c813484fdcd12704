# SPDX-License-Identifier: Apache-2.0
"""Draining a whole balancer (`drain --balancer`): routers turn to others, and what is left of its traffic is waited
for."""

from __future__ import annotations

import argparse
import time
from typing import Any

from reconciler import progress
from reconciler.cli.common import instance_dir, load_fleet, open_kernel, say
from reconciler.cli.poke import MAX_REASON, poke
from reconciler.errors import LbctlError, UsageError
from reconciler.kernel.port import Kernel

CAUGHT_UP_S, LOOK_S = 60.0, 0.1
QUIET_S = 5.0
"""Without a packet for so long, the balancer counts as quiet."""
DEADLINE = 3
_MARGIN_S = 0.1
"""Notes are written by another clock."""


def leave(args: argparse.Namespace) -> int:
    """Leave the note that routers are to turn to others. Raises LbctlError."""
    from reconciler import notes
    from reconciler.agent.single import is_running

    if len(args.reason) > MAX_REASON:
        raise UsageError(f"a reason has up to {MAX_REASON} characters")
    kernel, directory = open_kernel(args), instance_dir(args)
    if not kernel.announced_routes():
        raise LbctlError("this node announces no VIP", hint="`announce: {}` in its Node, and a routing daemon")
    until: dict[str, Any] = {}
    if args.for_s:
        until = {"until_s": notes.now_s() + args.for_s, "until": notes.clock_text(args.for_s)}
    note = notes.Leaving(notes.user(), args.reason, notes.now_s(), **until)
    notes.write(directory, note)
    say(f"This balancer is drained {note}.")
    if not is_running(directory):
        say("No agent runs here: `lbctl apply` tells routers, waits for the grace time, and withdraws the VIPs.")
        return 0
    poke(args)
    if not args.wait:
        return 0
    with progress.step("waiting until routers have turned to others"):
        return _wait(kernel, args.deadline_s)


def stay(args: argparse.Namespace) -> int:
    """Take the note away. Raises LbctlError."""
    from reconciler import notes
    from reconciler.agent.single import is_running

    open_kernel(args)
    if not notes.remove(instance_dir(args), notes.Leaving):
        raise LbctlError("this balancer is not drained", hint="`lbctl get drains` shows what is")
    say("Routers hear of the VIPs of this balancer again.")
    if not is_running(instance_dir(args)):
        say("No agent runs here: `lbctl apply` tells them.")
    poke(args)
    return 0


def wait_out_grace(args: argparse.Namespace) -> bool:
    """After an `apply`: whether this balancer is drained and its VIPs still have to be withdrawn, which no agent does
    here. Returns once it is time for that. Raises LbctlError."""
    from reconciler.agent.single import is_running
    from reconciler.wish.known import leaving

    directory = instance_dir(args)
    note = leaving(directory)
    if note is None or is_running(directory):
        return False
    from reconciler.reconcile import view_of

    announce = view_of(load_fleet(args.source, args), args.node).node.announce
    left_s = note.since_s + announce.grace_s - time.monotonic() if announce else 0.0
    if left_s <= 0:
        return False
    if args.confirm_within is not None:
        say(f"Routers turn to other balancers; `lbctl apply` withdraws the VIPs in {left_s:.0f} s.")
        return False
    say(f"Routers turn to other balancers; in {left_s:.0f} s the VIPs are withdrawn.")
    with progress.step("waiting until routers have turned to others"):
        time.sleep(left_s + _MARGIN_S)
    return True


def _wait(kernel: Kernel, deadline_s: float | None) -> int:
    """Wait until no VIP is announced and no packet comes any more; the exit code. Raises LbctlError."""
    from reconciler.readings.tables import services

    began_s = quiet_since_s = time.monotonic()
    packets = -1
    while True:
        now_s = time.monotonic()
        if deadline_s is not None and now_s - began_s >= deadline_s:
            say("the deadline has passed, and packets still come")
            return DEADLINE
        if kernel.announced_routes():
            quiet_since_s = now_s
        found = sum(service.traffic.request_packets for service in services(kernel))
        if found != packets:
            packets, quiet_since_s = found, now_s
        if now_s - quiet_since_s >= QUIET_S:
            say(f"withdrawn, and quiet, after {now_s - began_s:.0f} s")
            return 0
        time.sleep(LOOK_S)
