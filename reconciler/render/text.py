# SPDX-License-Identifier: Apache-2.0
"""A plan for people: what changes, where it was asked for, and what it does to traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reconciler.plan import Plan
from reconciler.render.style import Style
from reconciler.resource import Action, Change, Live, Reason

SIGNS = {Action.CREATE: "+", Action.UPDATE: "~", Action.DELETE: "-"}
MEANING = {Action.CREATE: "add", Action.UPDATE: "change", Action.DELETE: "remove"}


def plan_text(plan: Plan, style: Style) -> str:
    """The whole plan; "No changes." where there are none."""
    lines: list[str] = []
    for key, owner in sorted(plan.blocked.items()):
        lines.append(f"  {style.bad('!')} {style.bold(str(key))}  blocked: {owner} is in the way and not lbctl's")
    for change in plan.changes:
        lines += change_lines(change, plan.live, style)
    if not lines:
        return f"{style.good('No changes.')} The node holds what the manifests say."
    used = [action for action in SIGNS if plan.count(action)]
    legend = ", ".join(f"{_sign(action, style)} {MEANING[action]}" for action in used)
    return "\n".join([*([style.dim("Legend: ") + legend, ""] if legend else []), *lines, "", summary(plan)])


def summary(plan: Plan) -> str:
    """One stable line, e.g. `Plan: 2 to add, 1 to change, 0 to remove.`"""
    counts = ", ".join(f"{plan.count(action)} to {word}" for action, word in MEANING.items())
    notes = [f"{plan.drifted} drifted"] if plan.drifted else []
    notes += [f"{len(plan.blocked)} blocked"] if plan.blocked else []
    remarks = f" ({', '.join(notes)})" if notes else ""
    return f"Plan: {counts}{remarks}."


def applied(done: Sequence[Change], seconds: float) -> str:
    """What was done, e.g. `2 added, 1 changed, 0 removed in 34 ms.`"""
    counts = {action: sum(change.action is action for change in done) for action in Action}
    return (
        f"{counts[Action.CREATE]} added, {counts[Action.UPDATE]} changed, {counts[Action.DELETE]} removed"
        f" in {seconds * 1000:,.0f} ms."
    )


def change_line(change: Change, style: Style) -> str:
    """One change on one line: sign, what, why, where it was asked for."""
    notes = [style.warn("drift")] if change.reason is Reason.DRIFT else []
    if change.origin and change.origin.file:
        notes.append(style.dim(str(change.origin)))
    what = str(change.key)
    pad = " " * max(2, 46 - len(what)) if notes else ""
    return f"{_sign(change.action, style)} {style.bold(what)}{pad}{'  '.join(notes)}"


def change_lines(change: Change, live: Live, style: Style) -> Iterator[str]:
    """One change in full: its line, the fields that differ, what happens to traffic."""
    yield f"  {change_line(change, style)}"
    before = change.before.describe() if change.before else {}
    after = change.after.describe() if change.after else {}
    names = [*after, *(name for name in before if name not in after)] if change.after else []
    differing = [name for name in names if before.get(name) != after.get(name)]
    width = max(map(len, differing), default=0)
    for name in differing:
        was = f"{before.get(name, 'none')} -> " if change.before else ""
        yield f"      {name:<{width}}  {was}{after.get(name, 'none')}"
    hidden = len(names) - len(differing)
    if hidden:
        yield style.dim(f"      ({hidden} unchanged hidden)")
    effect = change.before.effect(change.after, live) if change.before else ""
    if effect:
        yield f"      {style.dim('traffic:')} {effect}"


def _sign(action: Action, style: Style) -> str:
    paint = {Action.CREATE: style.good, Action.UPDATE: style.warn, Action.DELETE: style.bad}[action]
    return paint(SIGNS[action])
