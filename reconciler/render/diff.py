# SPDX-License-Identifier: Apache-2.0
"""Two revisions compared, for people, for machines, and ready to be posted on a merge request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from reconciler.diff.fleet import FleetDiff
from reconciler.diff.manifests import NONE, Edit, few
from reconciler.diff.nodes import NodeDiff, Traffic
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.plan import Plan
from reconciler.render.style import Style
from reconciler.render.text import MEANING, SIGNS, change_lines, summary
from reconciler.resource import Action, Key
from reconciler.safe import code, folded, line, some

FORMAT_VERSION = 1

_KINDS = ("service", "pool", "node")
_DONE = {Action.CREATE: "added", Action.UPDATE: "changed", Action.DELETE: "removed"}
_DIFF_SIGNS = {"+ ": "+", "~ ": "!", "- ": "-"}  # the signs that GitHub and GitLab colour in a diff


def headline(diff: FleetDiff) -> str:
    """The differences on one line, e.g. `1 pool changed, 1 service affected on 2 nodes`."""
    counts = Counter((edit.key.kind, "renamed" if edit.former else _DONE[edit.action]) for edit in diff.edits)
    listed = ((counts[kind, done], kind, done) for kind in _KINDS for done in (*_DONE.values(), "renamed"))
    parts = [f"{_many(count, kind)} {done}" for count, kind, done in listed if count]
    if diff.traffic:
        services = len({item.service for item in diff.traffic})
        nodes = len({node for nodes in diff.traffic.values() for node in nodes})
        parts.append(f"{_many(services, 'service')} affected on {_many(nodes, 'node')}")
    if not parts:
        return "no differences"
    if any(node.ends for node in diff.nodes):
        return f"{', '.join(parts)}; open connections end"
    known = diff.nodes and all(node.plan for node in diff.nodes)
    if known and not diff.traffic and not any(node.endpoints or node.others for node in diff.nodes):
        return f"{', '.join(parts)}; no traffic moves"
    return ", ".join(parts)


def diff_text(diff: FleetDiff, title: str, old: str, style: Style, *, whole_plans: bool = False) -> str:
    """The headline, every edit with its effect on traffic, and each node's plan: its summary, or all of it.

    `old` is the name of the old revision.
    """
    lines = [*_edit_lines(diff, old, style), *_node_lines(diff, style, whole_plans=whole_plans)]
    return "\n".join([f"{style.bold(line(title))}: {headline(diff)}", *(f"  {text}" for text in lines)])


def diff_markdown(diff: FleetDiff, title: str, old: str) -> str:
    """Markdown: the headline, and folded below it the edits and the whole plans as a diff block."""
    heading = f"**lbctl diff {code(title)}**: {headline(diff)}\n"
    edits, nodes = list(_edit_lines(diff, old, Style())), list(_node_lines(diff, Style(), whole_plans=True))
    lines = [_marked(text) for text in [*edits, *([""] if edits and nodes else []), *nodes]]
    if not lines:
        return heading
    return f"{heading}\n{folded(lines, 'Details')}\n"


def diff_json(diff: FleetDiff, old: str) -> dict[str, Any]:
    """All known differences, for machines."""
    return {
        "format_version": FORMAT_VERSION,
        "summary": headline(diff),
        "changes": [_edit_json(edit, old) for edit in diff.edits],
        "traffic": [
            {
                "service": item.service,
                "at": item.at,
                "nodes": list(nodes),
                "effect": item.text,
                "moved_share": None if item.moved is None else round(item.moved, 6),
                "connections_end": item.ends,
            }
            for item, nodes in diff.traffic.items()
        ],
        "nodes": [
            {
                "name": node.name,
                "new": node.is_new,
                "removed": node.is_gone,
                "connections_end": node.ends,
                "problem": node.problem,
                "plan": _plan_json(node.plan, node.effects) if node.plan else None,
            }
            for node in diff.nodes
        ],
    }


def _edit_lines(diff: FleetDiff, old: str, style: Style) -> Iterator[str]:
    endpoints, traffic = diff.endpoints, _traffic(diff, style)
    for edit in diff.edits:
        what = f"{edit.key.kind} {edit.former} -> {edit.key.id} (renamed)" if edit.former else str(edit.key)
        yield f"{_sign(edit, style)} {style.bold(what)}{' ' * max(2, 46 - len(what))}{style.dim(_origin(edit, old))}"
        yield from (f"      {_value(*value)}" for value in _values(edit))
        for item in edit.items if edit.action is not Action.DELETE else ():
            words = [str(item.key), *(_value(*value) for value in _values(item))]
            if item.key.kind == EndpointRow.kind and item.key.id in endpoints:
                words.append(endpoints[item.key.id])
            yield f"    {_sign(item, style)} {'  '.join(words)}"
        yield from (f"      {traffic[item]}" for item in diff.caused.get(edit.key, ()))


def _node_lines(diff: FleetDiff, style: Style, *, whole_plans: bool) -> Iterator[str]:
    """A line for all nodes with the same plan, and their other effects on traffic."""
    traffic = _traffic(diff, style)
    caused = {item for items in diff.caused.values() for item in items}
    alike: dict[object, list[NodeDiff]] = {}
    for node in diff.nodes:
        if node.plan is None or node.plan.changes or node.is_new:
            changes = node.plan.changes if node.plan else ()
            alike.setdefault((changes, node.problem, node.is_new, node.is_gone), []).append(node)
    for first, *others in alike.values():
        names = f"node{'s' if others else ''} {some([node.name for node in (first, *others)])}"
        note = " (new)" if first.is_new else " (removed)" if first.is_gone else ""
        yield f"{style.bold(names)}{note}: {_outcome(first)}"
        if first.plan and first.problem:
            yield f"      apply refuses it: {first.problem}"
        texts: dict[tuple[str, str], list[str]] = {}
        for key, text in first.others.items():
            texts.setdefault((key.kind, text), []).append(key.id)
        yield from (f"      {kind} {few(ids)}: {text}" for (kind, text), ids in texts.items())
        for item, nodes in diff.traffic.items():
            if item not in caused and first.name in nodes:
                yield f"      {traffic[item]}"
        for change in first.plan.changes if first.plan and whole_plans else ():
            yield from change_lines(change, first.effects.get(change.key, ""), style)


def _outcome(node: NodeDiff) -> str:
    if node.plan:
        return summary(node.plan)
    said = node.problem if node.is_gone else f"no plan: {node.problem}"
    return said.replace("\n", "\n        ")


def _traffic(diff: FleetDiff, style: Style) -> dict[Traffic, str]:
    """The effect on each service in words, with the nodes if it depends on the node."""
    everywhere: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for item, nodes in diff.traffic.items():
        everywhere.setdefault((item.service, item.at), set()).add(nodes)
    return {
        item: f"{style.dim('service')} {item.service} ({item.at}): {item.text}"
        + (f" (on {few(nodes)})" if len(everywhere[item.service, item.at]) > 1 else "")
        for item, nodes in diff.traffic.items()
    }


def _values(edit: Edit) -> tuple[tuple[str, str | None, str | None], ...]:
    return () if edit.action is Action.DELETE else edit.values


def _value(name: str, before: str | None, after: str | None) -> str:
    """A field as `weight 2 -> 1`; a new one as `weight 1`."""
    return f"{name} {after}" if before is None else f"{name} {before} -> {after or NONE}"


def _edit_json(edit: Edit, old: str) -> dict[str, Any]:
    return {
        "kind": edit.key.kind,
        "name": edit.key.id,
        "action": "rename" if edit.former else edit.action.value,
        "former_name": edit.former or None,
        "origin": _origin(edit, old),
        "fields": [{"name": name, "before": before, "after": after} for name, before, after in edit.values],
        "items": [_edit_json(item, old) for item in edit.items],
    }


def _plan_json(plan: Plan, effects: Mapping[Key, str]) -> dict[str, Any]:
    """The changes as people read them. The values that `apply` needs, such as every slot of a ring, would be
    megabytes."""
    counts = {word: plan.count(action) for action, word in MEANING.items()}
    changes = [
        {
            "address": str(change.key),
            "action": change.action.value,
            "before": change.before.describe() if change.before else None,
            "after": change.after.describe() if change.after else None,
            "origin": str(change.origin) if change.origin else None,
            "effect": effects.get(change.key, ""),
        }
        for change in plan.changes
    ]
    return {**counts, "resource_changes": changes}


def _origin(edit: Edit, old: str) -> str:
    return f"{old}:{edit.origin}" if edit.action is Action.DELETE else str(edit.origin)


def _sign(edit: Edit, style: Style) -> str:
    paint = {Action.CREATE: style.good, Action.UPDATE: style.warn, Action.DELETE: style.bad}[edit.action]
    return paint(SIGNS[edit.action])


def _marked(line: str) -> str:
    """A line with its sign moved to the first column, as a diff block needs it."""
    indent = line[: len(line) - len(line.lstrip())]
    sign, rest = line[len(indent) : len(indent) + 2], line[len(indent) + 1 :]
    return _DIFF_SIGNS[sign] + indent + rest if sign in _DIFF_SIGNS else line


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
