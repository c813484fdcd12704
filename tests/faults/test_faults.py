# SPDX-License-Identifier: Apache-2.0
"""No fault of the system is a bug: each call that can fail fails once, and the verb says what is wrong.

What was begun can be finished afterwards: the next `apply` arrives, and `delete` leaves nothing.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import reconciler.cli.common
from reconciler.cli.main import main
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.instance import Instance
from reconciler.kernel.ledger import Ledger
from tests.faults.faults import ERRORS, Faults
from tests.strategies import fake_source

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "configs" / "nat-tcp"
MOST = 5000
STEP = 1 if os.environ.get("LBCTL_EVERY_FAULT") else 7
"""`make fuzz` tries every call; otherwise each seventh has to do, with every kind of error in turn."""


class Kernel(FakeKernel):
    """Its directory and the former values of settings are files, as the real one has them."""

    def __init__(self, run_dir):
        super().__init__()
        self.instance = Instance("default", run_dir)
        self.ledger = Ledger(self.instance)

    def former_sysctls(self):
        return self.ledger.values()

    def remember_sysctl(self, name, former):
        self.ledger.put(name, former)

    def forget_sysctl(self, name):
        self.ledger.drop(name)

    def remove_instance(self):
        self.instance.remove()


@pytest.fixture
def node(tmp_path, monkeypatch, capsys):
    """A node of this test's own: `call(words)` returns the exit code and what was said."""

    class Node:
        def __init__(self):
            self.run_dir = Path(memory) / "run"
            self.reset()

        def reset(self):
            shutil.rmtree(self.run_dir, ignore_errors=True)
            self.kernel = Kernel(self.run_dir)

        def call(self, *words):
            words = [str(word) for word in words]
            code = main(["--run-dir", str(self.run_dir), *words])
            printed = capsys.readouterr()
            return code, printed.out, printed.err

    memory = tempfile.mkdtemp(dir="/dev/shm")  # as /run is: a disk would be asked to be sure of each file
    node = Node()
    for verb in ("apply", "delete", "plan", "get", "export"):
        __import__(f"reconciler.cli.{verb}")
        monkeypatch.setattr(f"reconciler.cli.{verb}.open_kernel", lambda args: node.kernel)
    monkeypatch.setattr(reconciler.cli.common, "open_kernel", lambda args: node.kernel)
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)
    monkeypatch.setattr("reconciler.config.rest.SECOND_LOOK_S", 0)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLE, tmp_path / "manifests")
    yield node
    shutil.rmtree(memory)


def each_fault(call, before=lambda: None, after=lambda: None, below=None):
    """Make one call of the system fail, then another one, each with another error, until none is left."""
    faults = Faults(below)
    before()
    call()  # so that everything is imported
    for number in range(1, MOST, STEP):
        before()
        error = ERRORS[number % len(ERRORS)]
        with faults.failing(number, error):
            code, out, err = call()
        if not faults.hit:
            assert number > 1, "nothing was ever called"
            return
        where = f"{number}: {os.strerror(error)} in {faults.hit}:\n{out}\n{err}"
        assert "bug in lbctl" not in out + err, where
        assert "Traceback" not in out + err, where
        if code:
            assert (out + err).strip(), f"nothing was said; {where}"
        try:
            after()
        except AssertionError as problem:
            raise AssertionError(f"after {where}") from problem
    raise AssertionError("there was no end")


VERBS = {
    "validate": (["validate", "manifests"], {0, 1, 3}),
    "fmt": (["fmt", "--check", "manifests"], {0, 1, 3}),
    "render": (["render", "manifests"], {0, 1}),
    "plan": (["plan", "manifests", "--out", "saved.plan"], {0, 1}),
    "plan --live": (["plan", "manifests", "--live", "node.json"], {0, 1}),
    "get": (["get", "services"], {0, 1}),
    "export": (["export", "manifests"], {0, 1}),
    "import": (["import", "live", "node.json", "--out", "imported"], {0, 1}),
    "diff": (["diff", "HEAD~1", "manifests"], {0, 1, 2, 3}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_look(node, verb, tmp_path):
    words, codes = VERBS[verb]
    node.call("apply", "manifests", "--auto-approve")
    (tmp_path / "node.json").write_text(node.call("export", "manifests")[1])
    if verb == "diff":
        for step in (["init", "-q"], ["add", "manifests"], ["commit", "-q", "-m", "a"],
                     ["commit", "-q", "--allow-empty", "-m", "b"]):  # fmt: skip
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *step], check=True)
    found = set()

    def call():
        answer = node.call(*words)
        found.add(answer[0])
        return answer

    each_fault(call, before=lambda: shutil.rmtree(tmp_path / "imported", ignore_errors=True))
    assert found <= codes


def test_apply(node):
    def finish():
        code, out, err = node.call("apply", "manifests", "--auto-approve")
        assert code == 0, out + err
        assert node.call("plan", "manifests")[1].startswith("No changes.")
        code, out, err = node.call("delete", "--auto-approve")
        assert code == 0, out + err
        assert not node.kernel.instance.directory.exists()

    def call():
        return node.call("apply", "manifests", "--auto-approve")

    each_fault(call, before=node.reset, after=finish, below=node.run_dir)


def test_delete(node):
    def begin():
        node.reset()
        assert node.call("apply", "manifests", "--auto-approve")[0] == 0

    def finish():
        code, out, err = node.call("delete", "--auto-approve")
        assert code == 0, out + err
        assert not node.kernel.instance.directory.exists()
        assert node.kernel.former_sysctls() == {}

    each_fault(lambda: node.call("delete", "--auto-approve"), before=begin, after=finish, below=node.run_dir)
