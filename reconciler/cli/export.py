# SPDX-License-Identifier: Apache-2.0
"""`lbctl export`: a snapshot of live state."""

from __future__ import annotations

import argparse
from pathlib import Path

from reconciler.cli.common import add_env, add_node, from_agent, instance_dir, load_fleet, may_only_ask, open_kernel
from reconciler.render.table import as_json

DESCRIPTION = """\
Write a snapshot of what the node holds as JSON, for `plan --live` on a laptop or in CI. With manifests, the
settings that they ask for and the addresses that stand in their way are part of it."""
EPILOG = """\
examples:
  lbctl export /etc/lbctl > node-lb1.json
  lbctl plan . --node lb1 --live node-lb1.json

exit codes: 0 done, 1 failed, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, nargs="?", help="where the manifests are")
    add_node(parser)
    add_env(parser)


def run(args: argparse.Namespace) -> int:
    if may_only_ask(args):
        print(as_json(from_agent(args, {"ask": "export"})))
        return 0
    from reconciler.health.store import clocks
    from reconciler.live import read_node, with_connections
    from reconciler.reconcile import RECORD, desired_of
    from reconciler.resource import Desired
    from reconciler.snapshot import known_to_json, live_to_json
    from reconciler.wish.known import known
    from reconciler.wish.wish import Wish

    fleet = load_fleet(args.directory, args) if args.directory else None
    kernel = open_kernel(args)
    found = known(instance_dir(args), RECORD)
    desired = desired_of(fleet, args.node, kernel, Wish(found)) if fleet else Desired()
    live = with_connections(read_node(kernel, desired), kernel)
    print(as_json(live_to_json(live) | {"endpoints": known_to_json(found, clocks())}))
    return 0
