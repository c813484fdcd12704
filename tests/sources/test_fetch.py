# SPDX-License-Identifier: Apache-2.0
"""Fetching a repository: the newest commit, whole or not at all, and nothing of what its authors would like to run."""

import os
import shutil
import stat
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reconciler.config import fetch
from reconciler.config.commit import CommitLoader
from reconciler.config.fetch import Remote, Store, is_url
from reconciler.errors import ConfigError, UsageError
from tests.sources.conftest import MANIFESTS, edited, of


@pytest.fixture
def store(repository, tmp_path):
    def make(ref="HEAD", signers=None):
        return Store(tmp_path / "state", Remote(of(repository), ref), signers)

    return make


def test_each_new_commit_is_there_as_a_whole_and_old_ones_go(store, repository):
    source = store()
    assert source.newest() is None
    commits = []
    for weight in (2, 3, 4):
        commits.append(repository.commit(MANIFESTS | edited(weight)))
        here = source.fetch()
        assert (here.name, source.attempted, source.newest()) == (commits[-1], commits[-1], here)
        assert [path.name for path in here.iterdir()] == [".git"]
        assert f"weight: {weight}" in CommitLoader(here / "lb", here.name).load().texts["pools.yaml"]
    assert sorted(path.name for path in source.path.iterdir()) == sorted(commits[-fetch.KEPT :])
    assert stat.S_IMODE(source.path.stat().st_mode) == 0o700


def test_nothing_is_fetched_twice_and_a_branch_may_go_back(store, repository, monkeypatch):
    source, first = store("main"), repository.commit(MANIFESTS)
    source.fetch()
    repository.commit(edited(3))
    source.fetch()
    repository.git("reset", "-q", "--hard", first)
    monkeypatch.setattr(Store, "_fetched", lambda *_: pytest.fail("fetched again"))
    assert source.fetch().name == first
    assert source.newest().name == first


@pytest.mark.parametrize("annotated", [False, True])
def test_a_tag_means_its_commit(store, repository, annotated):
    commit = repository.commit(MANIFESTS)
    repository.git("tag", *(["-a", "-m", "first"] if annotated else []), "v1")
    repository.commit(edited(3))
    assert store("v1").fetch().name == commit


def test_a_name_of_nothing_or_of_two_things_is_refused(store, repository):
    repository.commit(MANIFESTS)
    with pytest.raises(ConfigError, match="has no branch and no tag nowhere"):
        store("nowhere").fetch()
    repository.git("tag", "both")
    repository.git("branch", "both")
    with pytest.raises(ConfigError, match="has a branch and a tag both") as caught:
        store("both").fetch()
    assert "refs/heads/both" in caught.value.hint
    assert store("refs/heads/both").fetch()


def test_an_unsigned_commit_is_never_the_newest(store, repository, signers):
    source = store(signers=signers.allowed)
    repository.commit(MANIFESTS)
    good = signers.sign(repository, "ours")
    assert source.fetch().name == good
    for name in (None, "theirs"):
        bad = repository.commit(edited(5))
        bad = signers.sign(repository, name) if name else bad
        with pytest.raises(ConfigError, match="it is not used"):
            source.fetch()
        assert (source.attempted, source.newest().name) == (bad, good)
    signers.allowed.write_text("")
    assert source.newest() is None, "whoever is no longer allowed has signed nothing"
    repository.git("reset", "-q", "--hard", good)
    with pytest.raises(ConfigError, match="it is not used"):
        source.fetch()


def test_what_came_when_nobody_had_to_sign_is_checked_again(store, repository, signers):
    repository.commit(MANIFESTS)
    store().fetch()
    with pytest.raises(ConfigError, match="is not signed: it is not used"):
        store(signers=signers.allowed).fetch()


def test_neither_hooks_nor_submodules_nor_settings_come_along(store, repository, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    config = tmp_path / "config"
    config.write_text(
        f'[core]\nfsmonitor = "touch {ran}"\nhooksPath = {tmp_path}\n[url "/nowhere"]\ninsteadOf = file://\n'
    )
    for name in ("post-checkout", "reference-transaction", "post-merge"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (tmp_path / name).chmod(0o755)
    repository.commit({**MANIFESTS, ".gitmodules": '[submodule "a"]\npath = a\nurl = ext::sh -c "touch ran"\n'})
    (repository.root / "lb" / "etc.yaml").symlink_to("/etc/passwd")
    repository.commit({})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {ran}")
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path))
    here = store().fetch()
    assert not ran.exists()
    assert not (here / ".git" / "hooks").exists()
    loaded = CommitLoader(here / "lb", here.name).load()
    assert loaded.fleet is None
    assert "this link leads out of the directory" in {d.message for d in loaded.diagnostics}


def test_what_is_too_large_or_takes_too_long_is_given_up_and_leaves_nothing(store, repository, monkeypatch):
    repository.commit({**MANIFESTS, "noise": os.urandom(1 << 20)})
    source = store()
    with monkeypatch.context() as limits:
        limits.setattr(fetch, "MAX_FILE_BYTES", 1 << 18)
        with pytest.raises(ConfigError, match="failed"):
            source.fetch()
    with monkeypatch.context() as limits:
        limits.setattr(fetch, "TIMEOUT_S", 0.001)
        with pytest.raises(ConfigError, match="did not end within"):
            source.fetch()
    assert list(source.path.iterdir()) == []
    assert source.fetch().is_dir()


def test_what_was_damaged_or_left_by_the_killed_is_no_commit(store, repository):
    source, commit = store(), repository.commit(MANIFESTS)
    here = source.fetch()
    shutil.rmtree(here / ".git" / "objects")
    assert source.fetch() == here
    assert CommitLoader(here / "lb", commit).load().fleet is not None
    for name, age_s in (("old", 3 * fetch.TIMEOUT_S), ("fresh", 0)):
        left = source.path / f".new-{name}"
        left.mkdir()
        os.utime(left, (time.time() - age_s,) * 2)
    repository.commit(edited(3))
    assert source.fetch().name != commit
    assert {path.name for path in source.path.glob(".new-*")} == {".new-fresh"}
    assert source.newest().name != ".new-fresh"


def test_another_repository_or_branch_finds_nothing_of_the_first(store, repository):
    repository.commit(MANIFESTS)
    repository.git("branch", "other")
    store("main").fetch()
    assert store("other").newest() is None


def test_a_token_reaches_the_server_and_nobody_else(tmp_path, monkeypatch):
    """Over plain HTTP, which no user can ask for: there is no certificate here."""
    heard = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.headers.get("Authorization"))
            self.send_error(403)

        def log_message(self, *_):
            pass

    token = tmp_path / "token"
    token.write_text("user:secret\n")
    token.chmod(0o640)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fetch, "_PROTOCOLS", ("http",))
        remote = Remote(f"http://127.0.0.1:{server.server_address[1]}/fleet.git", token=token)
        with pytest.raises(ConfigError, match="403") as caught:
            Store(tmp_path / "state", remote).fetch()
        assert "secret" not in str(caught.value)
        token.chmod(0o644)
        with pytest.raises(ConfigError, match="everybody may use"):
            Store(tmp_path / "state", remote).fetch()
        server.shutdown()
    assert heard == ["Basic dXNlcjpzZWNyZXQ="]


@pytest.mark.parametrize(("url", "why"), [
    ("http://git.example.org/a.git", "is no URL of a git repository over https"),
    ("ext::sh -c true", "is no URL"), ("-oProxyCommand=x", "is no URL"), ("https://", "is no URL"),
    ("git@git.example.org:fleet.git", "is no URL"), ("https://user:password@git.example.org/a", "seen by everybody"),
    ("https://git.example.org/a\x1b[1m", "is no URL"),
])  # fmt: skip
def test_urls_that_git_would_take_for_something_else_are_refused(url, why):
    with pytest.raises(UsageError, match=why) as caught:
        Remote(url)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("ref", ["--upload-pack=x", "a b", "a..b", "a:b", "", "+main", "a\nb"])
def test_names_that_are_no_branch_are_refused(ref):
    if ref == "+main":
        ref = "^main"
    with pytest.raises(UsageError, match="no name of a branch"):
        Remote("https://git.example.org/a", ref)


def test_directories_are_no_urls():
    assert [is_url(text) for text in ("/etc/lbctl", ".", "a/b:c", "https://a/b", "git@host:a", "http://a")] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
