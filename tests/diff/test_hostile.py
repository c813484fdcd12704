# SPDX-License-Identifier: Apache-2.0
"""A merge request decides what lies in the work tree, and a clone what its objects are: neither may run anything."""

import shutil
import subprocess

import pytest

from reconciler.config.git import SETTINGS
from tests.diff.test_cli import FILES, LIGHTER, ONE_WEIGHT

HOOKS = ("pre-auto-gc", "post-checkout", "post-index-change", "reference-transaction", "fsmonitor-watchman")


@pytest.fixture
def trap(tmp_path):
    """A command that leaves a file when it is run."""
    caught = tmp_path / "caught"
    command = tmp_path / "trap"
    command.write_text(f"#!/bin/sh\necho \"$0 $*\" >> {caught}\nexit 1\n")
    command.chmod(0o755)
    yield command
    assert not caught.exists(), caught.read_text()


def set_traps(git, trap, hooks):
    """Every key by which a configuration starts something, and a remote that has what is missing."""
    hooks.mkdir()
    for name in HOOKS:
        shutil.copy(trap, hooks / name)
    for key in ("core.fsmonitor", "core.sshCommand", "core.gitProxy", "core.alternateRefsCommand", "core.askPass",
                "core.pager", "core.editor", "gpg.program", "diff.external", "filter.x.smudge", "filter.x.process",
                "diff.x.textconv", "uploadpack.packObjectsHook"):  # fmt: skip
        git("config", key, str(trap))
    git("config", "core.hooksPath", str(hooks))
    git("config", "credential.helper", f"!{trap}")
    git("config", "alias.fetch", f"!{trap}")
    git("config", "protocol.allow", "always")
    git("config", "core.repositoryFormatVersion", "1")
    git("config", "extensions.partialClone", "origin")
    git("config", "remote.origin.promisor", "true")
    git("config", "remote.origin.uploadpack", str(trap))


REMOTES = (
    "ssh://host/path", "ext::{trap} x", "git://host/path", "{tmp}/somewhere", "https://127.0.0.1:1/x", "trap::x",
)  # fmt: skip


@pytest.mark.parametrize("remote", REMOTES)
def test_what_is_missing_is_not_fetched(repository, diff, trap, tmp_path, remote, monkeypatch):
    repository.commit(FILES)
    repository.commit(LIGHTER)
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "somewhere"], check=True)
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    shutil.copy(trap, helpers / "git-remote-trap")
    monkeypatch.setenv("PATH", f"{helpers}:/usr/bin:/bin")
    blob = repository.git("rev-parse", "HEAD~1:pools.yaml").strip()
    set_traps(repository.git, trap, tmp_path / "hooks")
    repository.git("config", "remote.origin.url", remote.format(trap=trap, tmp=tmp_path))
    assert diff("HEAD~1..HEAD")[1] == ONE_WEIGHT
    (repository.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    code, _, err = diff("HEAD..HEAD~1")
    assert code == 3
    assert "the repository lacks it" in err


@pytest.mark.parametrize("where", [".", "conf", "conf/sub"])
def test_files_that_look_like_a_repository_are_manifests_at_most(repository, diff, trap, tmp_path, where):
    """The bare repository in the work tree has other commits, of the same names."""
    repository.commit({f"conf/{name}": text for name, text in FILES.items()})
    repository.commit({f"conf/{name}": text for name, text in LIGHTER.items()})
    planted = tmp_path / "planted"
    subprocess.run(["git", "clone", "-q", "--bare", repository.root, planted], check=True)

    def git(*words):
        subprocess.run(["git", f"--git-dir={planted}", *words], check=True, timeout=60)

    git("update-ref", "refs/heads/main", "main~1")
    set_traps(git, trap, tmp_path / "hooks")
    shutil.copytree(planted, repository.root / where, dirs_exist_ok=True)
    assert diff("HEAD~1..HEAD", "conf")[:2] == (1, ONE_WEIGHT)


def test_each_setting_is_one_that_git_knows():
    """A misspelt key would protect from nothing."""
    known = subprocess.run(["git", "help", "--config"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert set(SETTINGS) <= set(known) | {"core.gitProxy", "gpg.ssh.program", "gpg.x509.program"}
