# SPDX-License-Identifier: Apache-2.0
"""The CI examples and the pages name commands that exist; pre-commit, which can run here, runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reconciler.cli.main import VERBS, _module, _parsed
from reconciler.config.load import load
from reconciler.errors import UsageError
from reconciler.support import unsupported
from reconciler.view import view

CHECKOUT = Path(__file__).resolve().parents[2]
CI = CHECKOUT / "examples" / "ci"
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def read(name):
    return yaml.safe_load((CI / name).read_text())


def check_command(line):
    """Each call of lbctl in a line of shell has a verb and options that there are."""
    calls = 0
    for command in re.split(r"\| jq .*|\|\|?|&&|;|(?<!\d)>+.*?(?=\|\||&&|;|$)|(?<!\S)#.*", line):
        words = shlex.split(command.replace("…", ""))
        if words[:1] == ["sudo"]:
            del words[0]
        if words and words[0] == "lbctl":
            _, verb = _parsed(words[1:])
            assert verb, line
            calls += 1
    return calls


def test_github_workflow_calls_what_there_is():
    workflow = read("github-workflow.yaml")
    [job] = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert sum(map(check_command, runs)) == 3
    assert True in workflow  # the key `on`, to a reader of YAML 1.1
    assert all(set(step) <= {"run", "uses", "with", "if", "name"} for step in job["steps"])


def test_gitlab_job_calls_what_there_is_and_keeps_its_report():
    [job] = read("gitlab-ci.yaml").values()
    assert sum(map(check_command, job["script"] + job["after_script"])) == 3
    assert job["after_script"][-1].endswith(f"> {job['artifacts']['reports']['junit']}")


def test_commands_of_the_pages_exist():
    checked = 0
    for page in PAGES:
        blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in re.findall(r"^\$ (.*)$", "".join(blocks), re.MULTILINE):
            found = check_command(line)
            assert found == len(re.findall(r"(?:^|[&|] |sudo )lbctl ", line.partition(" #")[0])), line
            checked += found
    assert checked > 100


@pytest.mark.parametrize("verb", VERBS)
def test_examples_in_the_help_of_a_verb_work(verb):
    examples = re.findall(r"^  (lbctl .*)$", _module(verb).EPILOG, re.MULTILINE)
    assert examples
    assert all(check_command(line) for line in examples)


TOPICS = {
    "healthCheck": "health check", "role": "role", "protocol sctp": "SCTP",
    "idleTimeout": "idle timeout", "gateway": "gateway",
}  # fmt: skip
"""How a refusal begins → how the comment of an example names it."""


@pytest.mark.parametrize("example", sorted(path.name for path in (CHECKOUT / "examples" / "configs").iterdir()))
def test_an_example_names_what_can_not_be_applied_yet_and_nothing_else(example):
    directory = CHECKOUT / "examples" / "configs" / example
    fleet = load(directory).fleet
    refused = " ".join(str(item) for node in fleet.nodes for item in unsupported(view(fleet, node.name, "")))
    wanted = {word for begin, word in TOPICS.items() if f": {begin}" in refused}
    comment = " ".join(
        line.removeprefix("#").strip() for line in (directory / "services.yaml").read_text().splitlines()
    )
    said = re.search(r"`plan` and `apply` don't support (.*?) yet\.", comment)
    assert {word for word in TOPICS.values() if said and word in said[1]} == wanted


def test_a_command_that_does_not_exist_is_noticed():
    for line in (
        "lbctl check .", "sudo lbctl check .", "git pull | lbctl check", "lbctl validate --strictly",
        "true && lbctl validate . --format xml",
    ):  # fmt: skip
        with pytest.raises((UsageError, AssertionError)):
            check_command(line)


def test_links_of_the_pages_lead_somewhere():
    for page in (CHECKOUT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with manifests and the example's pre-commit hooks, which come from a repository beside it."""
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": tmp_path,
        "PRE_COMMIT_HOME": tmp_path / "pre-commit",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    hooks, repository = tmp_path / "lbctl", tmp_path / "fleet"
    hooks.mkdir()
    shutil.copy(CHECKOUT / ".pre-commit-hooks.yaml", hooks)
    config = read("pre-commit-config.yaml")
    config["repos"][0] |= {"repo": str(hooks), "rev": commit(hooks)}
    shutil.copytree(CHECKOUT / "examples" / "configs" / "nat-tcp", repository / "manifests")
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    commit(repository)
    return repository


def commit(directory):
    for words in ("init --quiet", "add --all", "commit --quiet --message x", "rev-parse HEAD"):
        command = ["git", *words.split()]
        done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def pre_commit(repository):
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_pre_commit_passes_sound_manifests(repository):
    code, output = pre_commit(repository)
    assert code == 0, output
    assert re.findall(r"^(lbctl \w+)\.+(\w+)$", output, re.MULTILINE) == [
        ("lbctl fmt", "Passed"),
        ("lbctl validate", "Passed"),
    ]


def test_pre_commit_stops_and_repairs_what_is_not_in_its_form(repository):
    pools = repository / "manifests" / "pools.yaml"
    form = pools.read_text()
    pools.write_text(form.replace("  name: web", '    name:   "web"'))
    code, output = pre_commit(repository)
    assert code == 1
    assert "files were modified by this hook" in output
    assert pools.read_text() == form


def test_pre_commit_stops_manifests_that_do_not_fit_together(repository):
    services = repository / "manifests" / "services.yaml"
    services.write_text(services.read_text().replace("pool: web", "pool: wbe"))
    code, output = pre_commit(repository)
    assert code == 1
    assert "there is no Pool named 'wbe' [service-pool-missing]" in output
