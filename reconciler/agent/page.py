# SPDX-License-Identifier: Apache-2.0
"""What the agent's page shows, gathered from what the agent has published, from maps and from files. It only reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reconciler import safe
from reconciler.kernel.port import Kernel
from reconciler.readings.rows import ROWS, Node
from reconciler.reconcile import plan_node
from reconciler.render.page import part
from reconciler.render.style import Style
from reconciler.render.text import change_line, change_lines
from reconciler.resource import Desired

MOST_PLANNED = 20_000
"""Resources; a plan of more takes seconds, which nobody should be able to ask for by HTTP."""

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the page comes from: the agent's status, what it wants of the node (None: not known yet), a kernel opened
    for the thread that asks, and the instance's directory."""

    status: Callable[[], Item]
    desired: Callable[[], Desired | None]
    kernel: Callable[[], Kernel]
    instance_dir: Path


def content(sources: Sources) -> Item:
    """What the page is made of. Raises LbctlError, OSError."""
    status = sources.status()
    node = Node(sources.kernel, sources.instance_dir)
    agent, revision = status["agent"], status["revision"]
    status = {**status, "conditions": [_condition(event) for event in status["conditions"]]}
    facts = [
        ("Manifests", agent["source"]),
        ("Revision", revision["applied"][:12] or "none yet"),
        ("Agent", f"lbctl {agent['version']}, pid {agent['pid']}, instance {agent['instance']}"),
        ("Resources", f"{status['resources']:,}, of these not as they should be: {status['open']:,}"),
    ]
    if revision["attempted"] != revision["applied"]:
        facts.insert(2, ("Attempted", revision["attempted"][:12] or "could not be read"))
    if status["paused"]:
        facts.insert(0, ("Paused", status["paused"]))
    pending, nothing = _pending(sources, node.kernel())
    return {
        "status": status, "facts": [(label, safe.line(text)) for label, text in facts],
        "name": safe.line(agent["node"] or agent["host"]),
        "now": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        "services": _services(node), "endpoints": _endpoints(node), "transitions": _transitions(node),
        "changes": _changes(status), "pending": pending, "pending_nothing": nothing,
    }  # fmt: skip


def _condition(event: Item) -> Item:
    return {name: safe.block(str(event.get(name, ""))) for name in ("level", "about", "message", "hint")}


def _services(node: Node) -> Item:
    rows = [
        [each["service"], each["mode"], each["algorithm"], each["ring"], each["endpoints"], each["open"],
         each["connections"], each["request_packets"], each["reply_packets"]]
        for each in ROWS["services"](node)
    ]  # fmt: skip
    heads = ["Service", "Mode", "Algorithm", "Ring", "Endpoints", "Open", "Connections", "Requests", "Replies"]
    return part(heads, rows, "lbctl get services", (4, 5, 6, 7, 8))


def _endpoints(node: Node) -> Item:
    rows = []
    for each in ROWS["endpoints"](node):
        shares = ", ".join(f"{share['ring']} {share['share']:.1%}" for share in each["shares"]) or "none"
        rows.append([each["endpoint"], each["state"], each["health"], shares, each["open"], each["connections"]])
    heads = ["Endpoint", "State", "Health", "Share of new connections", "Open", "Connections"]
    return part(heads, rows, "lbctl get endpoints", (4, 5))


def _transitions(node: Node) -> Item:
    rows = [
        [each["ring"], each["moving"], each["slots"], ", ".join(each["former"]), each["began_s"], each["settles_s"]]
        for each in ROWS["transitions"](node)
    ]
    heads = ["Ring", "Moving", "Slots", "Former endpoints", "Began s ago", "Settles in s"]
    return part(heads, rows, "lbctl get transitions", (1, 2, 4, 5))


def _changes(status: Item) -> Item:
    rows = [
        [event["time"][:19].replace("T", " "), event["message"], event.get("cause") or event.get("reason", ""),
         event.get("origin", ""), event.get("effect", "")]
        for event in reversed(status["changes"])
    ]  # fmt: skip
    return part(["When", "Change", "Why", "Asked for at", "Effect"], rows, "lbctl events")


def _pending(sources: Sources, kernel: Kernel) -> tuple[Item, str]:
    """The plan as it would be now, and what is said if it is empty."""
    heads, command = ["Change", "Effect, or what it waits for"], "lbctl plan"
    desired = sources.desired()
    if desired is None:
        return part(heads, [], command), "The manifests were not read yet."
    if len(desired.resources) > MOST_PLANNED:
        return part(heads, [], command), f"There are too many resources to compare for a page: {command} does it."
    planned = plan_node(desired, kernel, sources.instance_dir)
    effects, style = planned.effects(), Style()
    rows = []
    for change in planned.changes:
        first, *rest = change_lines(change, effects.get(change.key, ""), style) if change.before else (
            change_line(change, style),
        )
        rows.append([first.strip(), "; ".join(" ".join(line.split()) for line in rest)])
    rows += [[str(key), f"blocked: {why}"] for key, why in planned.blocked.items()]
    return part(heads, rows, command), "Nothing: the node is as the manifests say."
