# SPDX-License-Identifier: Apache-2.0
"""The same problems in every format: `manifests/` holds them, `expected/` the whole output.

After a change of messages: LBCTL_WRITE_EXPECTED=1 pytest tests/reports, and read the diff.
"""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.config.catalogue import about_rules
from reconciler.config.diagnostic import Diagnostic, Severity
from reconciler.render.github import render_github
from reconciler.render.junit import render_junit
from reconciler.resource import Span

HERE = Path(__file__).parent
FILES = {"text": "text.txt", "github": "github.txt", "json": "json.json", "junit": "junit.xml"}


@pytest.fixture
def validate(capsys, monkeypatch):
    """Run `lbctl validate` beside the manifests, outside of any CI; the result is (exit code, output)."""
    monkeypatch.chdir(HERE)
    for name in ("GITHUB_ACTIONS", "GITHUB_WORKSPACE", "GITLAB_CI"):
        monkeypatch.delenv(name, raising=False)

    def call(*words):
        code = main(["validate", *map(str, words)])
        return code, capsys.readouterr().out

    return call


@pytest.mark.parametrize("form", FILES)
def test_output_is_as_expected(validate, form):
    code, output = validate("manifests", "--format", form)
    expected = HERE / "expected" / FILES[form]
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        expected.write_text(output)
    assert output == expected.read_text()
    assert code == 1


def problems(validate):
    return json.loads(validate("manifests", "--format", "json")[1])["diagnostics"]


def test_sarif_has_what_code_scanning_asks_for(validate):
    code, output = validate("manifests", "--format", "sarif")
    log = json.loads(output)
    assert code == 1
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    [run] = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "lbctl"
    assert [rule["id"] for rule in driver["rules"]] == list(about_rules())
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"].endswith(".")
        assert rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning")
    wanted = problems(validate)
    assert len(run["results"]) == len(wanted) > 3
    for result, problem in zip(run["results"], wanted, strict=True):
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == problem["rule"]
        assert result["level"] == problem["severity"]
        assert result["message"]["text"].startswith(problem["message"])
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uriBaseId"] == "%SRCROOT%"
        assert place["region"] == {
            "startLine": problem["line"],
            "startColumn": problem["column"],
            "endColumn": problem["end_column"],
        }
    uris = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]}
    assert uris == {"manifests/100%25%20broken%2C%20really.yaml", "manifests/pools.yaml", "manifests/services.yaml"}


def test_sarif_links_each_rule_to_its_documentation_where_the_package_says_where_that_is(validate, monkeypatch):
    from email.message import Message

    from reconciler.render import sarif

    about = Message()
    about["Version"] = "9.9"
    about["Project-URL"] = "Homepage, https://example.org/"
    about["Project-URL"] = "Rules, https://example.org/docs/rules.md"
    monkeypatch.setattr(sarif.metadata, "metadata", lambda name: about)
    driver = json.loads(validate("manifests", "--format", "sarif")[1])["runs"][0]["tool"]["driver"]
    assert driver["version"] == "9.9"
    assert all(rule["helpUri"] == f"https://example.org/docs/rules.md#{rule['id']}" for rule in driver["rules"])


def test_problem_of_a_whole_file_has_no_region(validate):
    [result] = json.loads(validate("gone", "--format", "sarif")[1])["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "gone", "uriBaseId": "%SRCROOT%"}}
    assert validate("gone", "--format", "github")[1].startswith("::error file=gone,title=source-missing::")


def test_junit_counts_add_up(validate):
    root = ET.fromstring(validate("manifests", "--format", "junit", "--strict")[1])
    for element in (root, *root.findall("testsuite")):
        assert int(element.get("tests")) == len(element.findall(".//testcase")) == 4
        assert int(element.get("failures")) == len(element.findall(".//failure")) == 3
    sound = [case.get("name") for case in root.iter("testcase") if case.find("failure") is None]
    assert sound == ["manifests/nodes.yaml"]


def test_warnings_fail_a_junit_case_only_if_strict(validate):
    root = ET.fromstring(validate("manifests", "--format", "junit")[1])
    [pools] = [case for case in root.iter("testcase") if case.get("name") == "manifests/pools.yaml"]
    assert pools.find("failure") is None
    assert "[pool-empty]" in pools.find("system-out").text


def test_github_command_is_escaped():
    found = Diagnostic(Severity.WARNING, "r", "50%\nof a: b, c\r", Span("a,b:c%.yaml", 3, 2), "two\nlines", length=4)
    assert render_github([found]) == (
        "::warning file=a%2Cb%3Ac%25.yaml,line=3,col=2,endColumn=6,title=r"
        "::50%25%0Aof a: b, c%0D%0Ahint: two%0Alines"
    )


def test_junit_is_xml_whatever_messages_hold():
    found = Diagnostic(Severity.ERROR, "r", "<&>\" \x1b]]>", Span("a<b>.yaml", 1, 1))
    root = ET.fromstring(render_junit({"d": ([found], {"a<b>.yaml": "x \x00\x1b\ufffe ]]> &amp;"})}, {Severity.ERROR}))
    assert root.find(".//testcase").get("name") == "a<b>.yaml"
    assert "]]> &amp;" in root.find(".//failure").text
