# SPDX-License-Identifier: Apache-2.0
"""The generated pages are what the program says, and say all of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reconciler import docs, model
from reconciler.config.catalogue import about_rules
from reconciler.config.formats import FORMATS
from reconciler.config.load import load
from reconciler.config.rules import RULES
from reconciler.config.schema import KINDS, load_schema
from reconciler.plan import plan
from reconciler.reconcile import desired_of
from reconciler.resource import Live

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = docs.pages()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name):
    assert (docs.DIRECTORY / name).read_text() == PAGES[name], "run: python -m reconciler.docs"


def keys(schema):
    """Every key that a schema knows, at any depth, whatever it is put together from."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name == "properties":
                yield from value
            if name != "examples":
                yield from keys(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from keys(item)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_has_every_key(kind):
    headings = re.findall(rf"^### {kind}: (\S+)$", PAGES["reference.md"], re.MULTILINE)
    assert {heading.split(".")[-1].removesuffix("[]") for heading in headings} == set(keys(load_schema(kind)))
    assert len(headings) == len(set(headings))


def test_every_key_is_described():
    for text in re.split(r"^### ", PAGES["reference.md"], flags=re.MULTILINE)[1:]:
        heading, facts, description = [line for line in text.split("\n") if line][:3]
        assert facts.startswith("*"), heading
        assert description.endswith("."), heading


SHAPE = {"wrong", "unknown", "missing", "out", "too", "yaml", "source"}


def yaml_of(page):
    return re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_examples_of_the_reference_are_valid_manifests(tmp_path):
    blocks = yaml_of(PAGES["reference.md"])
    assert len(blocks) >= len(KINDS)
    for i, block in enumerate(blocks):
        (tmp_path / f"{i}.yaml").write_text(block)
    assert [d for d in load(tmp_path).diagnostics if d.rule.split("-")[0] in SHAPE] == []


def test_the_first_example_can_be_planned(tmp_path):
    [block] = yaml_of((CHECKOUT / "README.md").read_text())
    (tmp_path / "all.yaml").write_text(block)
    loaded = load(tmp_path)
    assert not loaded.diagnostics
    planned = plan(desired_of(loaded.fleet, "lb1"), Live())
    assert {"service", "vip", "ring", "endpoint"} <= {change.key.kind for change in planned.changes}


@pytest.mark.parametrize("page", ["announcing", "fullnat", "health", "operate"])
def test_excerpts_of_manifests_in_the_pages_have_keys_that_there_are(tmp_path, page):
    blocks = yaml_of((CHECKOUT / "docs" / f"{page}.md").read_text())
    assert blocks
    for number, document in enumerate("---\n".join(blocks).split("---\n")):
        excerpt = yaml.safe_load(document)
        kind = excerpt.get("kind", "Service" if "vip" in excerpt["spec"] else "Node")
        whole = {"apiVersion": "lbctl/v1", "kind": kind, "metadata": {"name": f"n{number}"}} | excerpt
        whole["spec"] = ({"interfaces": [{"name": "eth0"}]} if kind == "Node" else {}) | excerpt["spec"]
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(whole))
    assert [str(d) for d in load(tmp_path).diagnostics if d.rule.split("-")[0] in SHAPE] == []


def test_the_example_of_environments_is_rendered(tmp_path):
    values, template = yaml_of((CHECKOUT / "docs" / "overlays.md").read_text())
    for text in (values, template):
        path = tmp_path / re.match(r"# (\S+)\n", text)[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    loaded = load(tmp_path, "prod")
    assert [d for d in loaded.diagnostics if d.rule.split("-")[0] in SHAPE | {"template", "environment"}] == []
    command = [sys.executable, "-m", "reconciler.cli.main", "render", tmp_path, "--env", "prod"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert "- {address: 10.2.0.11, weight: 2}" in done.stdout and "10.2.0.12, weight: 1" in done.stdout, done


def test_every_rule_has_an_entry_and_every_entry_is_a_rule():
    """Rules stand in the code as plain names, so the code is asked for everything that looks like one."""
    other = set(FORMATS) | {member.value for enum in vars(model).values() if isinstance(enum, type) for member in
                            getattr(enum, "__members__", {}).values()}  # fmt: skip
    names = set()
    for path in sorted((CHECKOUT / "reconciler" / "config").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names |= set(re.findall(r"\A[a-z0-9]+(?:-[a-z0-9]+)+\Z", node.value))
    missing = {name for name in names - set(about_rules()) if not name.startswith(("x-", "utf-"))} - other
    assert missing - GIT_COMMANDS == set()
    made = {name for name in about_rules() if name.startswith("template-")}  # put together from two parts
    assert set(about_rules()) - names - made == set()


GIT_COMMANDS = {"cat-file", "for-each-ref", "ls-remote", "ls-tree", "merge-base", "rev-list", "rev-parse"}


def test_every_rule_says_what_it_means_and_the_way_out():
    for name, about in about_rules().items():
        assert about.meaning.endswith("."), name
        assert about.text.count("\n\n") >= 1, f"{name} does not say the way out: add a paragraph to its docstring"


def test_rules_page_has_an_anchor_for_each_rule():
    headings = re.findall(r"^### (\S+)$", PAGES["rules.md"], re.MULTILINE)
    assert headings == list(about_rules())
    assert set(RULES) <= set(headings)


def test_files_that_contributing_names_are_there():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:bpf|docs|examples|reconciler|schema|tests)/[^`\s]*)`", text)
    real = [path for path in named if not re.search("[A-Z]{4}", path)]  # KIND and NAME stand for any
    assert len(real) > 15
    assert [path for path in real if not (CHECKOUT / path).exists()] == []
