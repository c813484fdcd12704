# SPDX-License-Identifier: Apache-2.0
"""What `lbctl validate` looks at, how it exits, and which format it chooses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli import validate as validate_module
from reconciler.cli.main import main
from tests.config.manifests import node, pool, service

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty directory to work in, outside of any CI."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_WORKSPACE", "GITLAB_CI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


VALID = service() + pool() + node()
ONLY_WARNING = VALID + pool("spare")
INVALID = service() + pool("other") + node()


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        (VALID, (), 0),
        (VALID, ("--strict",), 0),
        (ONLY_WARNING, (), 0),
        (ONLY_WARNING, ("--strict",), 1),
        (INVALID, (), 1),
    ],
)
def test_exit_code_says_whether_there_are_problems(directory, capsys, text, words, code):
    write(directory / "all.yaml", text)
    assert main(["validate", *words]) == code


def test_what_strict_refuses_is_not_called_valid(directory, capsys):
    write(directory / "all.yaml", ONLY_WARNING)
    main(["validate", "--strict"])
    assert capsys.readouterr().out.splitlines()[-1] == ".: 1 warning; --strict lets none pass"


def test_wrong_usage_exits_with_2(directory, capsys):
    assert main(["validate", "--format", "xml"]) == 2


def test_a_bug_exits_with_3_and_shows_its_traceback(directory, capsys, monkeypatch):
    monkeypatch.setattr(validate_module, "_check", lambda *_: {}["no such key"])
    assert main(["validate"]) == 3
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "this is a bug in lbctl: KeyError: 'no such key'" in error


def test_summary_counts_what_was_found(directory, capsys):
    write(directory / "good" / "all.yaml", VALID)
    write(directory / "bad" / "all.yaml", INVALID)
    assert main(["validate", "good", "bad"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "good: valid (1 service, 1 pool, 1 node)",
        "bad: 1 error, 1 warning",
    ]


def test_problems_of_several_directories_are_sorted_together_and_named_from_where_we_are(directory, capsys):
    for name in ("b", "a/deep", "a"):
        write(directory / name / "all.yaml", service() + node())
    main(["validate", "b", str(directory / "a" / "deep"), "--format", "json"])
    found = json.loads(capsys.readouterr().out)["diagnostics"]
    assert [problem["file"] for problem in found] == ["a/deep/all.yaml", "b/all.yaml"]


def test_messages_name_other_files_as_their_own(directory, capsys):
    write(directory / "fleet" / "a.yaml", VALID)
    write(directory / "fleet" / "b.yaml", pool())
    main(["validate", "fleet"])
    assert "is declared already (fleet/a.yaml:7)" in capsys.readouterr().out


def test_directory_elsewhere_is_named_by_its_path(directory, capsys, monkeypatch):
    write(directory / "fleet" / "all.yaml", INVALID)
    write(directory / "here" / "x", "")
    monkeypatch.chdir(directory / "here")
    main(["validate", "../fleet"])
    assert f"{directory}/fleet/all.yaml:5:" in capsys.readouterr().out


def test_single_file_is_not_asked_for_what_others_may_hold(directory, capsys):
    write(directory / "services.yaml", service())
    write(directory / "pools.yaml", pool("other"))
    assert main(["validate", "services.yaml", "pools.yaml"]) == 0
    assert "2 files: valid (1 service, 1 pool, 0 nodes)" in capsys.readouterr().out
    assert main(["validate", "."]) == 1


def test_single_files_are_checked_together(directory, capsys):
    write(directory / "a.yaml", service("a"))
    write(directory / "b.yaml", service("b"))
    assert main(["validate", "a.yaml", "b.yaml", "--format", "json"]) == 1
    [found] = json.loads(capsys.readouterr().out)["diagnostics"]
    assert found["rule"] == "vip-port-conflict"


def test_single_file_has_no_environment(directory, capsys):
    write(directory / "a.yaml", service())
    assert main(["validate", "a.yaml", "--env", "prod"]) == 2


def test_auto_is_github_in_a_workflow_and_text_elsewhere(directory, capsys, monkeypatch):
    write(directory / "all.yaml", INVALID)
    main(["validate"])
    text = capsys.readouterr().out
    assert text.startswith("all.yaml:")
    monkeypatch.setenv("GITLAB_CI", "true")
    main(["validate"])
    assert capsys.readouterr().out == text
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    main(["validate"])
    assert capsys.readouterr().out.startswith("::error file=all.yaml,line=")
    main(["validate", "--format", "text"])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("form", ["github", "sarif"])
def test_annotations_are_named_from_the_root_of_the_repository(directory, capsys, monkeypatch, form):
    write(directory / "clusters" / "prod" / "all.yaml", INVALID)
    monkeypatch.chdir(directory / "clusters")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(directory))
    main(["validate", "prod", "--format", form])
    output = capsys.readouterr().out
    assert "clusters/prod/all.yaml" in output
    assert str(directory) not in output


def test_machine_formats_hold_nothing_else(directory, capsys):
    write(directory / "all.yaml", VALID)
    for form, start in (("json", "{"), ("sarif", "{"), ("junit", "<?xml")):
        assert main(["validate", "--format", form]) == 0
        output = capsys.readouterr().out
        assert output.startswith(start)
        assert "valid (1 service" not in output


def test_reports_cost_nothing_where_they_are_not_asked_for(directory):
    write(directory / "all.yaml", VALID)
    code = (
        "import sys; from reconciler.cli.main import main; main(['validate', '.']);"
        "print(sorted({'xml.etree.ElementTree', 'importlib.metadata', 'jinja2', 'subprocess'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env={"PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
