# SPDX-License-Identifier: Apache-2.0
"""`lbctl render`: print the templates of a directory, rendered for an environment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reconciler.cli.common import add_env, shown
from reconciler.config.diagnostic import Severity, in_order, render_text
from reconciler.errors import ConfigError
from reconciler.render.style import Style
from reconciler.safe import SHOWN

DESCRIPTION = """\
Print all manifests of a directory as they are in an environment: templates rendered, others as they were written.
What they say is not checked: `lbctl validate --env` does that."""
EPILOG = """\
examples:
  lbctl render . --env prod
  lbctl render . --env prod > all.yaml && lbctl validate all.yaml

exit codes: 0 done, 1 something can't be read or rendered, 2 wrong usage, 3 a bug in lbctl
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="where the manifests are")
    add_env(parser)


def run(args: argparse.Namespace) -> int:
    from reconciler.config.overlay import rendered
    from reconciler.config.source import read_tree, renamed

    tree = rendered(read_tree(args.directory), args.env)
    if tree.diagnostics:
        named = renamed(tree, args.directory, shown(args.directory))
        colour = Style.for_stream(sys.stderr, args.no_color).colour
        print(render_text(in_order(named.diagnostics), named.texts, colour=colour, most=SHOWN), file=sys.stderr)
    if any(diagnostic.severity is Severity.ERROR for diagnostic in tree.diagnostics):
        raise ConfigError("the manifests can't be rendered")
    for i, file in enumerate(tree.files):
        marker = "" if not i or file.text.startswith("---") else "---\n"
        print(f"{marker}# {file.name}\n{file.text.strip()}")
    return 0
