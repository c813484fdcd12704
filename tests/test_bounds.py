# SPDX-License-Identifier: Apache-2.0
"""What is said of a thousand objects names some of them and their number."""

from dataclasses import replace

import numpy as np
import pytest

from reconciler.compile import compile_node
from reconciler.config.diagnostic import Diagnostic, Severity, render_text
from reconciler.doctor.finding import Finding, as_texts
from reconciler.kinds.ring import Ring
from reconciler.plan import plan
from reconciler.render.markdown import plan_markdown
from reconciler.render.style import Style
from reconciler.render.text import More, concern_lines, folded, plan_text
from reconciler.resource import Action, Change, Concern, Key, Live, Reason, Span
from reconciler.safe import MAX_MARKDOWN, SHOWN, some
from reconciler.view import view
from tests import big_fleet


@pytest.fixture(scope="module")
def first_plan():
    """The plan of 30 services with 300 endpoints for a node that holds nothing."""
    return plan(compile_node(view(big_fleet.fleet(30), None, "")), Live())


def test_names_in_a_row():
    names = [f"n{number}" for number in range(1_000 + SHOWN)]
    assert some(names[:SHOWN]) == ", ".join(names[:SHOWN])
    assert some(names) == ", ".join(names[:SHOWN]) + ", and 1,000 more"
    assert some(names[: SHOWN + 1], "; ").endswith("; n19; and 1 more")
    assert some([]) == ""


def test_a_plan_for_a_terminal_shows_some_changes_that_are_alike_and_how_many_more(first_plan):
    text = plan_text(first_plan, Style(), most=20)
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("  + endpoint 10.")]) == 20
    assert "  + endpoint … and 280 more" in lines and "  + service … and 10 more" in lines
    assert any(line.endswith("| less") for line in lines)
    assert lines[-1] == plan_text(first_plan, Style()).splitlines()[-1]
    last = max(number for number, line in enumerate(lines) if line.startswith("  + endpoint 10."))
    assert lines.index("  + endpoint … and 280 more") > last


def test_a_plan_for_a_pipe_shows_all(first_plan):
    text = plan_text(first_plan, Style())
    assert text.count("\n  + endpoint 10.") == 300 and "more" not in text and "less" not in text


def test_nothing_is_left_out_that_is_not_counted(first_plan):
    shown = list(folded(first_plan.changes, 7))
    counted = sum(item.count if isinstance(item, More) else 1 for item in shown)
    assert counted == len(first_plan.changes)
    assert list(folded(first_plan.changes, None)) == list(first_plan.changes)


def test_drift_is_not_lost_among_many_edits(first_plan):
    edits = [c for c in first_plan.changes if c.key.kind == "endpoint"]
    drifted = replace(edits[-1], before=edits[-1].after, reason=Reason.DRIFT)
    shown = [c for c in folded([*edits[:-1], drifted], 5) if isinstance(c, Change)]
    assert len(shown) == 6 and shown[-1] is drifted
    assert [c for c in folded([*edits[:-1], drifted], 5) if isinstance(c, More)] == [
        More("endpoint", Action.CREATE, len(edits) - 6)
    ]


def test_blocked_and_waiting_changes_are_counted_too(first_plan):
    endpoints = [c.key for c in first_plan.changes if c.key.kind == "endpoint"]
    live = Live(foreign=dict.fromkeys(endpoints, "another's"))
    text = plan_text(plan(first_plan.desired, live), Style(), most=20)
    assert text.count("  blocked") == 20
    assert "  ! … and 280 more" in text.splitlines()
    assert len(text.splitlines()) < 400


def test_a_comment_on_a_merge_request_is_not_longer_than_it_may_be():
    large = plan(compile_node(view(big_fleet.fleet(300), None, "")), Live())
    text = plan_markdown(large, "big")
    assert MAX_MARKDOWN - 1_000 < len(text) < 65_536
    assert " more lines are not shown)" in text
    assert text.rstrip().endswith("</details>")


def test_of_many_problems_errors_are_shown_first_and_the_others_are_counted_by_rule():
    def problem(line, severity, rule):
        return Diagnostic(severity, rule, f"problem {line}", Span("a.yaml", line))

    warnings = [problem(line, Severity.WARNING, "odd") for line in range(1, 101)]
    errors = [problem(line, Severity.ERROR, "wrong") for line in range(200, 210)]
    text = render_text([*warnings, *errors], {}, most=20)
    shown = [line for line in (1, 10, 11, 100, 200, 209) if f"problem {line} " in text]
    assert shown == [1, 10, 200, 209]
    assert text.index("problem 10 ") < text.index("problem 200 ")
    assert text.splitlines()[-1] == "and 90 more: 90 x odd"
    assert render_text([*warnings, *errors], {}, most=110) == render_text([*warnings, *errors], {})


def test_of_many_warnings_some_are_told_and_how_many_more(first_plan):
    keys = [Key("loopback", f"20.0.{n >> 8}.{n & 255}") for n in range(1_020)]
    concerns = tuple(Concern(key, "it may not work", "mend it") for key in keys)
    lines = concern_lines(concerns, Style())
    assert sum("it may not work" in line for line in lines) == SHOWN
    assert lines[-2:] == ["warning: and 1,000 more of these", ""]
    assert "more of these" not in "\n".join(concern_lines(concerns[:SHOWN], Style()))
    text = plan_markdown(replace(first_plan, concerns=concerns), "big")
    assert text.count("it may not work") == SHOWN and "and 1,000 more of these" in text


def test_of_many_findings_of_one_sort_some_are_told_and_how_many_more():
    found = [Finding("mtu", f"10.0.0.{n}", "lost", "raise it") for n in range(30)]
    *texts, other, more = as_texts([*found, Finding("blocked", "x", "y", "z")], Style())
    assert len(texts) == SHOWN and other.startswith("blocked: x")
    assert more == "mtu: and 10 more; all of them: -o json"


def test_a_damaged_ring_of_two_thousand_members_is_not_told_member_by_member():
    slots = np.arange(1_000, dtype="<u4").tobytes()
    ring = Ring("web/maglev", tuple(f"10.0.{n >> 8}.{n & 255}" for n in range(2_000)), slots)
    assert ring.flaw.endswith("10.0.0.19, and 1,980 more")
