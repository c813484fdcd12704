# SPDX-License-Identifier: Apache-2.0
"""`lbctl resume`: the agent goes on after a pause."""

from __future__ import annotations

import argparse

from reconciler.cli.common import instance_dir

DESCRIPTION = """\
End a pause, be it from `lbctl pause` or after a rollback: the agent brings the node to what the manifests say now."""
EPILOG = """\
examples:
  lbctl plan /etc/lbctl && lbctl resume       # see first what it will do

exit codes: 0 done, also if there was no pause; 1 failed, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> int:
    from reconciler import notes
    from reconciler.cli.poke import poke

    pause = notes.read(instance_dir(args), notes.Pause) if instance_dir(args).is_dir() else None
    if pause is None:
        print("The agent was not paused.")
        return 0
    notes.remove(instance_dir(args), notes.Pause)
    poke(args)
    print("The agent goes on.")
    return 0
