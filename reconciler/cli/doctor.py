# SPDX-License-Identifier: Apache-2.0
"""`lbctl doctor`: what is wrong with this node, and with the network around it. Changes nothing, but sends packets."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from reconciler import progress
from reconciler.cli.common import (
    add_env,
    add_node,
    add_output,
    from_agent,
    instance_dir,
    load_fleet,
    may_only_ask,
    open_kernel,
    stdout_style,
)
from reconciler.doctor.finding import FORMAT_VERSION, FOUND, Finding, as_data, as_texts
from reconciler.errors import LbctlError
from reconciler.model import Address, Fleet, Protocol, Service, place_of
from reconciler.render.style import Style
from reconciler.safe import line

DESCRIPTION = """\
Look at this node as it is, and at the ways to its endpoints, gateways and clients; say what is wrong, what comes of
it, and the way out. Changes nothing. Sends echo requests to endpoints and gateways, and asks by ARP who else has the
VIPs.
"""
EPILOG = """\
examples:
  lbctl doctor /etc/lbctl
  lbctl doctor /etc/lbctl --from 198.51.100.7            # a request's way, as far as this node has to do with it
  lbctl doctor /etc/lbctl --node web1 --format json      # on the endpoint web1

exit codes: 0 nothing found; 1 failed: the manifests are not valid, or the node can't be read; 2 wrong usage;
8 something is wrong
"""

_CLIENT_PORT = 40_000


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="where the manifests are")
    add_node(parser)
    add_env(parser)
    parser.add_argument(
        "--from", dest="client", metavar="CLIENT", type=ip_address,
        help="tell the way of a request from this address, step by step, in place of looking for what is wrong",
    )  # fmt: skip
    add_output(parser, schema="doctor.v1.json")


def run(args: argparse.Namespace) -> int:
    if may_only_ask(args):
        directory = os.path.abspath(args.directory)  # noqa: PTH100 - keeps links
        asked = {"ask": "doctor", "directory": directory, "from": args.client and str(args.client)}
        told = from_agent(args, asked | {"format": args.format})
        print(told["text"], end="")
        return int(told["code"])
    fleet = load_fleet(args.directory, args)
    if args.client is not None:
        return _walk(args, fleet)
    with progress.step("looking for what is wrong"):
        found = list(dict.fromkeys(_findings(args, fleet)))
    if args.format == "json":
        document = {"format_version": FORMAT_VERSION, "findings": [as_data(each) for each in found]}
        print(json.dumps(document, indent=2, ensure_ascii=True))
    elif found:
        print("\n\n".join(as_texts(found, stdout_style(args))))
    else:
        print("Nothing is wrong, as far as can be seen from here.")
    return FOUND if found else 0


def _findings(args: argparse.Namespace, fleet: Fleet) -> Iterator[Finding]:
    from reconciler.doctor.examine import examine

    return examine(fleet, args.node, open_kernel(args), instance_dir(args), args.netns or "")


def _walk(args: argparse.Namespace, fleet: Fleet) -> int:
    """Print the way of a client's request."""
    from reconciler.cli.explain import answer
    from reconciler.doctor.walk import walk
    from reconciler.reconcile import view_of

    def explained(service: Service, vip: Address, port: int) -> str:
        source, destination = (str(args.client), str(vip))
        if port:
            source, destination = place_of(args.client, _CLIENT_PORT), place_of(vip, port)
        flags = "syn" if service.protocol is Protocol.TCP else None
        asked = {"packet": [source, destination], "proto": service.protocol.value, "flags": flags, "bytes": None}
        asked |= {"interface": None, "format": "text"}
        try:
            return answer(argparse.Namespace(**vars(args) | asked), Style())
        except LbctlError as error:
            return f"{error.message}: {error.hint}" if error.hint else error.message

    print("\n".join(map(line, walk(view_of(fleet, args.node), args.client, open_kernel(args), explained))))
    return 0
