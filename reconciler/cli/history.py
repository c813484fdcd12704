# SPDX-License-Identifier: Apache-2.0
"""`lbctl history`: what was applied to this node, when, by whom, with which result."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from reconciler.cli.common import state_dir, stdout_style
from reconciler.errors import UsageError

if TYPE_CHECKING:
    from reconciler.history import Entry

DESCRIPTION = """\
List what was applied to this node, the newest first: by the agent, by `lbctl apply`, `rollback` and `delete`. The
history is a file in the state directory; if it is lost, the node is as it is."""
EPILOG = """\
examples:
  lbctl history
  lbctl history 42              # one entry with its changes
  lbctl history --last 100 --json
  lbctl rollback                # back to the revision before

exit codes: 0 done, 1 failed, 2 wrong usage
"""

FORMAT_VERSION = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", metavar="NUMBER", nargs="?", type=int, help="show this entry")
    parser.add_argument("--last", metavar="N", type=int, default=20, help="show so many (%(default)s)")
    parser.add_argument("--json", action="store_true", help="as JSON, see schema/output/history.v1.json")


def run(args: argparse.Namespace) -> int:
    from reconciler.history import History
    from reconciler.render.table import table
    from reconciler.safe import block

    history = History(state_dir(args))
    if args.number is not None:
        entry = history.entry(args.number)
        if entry is None:
            raise UsageError(f"the history has no entry {args.number}", hint="`lbctl history` lists them")
        found = [entry]
    else:
        found = history.entries(max(1, args.last))
    style = stdout_style(args)
    if args.json:
        document = {"format_version": FORMAT_VERSION, "current": history.current(), "entries": list(map(_json, found))}
        print(json.dumps(document, indent=2))
    elif args.number is not None:
        print(table(list(map(_row, found)), _COLUMNS, "", style.columns))
        text = [found[0].message] if found[0].message else []
        print("\n".join(block(change) for change in [*text, "", *found[0].lines]))
        if len(found[0].lines) < sum(found[0].counts):
            print(f"only the first {len(found[0].lines)} changes are named")
    else:
        print(table(list(map(_row, found)), _COLUMNS, "Nothing was applied yet.", style.columns))
    return 0


_COLUMNS = ("number", "time", "revision", "changes", "result", "who")


def _row(entry: Entry) -> dict[str, str | int]:
    return {
        "number": entry.number,
        "time": datetime.fromtimestamp(entry.time).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        "revision": entry.revision[:12] or "-",
        "changes": "+{} ~{} -{}".format(*entry.counts),
        "result": entry.result,
        "who": entry.who,
    }


def _json(entry: Entry) -> dict[str, Any]:
    return asdict(entry) | {"counts": entry.counts._asdict(), "lines": list(entry.lines)}
