# SPDX-License-Identifier: Apache-2.0
"""A plan for people: each change, the place that asks for it, and its effect on traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from reconciler.plan import Plan
from reconciler.render.style import Style
from reconciler.resource import Action, Change, Concern, Reason, actions_of
from reconciler.safe import SHOWN, line
from reconciler.target import Target

SIGNS = {Action.CREATE: "+", Action.UPDATE: "~", Action.DELETE: "-"}
NOTES_COLUMN = 60
_MARGIN = "  + "
"""What stands before the name of a resource in a plan."""
DONE = {Action.CREATE: "added", Action.UPDATE: "changed", Action.DELETE: "removed"}
MEANING = {Action.CREATE: "add", Action.UPDATE: "change", Action.DELETE: "remove"}


def plan_text(plan: Plan, style: Style, target: Target | None = None, most: int | None = None) -> str:
    """The whole plan, headed by its node; "No changes." if there are none.

    With `most`, no more than so many changes are shown of those that are alike, and how many more there are.
    """
    heading = [style.dim(f"Plan for {target}")] if target else []
    lines: list[str] = []
    for key, why in sorted(plan.blocked.items())[:most]:
        wanted = plan.desired.resources.get(key)
        origin = wanted.origin if wanted else None
        asked = f"  {style.dim(line(str(origin)))}" if origin and origin.file else ""
        lines.append(f"  {style.bad('!')} {style.bold(line(str(key)))}  blocked{asked}")
        lines.append(style.fitted(f"      {line(why)}"))
    if most and (left := len(plan.blocked) - most) > 0:
        lines.append(f"  {style.bad('!')} … and {left:,} more")
    shown = list(folded(plan.changes, most))
    effects = plan.effects(item for item in shown if isinstance(item, Change))
    for item in shown:
        if isinstance(item, Change):
            lines += change_lines(item, effects.get(item.key, ""), style)
        else:
            lines.append(more_line(item, style))
    lines += (f"  {style.dim('.')} {change_line(held.change, style, str(held))}" for held in plan.held[:most])
    if most and (left := len(plan.held) - most) > 0:
        lines.append(f"  {style.dim('.')} … and {left:,} more")
    if any(isinstance(item, More) for item in shown):
        lines += ["", style.dim(f"Of changes that are alike {most} are shown here, and all of them in a pipe: | less")]
    warnings = concern_lines(plan.concerns, style)
    if not lines:
        holder = f"Node {target.node}" if target and target.node else "The node"
        return "\n".join([*warnings, f"{style.good('No changes.')} {holder} holds what the manifests say."])
    counts = actions_of(plan.changes)
    used = [action for action in SIGNS if counts[action]]
    legend = ", ".join([
        *(f"{_sign(action, style)} {MEANING[action]}" for action in used),
        *([f"{style.bad('!')} can't be done here"] if plan.blocked else []),
        *([f"{style.dim('.')} waits for that"] if plan.held else []),
    ])  # fmt: skip
    heading += [style.dim("Legend: ") + legend, ""] if legend else []
    return "\n".join([*heading, *lines, "", *warnings, summary(plan)])


@dataclass(frozen=True, slots=True)
class More:
    """So many more changes of a kind that are like those before."""

    kind: str
    action: Action
    count: int


def folded(changes: Iterable[Change], most: int | None) -> Iterator[Change | More]:
    """The changes, `most` of each kind, action and reason, and the number of the others behind those of the kind;
    None: all changes."""
    for kind, same in groupby(changes, key=lambda change: change.key.kind):
        counts: Counter[tuple[Action, Reason]] = Counter()
        for change in same:
            counts[change.action, change.reason] += 1
            if most is None or counts[change.action, change.reason] <= most:
                yield change
        for (action, _), count in counts.items():
            if most is not None and count > most:
                yield More(kind, action, count - most)


def more_line(more: More, style: Style) -> str:
    """The line of a plan that stands for the changes that are not shown."""
    return f"  {_sign(more.action, style)} {style.bold(more.kind)} … and {more.count:,} more"


def summary(plan: Plan) -> str:
    """One stable line, e.g. `Plan: 2 to add, 1 to change, 0 to remove.`"""
    found = actions_of(plan.changes)
    counts = ", ".join(f"{found[action]} to {word}" for action, word in MEANING.items())
    notes = [f"{plan.drifted} drifted"] if plan.drifted else []
    notes += [f"{len(plan.blocked)} blocked"] if plan.blocked else []
    notes += [f"{len(plan.held)} waiting"] if plan.held else []
    remarks = f" ({', '.join(notes)})" if notes else ""
    return f"Plan: {counts}{remarks}."


def concern_lines(concerns: Sequence[Concern], style: Style) -> list[str]:
    """The warnings, each with the way out below it, and an empty line after all of them; of many, some and how many
    more there are."""
    lines = [
        text for concern in concerns[:SHOWN]
        for text in (style.labelled(style.warn, "warning", line(f"{concern.key}: {concern.text}")),
                     style.fitted(f"  {line(concern.hint)}"))
    ]  # fmt: skip
    if (left := len(concerns) - SHOWN) > 0:
        lines.append(style.labelled(style.warn, "warning", f"and {left:,} more of these"))
    return [*lines, ""] if lines else []


def applied(done: Sequence[Change], seconds: float) -> str:
    """What was done, e.g. `2 added, 1 changed, 0 removed in 34 ms.`"""
    found = actions_of(done)
    counts = ", ".join(f"{found[action]} {word}" for action, word in DONE.items())
    return f"{counts} in {seconds * 1000:,.0f} ms."


def change_line(change: Change, style: Style, detail: str = "") -> str:
    """One change on one line: its sign, its key, its reason, the place that asks for it."""
    notes: list[tuple[str, Callable[[str], str]]] = []
    if change.reason in (Reason.DRIFT, Reason.HEALTH, Reason.DRAIN):
        notes.append((change.reason.value, style.warn))
    if change.after is None and change.action is not Action.DELETE:
        notes.append(("restored", str))
    if change.origin and change.origin.file:
        notes.append((line(str(change.origin)), style.dim))
    name, detail = line(str(change.key)), f"  {line(detail)}" if detail else ""
    told = "  ".join(paint(note) for note, paint in notes)
    before = f"{_sign(change.action, style)} {style.bold(name)}{detail}"
    if not notes:
        return before
    length = len("  ".join(note for note, _ in notes))
    column = NOTES_COLUMN
    if style.columns is not None:
        room = style.columns - len(_MARGIN) - length
        if room < len(name + detail) + 2:  # with as many blanks as a field of the change has
            return f"{before}\n      {told}"
        column = min(column, room)
    return f"{before}{' ' * max(2, column - len(name + detail))}{told}"


def change_lines(change: Change, effect: str, style: Style) -> Iterator[str]:
    """One change in full: its line, the fields that differ, its effect on traffic."""
    after = change.after.describe() if change.after else change.before.former() if change.before else {}
    before = change.before.describe() if change.before and after else {}  # of a ring that goes, it costs time
    names = list(after | before) if after else []
    changed = (name for name in names if before.get(name) != after.get(name))
    fields = {line(name): _field(change, before, after, name) for name in changed}
    single = " ".join(*fields.items()) if len(fields) == 1 else ""
    yield f"  {change_line(change, style, single)}"
    width = max(map(len, fields), default=0)
    for name, text in fields.items():
        if not single:
            yield style.fitted(f"      {name:<{width}}  {text}", "  ")
    hidden = len(names) - len(fields)
    if hidden and not single:
        yield style.dim(f"      ({hidden} unchanged hidden)")
    if change.cause:
        yield style.labelled(style.dim, "      because", line(change.cause))
    if effect:
        yield style.labelled(style.dim, "      traffic", line(effect))


def _field(change: Change, before: Mapping[str, str], after: Mapping[str, str], name: str) -> str:
    now = line(after.get(name, "none"))
    return f"{line(before.get(name, 'none'))} -> {now}" if change.before else now


def _sign(action: Action, style: Style) -> str:
    paint = {Action.CREATE: style.good, Action.UPDATE: style.warn, Action.DELETE: style.bad}[action]
    return paint(SIGNS[action])
