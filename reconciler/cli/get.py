# SPDX-License-Identifier: Apache-2.0
"""`lbctl get`: the services, endpoints and so on of the node, with live counters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

from reconciler.cli.common import open_kernel, stdout_style
from reconciler.kernel.port import Kernel
from reconciler.render.table import Row, as_json, as_yaml, table

DESCRIPTION = "Show what the node holds, straight from its maps. Needs no manifests and no agent."
EPILOG = """\
examples:
  lbctl get services
  lbctl get endpoints -o wide
  lbctl get flows -o json
  lbctl get transitions           # slots of rings that changed hands, and until when that matters
  lbctl get verdicts              # packets by what became of them, drops by reason

states of endpoints:
  usable    gets new connections
  draining  gets no new ones, open ones go on: drained, or of weight 0
  disabled  gets nothing
  retired   is in no manifest any more; what was open on it goes on
OPEN is `-` where nobody counts: direct server return remembers no flows.

exit codes: 0 done, 1 failed, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=tuple(_TABLES), help="what to show")
    parser.add_argument("-o", "--output", choices=("table", "wide", "json", "yaml"), default="table")


def run(args: argparse.Namespace) -> int:
    rows_of, columns, wide = _TABLES[args.what]
    rows = rows_of(open_kernel(args))
    if args.output == "json":
        print(as_json(rows))
    elif args.output == "yaml":
        print(as_yaml(rows))
    else:
        shown = columns + wide if args.output == "wide" else columns
        print(table(rows, shown, f"There are no {args.what} on this node.", stdout_style(args).columns))
    return 0


def _services(kernel: Kernel) -> list[Row]:
    from reconciler.readings.tables import services

    return [
        {
            "service": s.row.id, "mode": s.row.mode, "algorithm": s.row.algorithm, "ring": s.row.ring,
            "endpoints": s.endpoints, **asdict(s.connections), **asdict(s.traffic),
        }
        for s in services(kernel)
    ]  # fmt: skip


def _endpoints(kernel: Kernel) -> list[Row]:
    from reconciler.readings.tables import endpoints

    return [
        {
            "endpoint": e.numbered.row.id, "state": e.state, **asdict(e.connections),
            "number": e.numbered.number, **asdict(e.traffic),
        }
        for e in endpoints(kernel)
    ]  # fmt: skip


def _flows(kernel: Kernel) -> list[Row]:
    from reconciler.readings.flows import flows

    return [asdict(flow) for flow in sorted(flows(kernel), key=lambda flow: (flow.service, flow.client))]


def _transitions(kernel: Kernel) -> list[Row]:
    from reconciler.readings.transitions import transitions

    return [{**asdict(t), "former": ", ".join(t.former)} for t in transitions(kernel)]


def _verdicts(kernel: Kernel) -> list[Row]:
    from reconciler.readings.counters import verdicts

    return [
        {"verdict": v.name.lower().replace("_", " "), "packets": n, "meaning": v.meaning}
        for v, n in sorted(verdicts(kernel).items())
    ]


_TRAFFIC = ["connections", "request_packets", "reply_packets"]
_BYTES = ["request_bytes", "reply_bytes"]
_TABLES: dict[str, tuple[Callable[[Kernel], list[Row]], list[str], list[str]]] = {
    "services": (
        _services,
        ["service", "mode", "algorithm", "endpoints", "open", "connections"],
        ["request_packets", "reply_packets", "half_open", "ring", *_BYTES],
    ),
    "endpoints": (_endpoints, ["endpoint", "state", "open", *_TRAFFIC], ["half_open", "number", *_BYTES]),
    "flows": (_flows, ["client", "service", "endpoint", "state", "idle_s"], []),
    "transitions": (_transitions, ["ring", "moving", "slots", "began_s", "used_s", "settles_s"], ["former"]),
    "verdicts": (_verdicts, ["verdict", "packets"], ["meaning"]),
}
