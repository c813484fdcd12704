# SPDX-License-Identifier: Apache-2.0
"""`lbctl get`: the services, endpoints and so on of the node, with live counters."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from reconciler import progress
from reconciler.cli.common import from_agent, instance_dir, may_only_ask, open_kernel, stdout_style
from reconciler.cli.duration import seconds
from reconciler.cli.watching import watched
from reconciler.config.diagnostic import either
from reconciler.errors import UsageError
from reconciler.readings.flow_filter import WORDS, FlowFilter
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
  lbctl get flows --client 10.1.0.0/24 --state open
  lbctl get flows -o json
  lbctl get transitions           # slots of rings that changed hands, and until when that matters
  lbctl get ports                 # fullnat: how many ports its sources have left towards each endpoint
  lbctl get endpoints --watch     # until Ctrl-C, or q; in a pipe again whenever it has changed
  lbctl get verdicts              # packets by what became of them, drops by reason

states of endpoints:
  usable    gets new connections; SHARE says how many, WEIGHT how many it should get, HEALTH what checks say
  draining  gets no new ones, open ones go on: drained, down, or of weight 0
  disabled  gets nothing
  retired   is in no manifest any more; what was open on it goes on
OPEN is `-` where nobody counts: direct server return remembers no flows. WEIGHT is that of the manifests, as far as
the agent has written it down: of pools that have checks. Maps hold shares alone.

Root reads the maps; members of the group of `lbctl run --group` get the same from the agent. For machines:
schema/output/get.v1.json.

exit codes: 0 done, 1 failed, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    shown = tuple(name for name in _TABLES if name != "history")
    parser.add_argument("what", metavar="what", choices=shown, help=f"one of {', '.join(shown)}")
    parser.add_argument("--history", action="store_true", help="with `health`: the latest transitions")
    for name, help in _FILTERS.items():
        option = {"protocol": "--proto"}.get(name, f"--{name}")  # as `explain` has it
        parser.add_argument(
            option, dest=name, default="", metavar=name.upper(), choices=WORDS.get(name), help=f"with `flows`: {help}"
        )
    parser.add_argument(
        "--watch", nargs="?", type=seconds, const="2s", metavar="TIME",
        help="go on, and show what changes: every 2s, or as often as this says",
    )  # fmt: skip
    parser.add_argument("-o", "--output", choices=("table", "wide", "json", "yaml"), default="table")


def run(args: argparse.Namespace) -> int:
    what = "history" if args.history else args.what
    if args.history and args.what != "health":
        raise UsageError(f"there is no history of {args.what}", hint="lbctl get health --history")
    wanted = FlowFilter(**{name: getattr(args, name) for name in _FILTERS})
    if wanted != FlowFilter() and what != "flows":
        raise UsageError(f"only flows can be chosen, not {what}", hint="lbctl get flows")
    is_wanted = wanted.matching()

    def text() -> str:
        if what == "flows" and args.output != "yaml" and not may_only_ask(args):
            return _flows(args, wanted)
        asked = _asked(args, what)
        if wanted != FlowFilter():
            asked["items"] = list(filter(is_wanted, asked["items"]))
        return _text(args, what, asked)

    if args.watch is not None:
        watched(text, args.watch)  # which has the screen to itself
    else:
        with progress.step(f"reading {args.what}"):
            shown = text()
        print(shown)
    return 0


def _flows(args: argparse.Namespace, wanted: FlowFilter) -> str:
    """There may be millions, so no row is made of one where it isn't asked for."""
    from reconciler.readings.flows import chosen, flows
    from reconciler.render import flows as render

    found = chosen(flows(open_kernel(args)), wanted).in_order()
    if args.output == "json":
        return render.as_json(found)
    return render.as_table(found, _TABLES["flows"][0], _NOTHING["flows"], stdout_style(args).columns)


def _text(args: argparse.Namespace, what: str, asked: Mapping[str, Any]) -> str:
    if args.output == "json":
        return as_json(asked)
    if args.output == "yaml":
        return as_yaml(asked)
    columns, wide = _TABLES[what]
    rows = list(map(_for_people, asked["items"]))
    shown = columns + wide if args.output == "wide" else columns
    nothing = _NOTHING.get(what, _NONE.format(args.what))
    return table(rows, shown, nothing, stdout_style(args).columns)


def _asked(args: argparse.Namespace, what: str) -> dict[str, Any]:
    """The rows as a document: read here, or by the agent for those who may only ask."""
    from reconciler.readings.rows import ROWS, Node, document

    if may_only_ask(args):
        return from_agent(args, {"ask": "get", "what": what})
    kernel = open_kernel(args)
    return document(what, ROWS[what](Node(lambda: kernel, instance_dir(args))))


def _for_people(item: Mapping[str, Any]) -> Row:
    """A row with texts in place of lists."""
    row = {name: ", ".join(value) if _is_texts(value) else value for name, value in item.items()}
    if (returns_s := item.get("returns_s")) is not None:
        row["error"] = f"flaps: up if it is well for {returns_s:.0f} s more; {item['error']}"
    if (pools := item.get("pools")) is not None:
        row["pools"] = ", ".join(each["pool"] for each in pools)
        row["weight"] = _some(sorted({str(each["weight"]) for each in pools if each["weight"] is not None}))
    if (shares := item.get("shares")) is not None:
        row["share"] = ", ".join(sorted({f"{each['share']:.1%}" for each in shares})) or "none"
        row["rings"] = ", ".join(f"{each['ring']} {each['share']:.1%}" for each in shares)
    return row


def _some(texts: Sequence[str]) -> str | None:
    return ", ".join(texts) or None


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_NONE = "There are no {} on this node."
_NOTHING = {
    "checker": "Nobody checks on this node: no agent runs, or no pool has a healthCheck.",
    "health": "No pool of this node has a healthCheck, or no agent has run here yet.",
    "history": "No endpoint has gone up or down since an agent first ran here.",
    "drains": "Nothing is drained on this node.",
    "announcements": "This node announces no VIP.",
    "ports": "No connection of mode fullnat has taken a port on this node.",
    "flows": "This node has no such connection of nat.",
    "transitions": "No ring of this node is in transition.",
    "verdicts": "No packet to or from a VIP has come to this node yet.",
}
_FILTERS = {
    "client": "of this address, address with a port, or network",
    "service": "of this VIP, or this service",
    "endpoint": "of this address, address with a port, or network",
    "state": either(WORDS["state"]),
    "protocol": either(WORDS["protocol"]),
}
_BYTES = ["request_bytes", "reply_bytes"]
_USERS = ["pools", "services", "rings"]
_TABLES: dict[str, tuple[list[str], list[str]]] = {
    "services": (
        ["service", "mode", "algorithm", "endpoints", "open", "connections"],
        ["request_packets", "reply_packets", "half_open", "ring", *_BYTES],
    ),
    "endpoints": (
        ["endpoint", "state", "health", "weight", "share", "open"],
        ["connections", "request_packets", "reply_packets", "half_open", "number", *_BYTES, *_USERS],
    ),
    "health": (
        ["endpoint", "pool", "state", "since_s", "streak", "latency_ms", "next_s", "error"],
        ["check", "vip", "checked_s", "share", "falls", "returns_s", "services"],
    ),
    "history": (["ago_s", "endpoint", "pool", "state", "error"], []),
    "checker": (["pid", "targets", "in_flight", "late_p99_ms", "checks", "suspects_s"], []),
    "drains": (["endpoint", "pool", "since_s", "ends_s", "deadline_s", "by", "reason"], []),
    "announcements": (["vip", "state", "metric", "why"], ["table"]),
    "flows": (["client", "service", "endpoint", "state", "protocol", "idle_s"], []),
    "transitions": (["ring", "moving", "slots", "began_s", "used_s", "settles_s"], ["former"]),
    "ports": (["source", "server", "protocol", "used", "free"], ["unrested", "refused", "number"]),
    "verdicts": (["verdict", "packets"], ["meaning"]),
}
