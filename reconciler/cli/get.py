# SPDX-License-Identifier: Apache-2.0
"""`lbctl get`: the services, endpoints and so on of the node, with live counters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from reconciler.cli.common import instance_dir, open_kernel, stdout_style
from reconciler.errors import UsageError
from reconciler.kernel.port import Kernel
from reconciler.render.table import Row, as_json, as_yaml, table

DESCRIPTION = "Show what the node holds, straight from its maps. Needs no manifests and no agent."
EPILOG = """\
examples:
  lbctl get services
  lbctl get endpoints -o wide
  lbctl get health                # what checks say: state, since when, the last error, when the next one is
  lbctl get health --history      # who went up and down lately
  lbctl get checker               # the process that checks: how many, how late
  lbctl get drains
  lbctl get announcements         # what routers hear of this node's VIPs, and what speaks against them
  lbctl get flows -o json
  lbctl get transitions           # slots of rings that changed hands, and until when that matters
  lbctl get verdicts              # packets by what became of them, drops by reason

states of endpoints:
  usable    gets new connections; SHARE says how many, HEALTH what checks say
  draining  gets no new ones, open ones go on: drained, down, or of weight 0
  disabled  gets nothing
  retired   is in no manifest any more; what was open on it goes on
OPEN is `-` where nobody counts: direct server return remembers no flows.

exit codes: 0 done, 1 failed, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    shown = tuple(name for name in _TABLES if name != "history")
    parser.add_argument("what", metavar="what", choices=shown, help=f"one of {', '.join(shown)}")
    parser.add_argument("--history", action="store_true", help="with `health`: the latest transitions")
    parser.add_argument("-o", "--output", choices=("table", "wide", "json", "yaml"), default="table")


def run(args: argparse.Namespace) -> int:
    what = "history" if args.history else args.what
    if args.history and args.what != "health":
        raise UsageError(f"there is no history of {args.what}", hint="lbctl get health --history")
    rows_of, columns, wide = _TABLES[what]
    rows = rows_of(Node(open_kernel(args), instance_dir(args)))
    if args.output == "json":
        print(as_json(rows))
    elif args.output == "yaml":
        print(as_yaml(rows))
    else:
        shown = columns + wide if args.output == "wide" else columns
        nothing = _NOTHING.get(what, f"There are no {args.what} on this node.")
        print(table(rows, shown, nothing, stdout_style(args).columns))
    return 0


@dataclass(frozen=True, slots=True)
class Node:
    """Where rows come from: maps, and the files of the instance."""

    kernel: Kernel
    directory: Path


def _services(node: Node) -> list[Row]:
    from reconciler.readings.tables import services

    return [
        {
            "service": s.row.id, "mode": s.row.mode, "algorithm": s.row.algorithm, "ring": s.row.ring,
            "endpoints": s.endpoints, **asdict(s.connections), **asdict(s.traffic),
        }
        for s in services(node.kernel)
    ]  # fmt: skip


def _endpoints(node: Node) -> list[Row]:
    from reconciler.readings.health import health_of_endpoints
    from reconciler.readings.tables import endpoints

    checked = health_of_endpoints(node.directory)
    return [
        {
            "endpoint": e.numbered.row.id, "state": e.state, "health": checked.get(e.numbered.row.id),
            "share": ", ".join(sorted({f"{share:.1%}" for share in e.shares.values()})) or "none",
            "rings": ", ".join(f"{ring} {share:.1%}" for ring, share in sorted(e.shares.items())),
            **asdict(e.connections), "number": e.numbered.number, **asdict(e.traffic),
        }
        for e in endpoints(node.kernel)
    ]  # fmt: skip


def _flows(node: Node) -> list[Row]:
    from reconciler.readings.flows import flows

    return [asdict(flow) for flow in sorted(flows(node.kernel), key=lambda flow: (flow.service, flow.client))]


def _transitions(node: Node) -> list[Row]:
    from reconciler.readings.transitions import transitions

    return [{**asdict(t), "former": ", ".join(t.former)} for t in transitions(node.kernel)]


def _verdicts(node: Node) -> list[Row]:
    from reconciler.readings.counters import verdicts

    return [
        {"verdict": v.name.lower().replace("_", " "), "packets": n, "meaning": v.meaning}
        for v, n in sorted(verdicts(node.kernel).items())
    ]


def _health(node: Node) -> list[Row]:
    from reconciler.readings.health import health

    return [asdict(each) for each in health(node.directory)]


def _history(node: Node) -> list[Row]:
    from reconciler.readings.health import history

    return [asdict(each) for each in history(node.directory)]


def _drains(node: Node) -> list[Row]:
    from reconciler.readings.health import drained

    return [asdict(each) for each in drained(node.directory)]


def _announcements(node: Node) -> list[Row]:
    from reconciler.readings.announcements import announcements

    return [asdict(each) for each in announcements(node.kernel, node.directory)]


def _checker(node: Node) -> list[Row]:
    from reconciler.readings.health import checker

    return [asdict(each) for each in checker(node.directory)]


_NOTHING = {
    "checker": "Nobody checks on this node: no agent runs, or no pool has a healthCheck.",
    "health": "No pool of this node has a healthCheck, or no agent has run here yet.",
    "history": "No endpoint has gone up or down since an agent first ran here.",
    "drains": "Nothing is drained on this node.",
    "announcements": "This node announces no VIP.",
}
_TRAFFIC = ["connections", "request_packets", "reply_packets"]
_BYTES = ["request_bytes", "reply_bytes"]
_TABLES: dict[str, tuple[Callable[[Node], list[Row]], list[str], list[str]]] = {
    "services": (
        _services,
        ["service", "mode", "algorithm", "endpoints", "open", "connections"],
        ["request_packets", "reply_packets", "half_open", "ring", *_BYTES],
    ),
    "endpoints": (
        _endpoints,
        ["endpoint", "state", "health", "share", "open", *_TRAFFIC],
        ["half_open", "number", "rings", *_BYTES],
    ),
    "health": (
        _health,
        ["endpoint", "pool", "state", "since_s", "streak", "latency_ms", "next_s", "error"],
        ["check", "vip", "checked_s", "share", "falls", "services"],
    ),
    "history": (_history, ["ago_s", "endpoint", "pool", "state", "error"], []),
    "checker": (_checker, ["pid", "targets", "in_flight", "late_p99_ms", "checks", "suspects_s"], []),
    "drains": (_drains, ["endpoint", "pool", "since_s", "ends_s", "deadline_s", "by", "reason"], []),
    "announcements": (_announcements, ["vip", "state", "metric", "why"], ["table"]),
    "flows": (_flows, ["client", "service", "endpoint", "state", "idle_s"], []),
    "transitions": (_transitions, ["ring", "moving", "slots", "began_s", "used_s", "settles_s"], ["former"]),
    "verdicts": (_verdicts, ["verdict", "packets"], ["meaning"]),
}
