# SPDX-License-Identifier: Apache-2.0
"""A plan for reviewers: ready to be posted on a merge request, the summary outside, the details folded."""

from __future__ import annotations

from reconciler.plan import Plan
from reconciler.render.style import Style
from reconciler.render.text import change_line, change_lines, summary
from reconciler.resource import Action
from reconciler.safe import SHOWN, folded, line, prose

_DIFF_SIGNS = {Action.CREATE: "+", Action.UPDATE: "!", Action.DELETE: "-"}  # the signs that GitHub colours in a diff


def plan_markdown(plan: Plan, node: str) -> str:
    """Markdown with a folded diff block."""
    said = [prose(f"{c.key}: {c.text}. {c.hint}") for c in plan.concerns[:SHOWN]]
    said += [f"and {left:,} more of these"] if (left := len(plan.concerns) - SHOWN) > 0 else []
    warnings = "".join(f"\n> **Warning:** {text}\n" for text in said)
    if not plan.changes and not plan.blocked:
        return f"**{prose(node)}**: no changes.\n{warnings}"
    lines = [line(f"! {key} is blocked: {why}") for key, why in sorted(plan.blocked.items())]
    effects = plan.effects()
    for change in plan.changes:
        first, *rest = change_lines(change, effects.get(change.key, ""), Style())
        lines += [f"{_DIFF_SIGNS[change.action]} {first.strip()[2:]}", *(text[2:] for text in rest)]
    lines += [f"# {change_line(held.change, Style(), str(held))}" for held in plan.held]
    return f"**{prose(node)}**: {summary(plan)}\n{warnings}\n{folded(lines, 'Changes')}\n"
