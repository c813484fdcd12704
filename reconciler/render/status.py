# SPDX-License-Identifier: Apache-2.0
"""The status of an agent, and its events, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from reconciler.render.style import Style
from reconciler.safe import SHOWN, block, line

Json = Mapping[str, Any]
_LABEL_WIDTH, _INDENT = 12, 4
MAX_CHANGES = 10
"""The most changes that a person is shown; JSON has all that the agent told."""
_GOOD, _BAD = {"Synced", "Healthy"}, {"Degraded"}


def status_text(status: Json, style: Style) -> str:
    """What the agent said, as facts, conditions and last changes."""
    parts = [_fact(label, text, style) for label, text in _facts(status)]
    conditions = status["conditions"]
    if conditions:
        parts += ["", style.bold("Conditions")]
        parts += (_condition(event, style) for event in conditions[:SHOWN])
        if len(conditions) > SHOWN:
            parts.append(f"  and {len(conditions) - SHOWN:,} more: `lbctl status --json`")
    if status["changes"]:
        parts += ["", style.bold("Last changes")]
        parts += (event_line(event, style, "  ") for event in status["changes"][-MAX_CHANGES:])
    return "\n".join(parts)


def _fact(label: str, text: str, style: Style) -> str:
    """A fact behind its label; what is too long for a line goes on below itself."""
    shown = style.fitted(f"{label.ljust(_LABEL_WIDTH)}{text}", " " * _LABEL_WIDTH)
    return style.dim(shown[:_LABEL_WIDTH]) + _paint(label, text, style)(shown[_LABEL_WIDTH:])


def _facts(status: Json) -> Iterator[tuple[str, str]]:
    agent, revision = status["agent"], status["revision"]
    yield "agent", line(f"running, pid {agent['pid']}, lbctl {agent['version']}")
    node = agent["node"] or f"that of host {agent['host']}, or the only one of the manifests"
    yield "node", line(f"{node}; instance {agent['instance']}")
    yield "manifests", line(agent["source"])
    yield "sync", line(status["sync"])
    yield "health", line(status["health"])
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
        yield "paused", line(status["paused"]).removeprefix("paused ")
    if status["next_look_s"] is not None:
        yield "next look", f"within {status['next_look_s']:.0f} s"


def _paint(label: str, text: str, style: Style) -> Callable[[str], str]:
    if label not in ("sync", "health", "paused"):
        return str
    return style.good if text in _GOOD else style.bad if text in _BAD else style.warn


def _condition(event: Json, style: Style) -> str:
    paint = style.bad if event["level"] == "error" else style.warn
    since = _time(event).strftime("%Y-%m-%d %H:%M:%S")
    text = block(f"{event.get('about', '')}: {event['message']}")
    hint = f"\n{block(event['hint'])}" if event.get("hint") else ""
    inner = style if style.columns is None else replace(style, columns=style.columns - _INDENT)
    shown = inner.labelled(paint, event["level"], f"{text}{hint}\nsince {since}")
    return "  " + shown.replace("\n", "\n" + " " * _INDENT)


def event_line(event: Json, style: Style, own: str = "") -> str:
    """An event on a line, its time first; one that has several lines, or is too long, goes on below, indented."""
    paint = {"error": style.bad, "warning": style.warn}.get(event["level"], str)
    about = f"{event['about']}: " if event["event"] in ("problem", "recovered", "warning", "over") else ""
    origin = f"  {event['origin']}" if event.get("origin") and event["origin"] not in event["message"] else ""
    text = block(f"{about}{event['message']}{origin}").replace("\n", f"\n{own}    ")
    time = f"{own}{_time(event).strftime('%H:%M:%S')}"
    painted = paint(style.fitted(f"{time} {text}", "    ")[len(time) :])
    hint = f"{own}    {block(event['hint'])}".replace("\n", f"\n{own}    ") if event.get("hint") else ""
    return style.dim(time) + painted + (f"\n{style.fitted(hint, '    ')}" if hint else "")


def _time(event: Json) -> datetime:
    return datetime.fromisoformat(event["time"])
