# SPDX-License-Identifier: Apache-2.0
"""`lbctl doctor`: what is wrong with this node, and with the network around it. Changes nothing, but sends packets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from reconciler.cli.common import add_env, add_node, add_output, instance_dir, load_fleet, open_kernel, stdout_style
from reconciler.doctor.finding import FORMAT_VERSION, Finding, as_data, as_text
from reconciler.model import Fleet, Role

DESCRIPTION = """\
Look at this node as it is, and at the ways to its endpoints, gateways and clients; say what is wrong, what comes of
it, and the way out. Changes nothing. Sends echo requests to endpoints and gateways, and asks by ARP who else has the
VIPs.
"""
EPILOG = """\
examples:
  lbctl doctor /etc/lbctl
  lbctl doctor /etc/lbctl --node web1 --format json      # on the endpoint web1

exit codes: 0 nothing found; 1 failed: the manifests are not valid, or the node can't be read; 2 wrong usage;
8 something is wrong
"""

FOUND = 8
"""The exit code if something is wrong; no error has it."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="where the manifests are")
    add_node(parser)
    add_env(parser)
    add_output(parser, schema="doctor.v1.json")


def run(args: argparse.Namespace) -> int:
    found = list(dict.fromkeys(_findings(args, load_fleet(args.directory, args))))
    if args.format == "json":
        document = {"format_version": FORMAT_VERSION, "findings": [as_data(each) for each in found]}
        print(json.dumps(document, indent=2, ensure_ascii=True))
    elif found:
        style = stdout_style(args)
        print("\n\n".join(as_text(each, style) for each in found))
    else:
        print("Nothing is wrong, as far as can be seen from here.")
    return FOUND if found else 0


def _findings(args: argparse.Namespace, fleet: Fleet) -> Iterator[Finding]:
    from reconciler.doctor.router import of_router
    from reconciler.doctor.state import of_plan
    from reconciler.doctor.ways import of_ways
    from reconciler.reconcile import desired_of, known_wish, plan_node, view_of

    view = view_of(fleet, args.node)
    kernel = open_kernel(args)
    desired = desired_of(fleet, args.node, kernel, known_wish(instance_dir(args)))
    yield from of_plan(plan_node(desired, kernel, instance_dir(args)))
    if view.node.role is Role.ROUTER:
        yield from of_router(fleet, kernel)
        return
    yield from of_ways(view, kernel, args.netns or "")
