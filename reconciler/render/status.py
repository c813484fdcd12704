# SPDX-License-Identifier: Apache-2.0
"""The status of an agent, and its events, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from reconciler.render.style import Style
from reconciler.safe import SHOWN, block, line

Json = Mapping[str, Any]
_LABEL_WIDTH = 12
MAX_CHANGES = 10
"""The most changes that a person is shown; JSON has all that the agent told."""
_GOOD, _BAD = {"Synced", "Healthy"}, {"Degraded"}


def status_text(status: Json, style: Style) -> str:
    """What the agent said, as facts, conditions and last changes."""
    parts = [f"{style.dim(label.ljust(_LABEL_WIDTH))}{text}" for label, text in _facts(status, style)]
    conditions = status["conditions"]
    if conditions:
        parts += ["", style.bold("Conditions")]
        parts += (_condition(event, style) for event in conditions[:SHOWN])
        if len(conditions) > SHOWN:
            parts.append(f"  and {len(conditions) - SHOWN:,} more: `lbctl status --json`")
    if status["changes"]:
        parts += ["", style.bold("Last changes")]
        parts += (f"  {event_line(event, style)}" for event in status["changes"][-MAX_CHANGES:])
    return "\n".join(parts)


def _facts(status: Json, style: Style) -> Iterator[tuple[str, str]]:
    agent, revision = status["agent"], status["revision"]
    yield "agent", line(f"running, pid {agent['pid']}, lbctl {agent['version']}")
    node = agent["node"] or f"of host {agent['host']}, or the only one"
    yield "node", line(f"{node}; instance {agent['instance']}")
    yield "manifests", line(agent["source"])
    yield "sync", _word(status["sync"], style)
    yield "health", _word(status["health"], style)
    applied = line(revision["applied"])[:12] or "none yet"
    is_other = revision["attempted"] and revision["attempted"] != revision["applied"]
    yield "revision", applied + (f", attempted: {line(revision['attempted'])[:12]}" if is_other else "")
    commit = status.get("commit", {})  # an older agent tells none
    if commit.get("attempted") or commit.get("applied"):
        is_other = commit["attempted"] != commit["applied"]
        attempted = f", attempted: {line(commit['attempted'])[:12]}" if is_other else ""
        yield "commit", (line(commit["applied"])[:12] or "none yet") + attempted
    open_ = f", {status['open']:,} not as they should be" if status["open"] else ""
    yield "resources", f"{status['resources']:,}{open_}"
    if status["paused"]:
        yield "paused", style.warn(line(status["paused"]))
    if status["next_look_s"] is not None:
        yield "next look", f"within {status['next_look_s']:.0f} s"


def _word(word: str, style: Style) -> str:
    paint = style.good if word in _GOOD else style.bad if word in _BAD else style.warn
    return paint(line(word))


def _condition(event: Json, style: Style) -> str:
    paint = style.bad if event["level"] == "error" else style.warn
    since = _time(event).strftime("%Y-%m-%d %H:%M:%S")
    text = block(f"{event.get('about', '')}: {event['message']}")
    hint = f"\n{block(event['hint'])}" if event.get("hint") else ""
    shown = style.labelled(paint, event["level"], f"{text}{hint}\nsince {since}")
    return "  " + shown.replace("\n", "\n    ")


def event_line(event: Json, style: Style) -> str:
    """An event on a line, its time first; one that has several lines goes on below."""
    paint = {"error": style.bad, "warning": style.warn}.get(event["level"], str)
    about = f"{event['about']}: " if event["event"] in ("problem", "recovered", "warning", "over") else ""
    origin = f"  {event['origin']}" if event.get("origin") and event["origin"] not in event["message"] else ""
    text = paint(block(f"{about}{event['message']}{origin}"))
    hint = f"\n{block(event['hint'])}" if event.get("hint") else ""
    return f"{style.dim(_time(event).strftime('%H:%M:%S'))} " + f"{text}{hint}".replace("\n", "\n    ")


def _time(event: Json) -> datetime:
    return datetime.fromisoformat(event["time"])
