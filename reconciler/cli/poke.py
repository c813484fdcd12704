# SPDX-License-Identifier: Apache-2.0
"""Notes that verbs leave for the agent: that it reads them now, and how long their reasons are."""

from __future__ import annotations

import argparse
import contextlib

from reconciler.cli.common import instance_dir
from reconciler.errors import LbctlError

MAX_REASON = 200


def poke(args: argparse.Namespace) -> None:
    """Have the agent, if there is one, read the notes now."""
    from reconciler.agent.control import ask

    with contextlib.suppress(LbctlError):
        list(ask(instance_dir(args), {"ask": "look"}))
