# SPDX-License-Identifier: Apache-2.0
"""Manifests as a commit has them: neither the work tree nor what a repository says about itself matters."""

import pytest

from reconciler.config.commit import CommitLoader
from reconciler.config.load import load
from reconciler.errors import ConfigError, UsageError
from tests.sources.conftest import MANIFESTS, edited


def test_the_commit_counts_and_the_work_tree_does_not(repository):
    commit = repository.commit(MANIFESTS)
    directory = repository.root / "lb"
    loader = CommitLoader(directory, "HEAD")
    loaded = loader.load()
    assert loaded == load(directory).__class__(*(getattr(load(directory), f) for f in ("fleet", "diagnostics", "texts",
                                                                                      "digest")), commit)  # fmt: skip
    (directory / "pools.yaml").write_text("half a file")
    (directory / "services.yaml").unlink()
    assert loader.load() is loaded
    repository.git("checkout", "-q", ".")
    new = repository.commit(edited(5))
    again = loader.load()
    assert (again.commit, loader.attempted) == (new, new)
    assert again.digest != loaded.digest
    assert "weight: 5" in again.texts["pools.yaml"]


def test_a_checkout_that_is_under_way_is_not_seen(repository):
    """Git's lock is there, and half of the files are another commit's."""
    repository.commit(MANIFESTS)
    loader = CommitLoader(repository.root / "lb", "main")
    loaded = loader.load()
    (repository.root / ".git" / "index.lock").touch()
    (repository.root / "lb" / "pools.yaml").write_text(edited(9)["lb/pools.yaml"])
    assert loader.load() is loaded


def test_only_allowed_signers_are_heeded(repository, signers):
    repository.commit(MANIFESTS)
    good = signers.sign(repository, "ours")
    loader = CommitLoader(repository.root / "lb", "HEAD", signers=signers.allowed)
    assert loader.load().commit == good
    repository.commit(edited(5))
    with pytest.raises(ConfigError, match="is not signed: it is not used"):
        loader.load()
    bad = signers.sign(repository, "theirs")
    with pytest.raises(ConfigError, match="signed by a key that is not allowed"):
        loader.load()
    assert loader.attempted == bad
    signers.sign(repository, "ours")
    assert "weight: 5" in loader.load().texts["pools.yaml"]


def test_a_signature_of_another_commit_is_worth_nothing(repository, signers):
    """The signed commit's object with another tree in it."""
    repository.commit(MANIFESTS)
    signers.sign(repository, "ours")
    signed = repository.git("cat-file", "commit", "HEAD")
    tree = repository.git("rev-parse", "HEAD^{tree}").strip()
    repository.commit(edited(7))
    forged = signed.replace(tree, repository.git("rev-parse", "HEAD^{tree}").strip())
    (repository.root / "forged").write_text(forged)
    hash_ = repository.git("hash-object", "-t", "commit", "-w", "forged").strip()
    repository.git("branch", "forged", hash_)
    loader = CommitLoader(repository.root / "lb", "forged", signers=signers.allowed)
    with pytest.raises(ConfigError, match="bad signature"):
        loader.load()


def test_a_repository_can_run_nothing_and_not_say_who_may_sign(repository, signers, tmp_path):
    repository.commit({**MANIFESTS, ".gitattributes": "* filter=evil diff=evil\n"})
    signers.sign(repository, "theirs")
    for name in ("gpg.program", "gpg.ssh.program", "core.fsmonitor", "core.pager", "filter.evil.smudge",
                 "diff.evil.textconv", "diff.evil.command", "core.sshCommand"):  # fmt: skip
        repository.git("config", name, f"touch {tmp_path / 'ran'}; true")
    (tmp_path / "all").write_text(f"* {(signers.directory / 'theirs.pub').read_text()}")
    repository.git("config", "gpg.ssh.allowedSignersFile", str(tmp_path / "all"))
    assert CommitLoader(repository.root / "lb", "HEAD").load().fleet is not None
    with pytest.raises(ConfigError, match="not allowed"):
        CommitLoader(repository.root / "lb", "HEAD", signers=signers.allowed).load()
    assert not (tmp_path / "ran").exists()


def test_a_commit_is_what_its_hash_says(repository):
    """Replacements (git-replace(1)) are a repository's own opinion."""
    first = repository.commit(MANIFESTS)
    second = repository.commit(edited(5))
    repository.git("replace", second, first)
    assert "weight: 5" in CommitLoader(repository.root / "lb", "HEAD").load().texts["pools.yaml"]


def test_what_is_no_commit_is_refused_by_name(repository):
    repository.commit(MANIFESTS)
    with pytest.raises(UsageError, match="there is no revision 'nowhere'"):
        CommitLoader(repository.root, "nowhere").load()
