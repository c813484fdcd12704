# SPDX-License-Identifier: Apache-2.0
"""`lbctl history`: what was applied to this node, when, by whom, with which result."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from reconciler.cli.common import add_json, add_output, from_agent, may_only_ask, state_dir, stdout_style
from reconciler.render.style import Style

DESCRIPTION = """\
List what was applied to this node, the newest first: by the agent, by `lbctl apply`, `rollback` and `delete`. The
history is a file in the state directory; if it is lost, the node is as it is. A revision is shown as the commit that
it was read from, or, of files, as their digest."""
EPILOG = """\
examples:
  lbctl history
  lbctl history 42              # one entry with its changes
  lbctl history --last 100 --json
  lbctl rollback                # back to the revision before

exit codes: 0 done, 1 failed, 2 wrong usage
"""

def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", metavar="NUMBER", nargs="?", type=int, help="show this entry")
    parser.add_argument("--last", metavar="N", type=int, default=20, help="show so many (%(default)s)")
    add_output(parser, schema="history.v1.json")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from reconciler.history import History, document
    from reconciler.render.table import table
    from reconciler.safe import block

    if may_only_ask(args):
        told = from_agent(args, {"ask": "history", "number": args.number, "last": args.last})
    else:
        told = document(History(state_dir(args)), args.number, args.last)
    style, rows = stdout_style(args), list(map(_row, told["entries"]))
    if args.format == "json":
        print(json.dumps(told, indent=2))
    elif args.number is not None:
        [entry] = told["entries"]
        print(table(rows, _COLUMNS, "", style.columns))
        text = [entry["message"]] if entry["message"] else []
        print("\n".join(_fitted(block(change), style) for change in [*text, "", *entry["lines"]]))
        if len(entry["lines"]) < sum(entry["counts"].values()):
            print(f"only the first {len(entry['lines'])} changes are named")
    else:
        print(table(rows, _COLUMNS, "Nothing was applied yet.", style.columns))
    return 0


_COLUMNS = ("number", "time", "revision", "changes", "result", "who")


def _fitted(change: str, style: Style) -> str:
    """A change whose place stands at the end of its line if that fits, else behind it."""
    if style.columns is None or len(change) <= style.columns:
        return change
    return style.fitted(re.sub(r"(?<=\S) {3,}", "  ", change), "    ")


def _row(entry: Mapping[str, Any]) -> dict[str, str | int]:
    return {
        "number": entry["number"],
        "time": datetime.fromtimestamp(entry["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        "revision": (entry["commit"] or entry["revision"])[:12] or "-",
        "changes": "+{added} ~{changed} -{removed}".format(**entry["counts"]),
        "result": entry["result"],
        "who": entry["who"],
    }
