# SPDX-License-Identifier: Apache-2.0
"""A loader that is used again and again gives what a new one gives, whatever happens to the files in between."""

import random
import re

import pytest

from reconciler.config import load as load_module
from reconciler.config import source
from reconciler.config.load import Loader, load
from tests.config.manifests import node, pool, service
from tests.config.rules.test_every_rule import CASES

DOCUMENTS = sorted({
    f"---\n{document}" for case in CASES.values() for text in case for document in re.split("^---\n", text, flags=re.M)
    if document.strip()
})  # fmt: skip
"""Everything that the rules' own tests are made of: the same few names, addresses and labels, in all combinations."""
NODES = [document for document in DOCUMENTS if "kind: Node" in document]
BROKEN = [
    "---\na: [\n", "---\nkind: Pool\nmetadata: {name: web}\n", "---\nkind: Node\nmetadata: {name: lb1}\nspec: 1\n",
    "---\nkind: Servise\nspec: {pool: web}\n", "---\n- web\n", "<<<<<<< HEAD\n", "\0", "--- !!str web\n",
]  # fmt: skip
TEMPLATE = """\
{% for i in range(3) %}
---
apiVersion: lbctl/v1
kind: Service
metadata: {name: s{{ i }}}
spec: {vip: 20.20.20.{{ i }}, ports: [80], pool: web}
{% endfor %}
"""


def seen(loaded):
    """All of a result, with the places that are not compared otherwise."""
    fleet = loaded.fleet
    places = [dict(item.places) for item in (*fleet.services, *fleet.pools, *fleet.nodes)] if fleet else []
    return repr(fleet), places, loaded.diagnostics, loaded.texts, loaded.digest


class Edits:
    """Random changes of a directory."""

    def __init__(self, directory, seed, *, templates):
        self.directory = directory
        self.random = random.Random(seed)
        self.names = ["a.yaml", "b.yaml", "c.yml", "sub/d.yaml", "z.yaml"]
        self.kinds = [self.write, self.write, self.edit, self.edit, self.edit, self.remove, self.rename, self.shift]
        self.kinds += [self.touch, self.spoil, self.link]
        if templates:
            self.kinds += [self.template]

    def path(self):
        path = self.directory / self.random.choice(self.names)
        path.parent.mkdir(exist_ok=True, parents=True)
        return path

    def documents(self):
        path = self.path()
        text = path.read_text() if path.exists() else ""
        return path, re.findall("(?:^---)?.+?(?=^---|\\Z)", text, flags=re.M | re.S)

    def replace(self, path, text):
        """As editors do: a write in place, or a rename."""
        if self.random.random() < 0.5 or path.is_symlink():
            path.unlink(missing_ok=True)
            path.write_text(text)
        else:
            temporary = path.with_name(".new")
            temporary.write_text(text)
            temporary.rename(path)

    def some(self, most):
        return [self.random.choice(DOCUMENTS) for _ in range(self.random.randrange(most))]

    def write(self):
        self.replace(self.path(), "".join([*self.some(8), self.random.choice(NODES)]))

    def edit(self):
        """A document more, less, or another one."""
        path, documents = self.documents()
        at = self.random.randrange(len(documents) + 1)
        self.replace(path, "".join([*documents[:at], *self.some(3), *documents[at + self.random.randrange(3) :]]))

    def shift(self):
        """The same documents elsewhere."""
        path, documents = self.documents()
        at = self.random.randrange(len(documents) + 1)
        self.replace(path, "".join(["# a comment\n" if at == 0 else "", *documents[at:], *documents[:at]]))

    def touch(self):
        path = self.path()
        if path.exists():
            path.touch()

    def remove(self):
        self.path().unlink(missing_ok=True)

    def rename(self):
        path = self.path()
        if path.exists():
            path.rename(self.path())

    def spoil(self):
        path, documents = self.documents()
        documents.insert(self.random.randrange(len(documents) + 1), self.random.choice(BROKEN))
        self.replace(path, "".join(documents))

    def link(self):
        path, target = self.path(), self.path()
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def template(self):
        path = self.directory / "t.yaml.j2"
        path.write_text(TEMPLATE.replace("3", str(self.random.randrange(4))) + "".join(self.some(3)))


def check_after_each(directory, edits, steps):
    loader = Loader(directory)
    directory.mkdir(exist_ok=True)
    valid = 0
    for _ in range(steps):
        edits.random.choice(edits.kinds)()
        loaded, expected = loader.load(afresh=edits.random.random() < 0.1), load(directory)
        assert seen(loaded) == seen(expected)
        assert loader.load() is loaded
        valid += loaded.fleet is not None
    return valid


@pytest.mark.parametrize("seed", range(16))
def test_a_warm_load_finds_what_a_cold_one_finds(tmp_path, seed):
    directory = tmp_path / "manifests"
    check_after_each(directory, Edits(directory, seed, templates=False), 40)


def test_a_warm_load_renders_what_a_cold_one_renders(tmp_path):
    directory = tmp_path / "manifests"
    check_after_each(directory, Edits(directory, 0, templates=True), 60)


@pytest.mark.parametrize("seed", range(6))
def test_edits_of_a_sound_fleet(tmp_path, seed):
    """Mostly valid: the fleets themselves are compared, not only problems."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    chance = random.Random(seed)
    for i in range(2):
        interfaces = f"{{name: e0, addresses: [10.2.0.{i + 1}/24], mtu: 1600}}"
        more = f"snatAddresses: [10.2.0.{i + 5}]"
        labels = f"metadata: {{labels: {{rack: r{i}}}, "
        (directory / f"lb{i}.yaml").write_text(
            node(f"lb{i}", interfaces=interfaces, more=more).replace("metadata: {", labels)
        )
    loader = Loader(directory)
    valid = 0
    for _ in range(40):
        i = chance.randrange(8)
        mode = chance.choice(["nat", "dsr-l3", "dsr-l3", "fullnat"])
        endpoints = ", ".join(f"{{address: 10.2.0.{j}}}" for j in chance.sample(range(30, 60), chance.randrange(4)))
        more = f"mode: {mode}, nodeSelector: {{rack: r{chance.randrange(2)}}}"
        text = service(f"s{i}", vip=f"20.20.20.{i}", pool=f"p{i}", more=more) + pool(f"p{i}", endpoints=endpoints)
        (directory / f"s{i}.yaml").write_text(text)
        if chance.random() < 0.2:
            labels = f"metadata: {{labels: {{rack: r{chance.randrange(2)}}}, "
            more = chance.choice(["", "snatAddresses: [10.2.0.9]", "capacity: {endpoints: 9, services: 5}"])
            interfaces = f"{{name: e0, addresses: [10.2.0.{chance.randrange(10, 40)}/24], mtu: 1600}}"
            name = f"lb{chance.randrange(2, 4)}"
            (directory / f"{name}.yaml").write_text(
                node(name, interfaces=interfaces, more=more).replace("metadata: {", labels)
            )
        loaded, expected = loader.load(), load(directory)
        assert seen(loaded) == seen(expected)
        valid += loaded.fleet is not None
    assert valid > 3


def test_documents_that_stay_are_the_identical_objects(tmp_path):
    texts = {f"{i}.yaml": service(f"s{i}", vip=f"20.20.20.{i}", pool=f"p{i}") + pool(f"p{i}") for i in range(3)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    loader = Loader(tmp_path)
    before = loader.load().fleet
    (tmp_path / "1.yaml").write_text(texts["1.yaml"].replace("10.2.0.11", "10.2.0.12"))
    after = loader.load().fleet
    assert [new is old for new, old in zip(after.services, before.services, strict=True)] == [True, True, True]
    assert [new is old for new, old in zip(after.pools, before.pools, strict=True)] == [True, False, True]
    (tmp_path / "1.yaml").write_text("# moved by a line\n" + texts["1.yaml"])
    moved = loader.load().fleet
    assert [service.span.line for service in moved.services] == [2, 3, 2]


def test_rules_look_only_at_what_an_edit_changes(tmp_path, monkeypatch):
    for i in range(20):
        text = service(f"s{i}", vip=f"20.20.20.{i}", pool=f"p{i}") + pool(
            f"p{i}", endpoints=f"{{address: 10.2.0.{i}}}"
        )
        (tmp_path / f"{i:02}.yaml").write_text(text)
    (tmp_path / "node.yaml").write_text(node())
    loader = Loader(tmp_path)
    loader.load()
    seen_parts = []
    real = load_module.Checker.check.__globals__["findings"]
    monkeypatch.setitem(
        load_module.Checker.check.__globals__, "findings", lambda part: seen_parts.append(part) or real(part)
    )
    (tmp_path / "07.yaml").write_text(service("s7", vip="20.20.20.7", pool="p7") + pool("p7"))
    loader.load()
    assert sorted(type(part).__name__ for part in seen_parts) == ["Draft", "Use"]
    assert [part.name for part in seen_parts if type(part).__name__ == "Use"] == ["p7"]


def test_states_are_believed_only_when_they_prove_something(tmp_path, monkeypatch):
    """Everything at once, as fast as it goes: many changes within one tick of the clock of the file system."""
    loader = Loader(tmp_path)
    for i in range(200):
        (tmp_path / "a.yaml").write_text(pool(f"p{i:03}"))
        assert loader.load().fleet.pools[0].name == f"p{i:03}"
    assert source.SETTLED_NS >= 2_000_000_000


def test_an_endpoint_that_becomes_a_vip_of_another_file_is_noticed(tmp_path):
    (tmp_path / "a.yaml").write_text(service(vip="10.2.0.12"))
    (tmp_path / "b.yaml").write_text(pool())
    loader = Loader(tmp_path)
    assert loader.load().diagnostics == ()
    for _ in range(2):
        (tmp_path / "b.yaml").write_text(pool(endpoints="{address: 10.2.0.11}, {address: 10.2.0.12}"))
        assert [d.rule for d in loader.load().diagnostics] == ["vip-is-endpoint"]
        (tmp_path / "b.yaml").write_text(pool())
        assert loader.load().diagnostics == ()
