# SPDX-License-Identifier: Apache-2.0
import json

from reconciler.config.diagnostic import Diagnostic, Severity, did_you_mean, in_order, quote, render_json, render_text
from reconciler.resource import Span


def diagnostic(line=1, column=1, length=1, *, file="a.yaml", hint="", severity=Severity.ERROR, rule="some-rule"):
    return Diagnostic(severity, rule, "message", Span(file, line, column), hint, length)


def rendered(text, *args, **kwargs):
    return render_text([diagnostic(*args, **kwargs)], {"a.yaml": text}).split("\n")


def test_text_has_place_message_rule_source_caret_and_hint():
    assert rendered("x: 1\nspec: {vpi: 1}\n", 2, 8, 3, hint="did you mean 'vip'?") == [
        "a.yaml:2:8: error: message [some-rule]",
        "   2 | spec: {vpi: 1}",
        "     |        ^~~",
        "       hint: did you mean 'vip'?",
    ]


def test_problem_of_a_whole_file_has_no_source():
    assert rendered("x", 0, hint="go on") == ["a.yaml: error: message [some-rule]", "       hint: go on"]


def test_file_without_a_text_has_no_source():
    found = diagnostic(3, 1, file="gone.yaml")
    assert render_text([found], {}) == "gone.yaml:3:1: error: message [some-rule]"


def test_colour_only_if_asked_for():
    found = [diagnostic(severity=Severity.WARNING, hint="x")]
    assert "\033" not in render_text(found, {"a.yaml": "x"})
    coloured = render_text(found, {"a.yaml": "x"}, colour=True)
    assert "\033[1;33mwarning:\033[0m" in coloured
    assert coloured.count("\033[") == 2 * coloured.count("\033[0m")


def caret_below(lines):
    """The characters of the source line that the caret stands under, counting only narrow ones."""
    source, caret = lines[1][7:], lines[2][7:]
    return source[caret.index("^") : len(caret)]


def test_caret_follows_tabs_and_wide_and_combining_characters():
    assert rendered("\tx: y", 1, 5)[2] == "     | \t   ^"
    assert rendered("漢字: y", 1, 5)[2] == "     |       ^"
    assert rendered("漢字: y", 1, 1, 2)[2] == "     | ^~~~"
    assert rendered("e\u0301: y", 1, 5)[2] == "     |    ^"


def test_long_line_is_cut_round_the_caret():
    lines = rendered("a" * 5000 + "XYZ" + "b" * 5000, 1, 5001, 3)
    assert len(lines[1]) < 150
    assert caret_below(lines) == "XYZ"


def test_caret_does_not_reach_beyond_the_line():
    assert rendered("abc", 1, 2, 1000)[2] == "     |  ^~"
    assert rendered("abc", 1, 4, 1)[2] == "     |    ^"
    assert rendered("abc", 9, 1, 1) == ["a.yaml:9:1: error: message [some-rule]"]


def test_source_can_not_control_the_terminal():
    assert "\033" not in "".join(rendered("x: \033[31mred\u202e\a", 1, 1))


def test_quoted_value_is_short_and_on_one_line():
    assert quote("a\nb\033") == r"'a\nb\x1b'"
    assert len(quote("x" * 10_000)) < 70


def test_order_is_that_of_files_and_places():
    places = [("b.yaml", 1, 1), ("a.yaml", 10, 1), ("a.yaml", 9, 5), ("a.yaml", 9, 2), ("a.yaml", 0, 1)]
    found = in_order(diagnostic(line, column, file=file) for file, line, column in places)
    assert [(d.span.file, d.span.line, d.span.column) for d in found] == places[::-1]


def test_json_says_the_same():
    found = [diagnostic(2, 8, 3, hint="go on"), diagnostic(severity=Severity.WARNING)]
    document = json.loads(render_json(found))
    assert (document["valid"], document["error_count"], document["warning_count"]) == (False, 1, 1)
    assert document["diagnostics"][0] == {
        "severity": "error", "rule": "some-rule", "message": "message", "hint": "go on",
        "file": "a.yaml", "line": 2, "column": 8, "end_column": 11,
    }  # fmt: skip
    assert json.loads(render_json([]))["valid"] is True
    assert json.loads(render_json([]))["diagnostics"] == []


def test_suggestion_is_close_or_none():
    assert did_you_mean("algoritm", ["algorithm", "pool"]) == "did you mean 'algorithm'?"
    assert did_you_mean("TCP", ["tcp", "udp"]) == "did you mean 'tcp'?"
    assert did_you_mean("zebra", ["algorithm", "pool"]) == ""
    assert did_you_mean("x" * 1_000_000, ["algorithm"]) == ""
