# SPDX-License-Identifier: Apache-2.0
"""`lbctl undrain`: put endpoints back into service that were drained."""

from __future__ import annotations

import argparse
import time

from reconciler.cli.common import instance_dir, open_kernel, say
from reconciler.cli.drain import add_what, check_what
from reconciler.cli.leaving import stay
from reconciler.errors import LbctlError

DESCRIPTION = "End drains: the endpoints get new connections again, unless the manifests or checks say otherwise."
EPILOG = """\
examples:
  lbctl undrain 10.2.0.11            # ends the drains of it in each pool, too
  lbctl undrain web/10.2.0.11:8080
  lbctl undrain --balancer           # routers hear of its VIPs again

exit codes: 0 done, 1 nothing of it was drained, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_what(parser)


def run(args: argparse.Namespace) -> int:
    from reconciler.agent.single import is_running
    from reconciler.readings.draining import chosen
    from reconciler.wish import drains

    check_what(args)
    if args.balancer:
        return stay(args)
    kernel, directory = open_kernel(args), instance_dir(args)
    now_s = time.time()
    on = [drain for drain in drains.read(directory / drains.FILE) if drain.is_on(now_s)]
    places, before = chosen(kernel, directory, args.what, on), len(on)

    def without(found: drains.Drains) -> drains.Drains:
        for place in places:
            found = drains.ended(found, place.pool, place.address, place.port, now_s)
        return found

    after = sum(drain.is_on(now_s) for drain in drains.change(directory / drains.FILE, without))
    if before == after:
        raise LbctlError(f"{args.what} is not drained", hint="`lbctl get drains` shows what is, and in which pool")
    say(f"{before - after} drain{'s end' if before - after > 1 else ' ends'} now")
    if not is_running(directory):
        say("No agent runs here: `lbctl apply` puts it back.")
    return 0
