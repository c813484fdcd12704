# SPDX-License-Identifier: Apache-2.0
"""`lbctl rollback`: bring the node to a revision that was in force before."""

from __future__ import annotations

import argparse

from reconciler.cli.common import add_node, instance_dir, state_dir

DESCRIPTION = """\
Bring the node to the manifests of an earlier revision, as the history has them; neither the directory nor a repository
is needed. The agent then leaves the node as it is until `lbctl resume`: mend the manifests first."""
EPILOG = """\
examples:
  lbctl rollback                  # to the revision that was in force before the present one
  lbctl rollback 3                # three revisions back
  lbctl rollback 2857cb801de9     # to this one, see `lbctl history`

exit codes: as of `lbctl apply`
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "to", metavar="N|REVISION", nargs="?", default="1", help="how far back, or which digest or commit (1)"
    )
    add_node(parser)
    parser.add_argument("--auto-approve", action="store_true", help="don't ask")


def run(args: argparse.Namespace) -> int:
    from reconciler import notes
    from reconciler.cli.going_back import go_back
    from reconciler.cli.pause import hold
    from reconciler.history import History

    revision = History(state_dir(args)).find(args.to)
    former = notes.read(instance_dir(args), notes.Pause)
    hold(args, notes.Pause(notes.user(), f"rolled back to revision {revision[:12]}"))
    code = 1
    try:
        code = go_back(args, revision)
    finally:
        if code:  # not carried out whole: whoever asked decides
            _restore(args, former)
    notes.remove(instance_dir(args), notes.Unconfirmed)  # whatever waited is behind us
    print("The agent leaves the node as it is until `lbctl resume`.")
    return code


def _restore(args: argparse.Namespace, former: object) -> None:
    from reconciler import notes
    from reconciler.cli.poke import poke

    if former is None:
        notes.remove(instance_dir(args), notes.Pause)
    else:
        notes.write(instance_dir(args), former)
    poke(args)
