# SPDX-License-Identifier: Apache-2.0
"""`lbctl validate`: check manifests, anywhere: no root, no kernel, no bcc."""

from __future__ import annotations

import argparse
from pathlib import Path

from reconciler.cli.common import stdout_style

DESCRIPTION = "Check every manifest below a directory and show all problems at once."
EPILOG = """\
examples:
  lbctl validate .
  lbctl validate examples/configs/nat-tcp --format json

exit codes: 0 clean (warnings allowed), 1 problems, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, nargs="+", help="where the manifests are")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    from reconciler.config.diagnostic import render_json, render_text
    from reconciler.config.load import load

    failed = False
    for directory in args.directory:
        loaded = load(directory)
        failed |= loaded.fleet is None
        if args.format == "json":
            print(render_json(loaded.diagnostics))
            continue
        if loaded.diagnostics:
            print(render_text(loaded.diagnostics, loaded.texts, colour=stdout_style(args).colour))
        if loaded.fleet:
            kinds = {"service": loaded.fleet.services, "pool": loaded.fleet.pools, "node": loaded.fleet.nodes}
            counts = ", ".join(f"{len(found)} {noun}{'' if len(found) == 1 else 's'}" for noun, found in kinds.items())
            print(f"{directory}: valid ({counts})")
    return int(failed)

