# SPDX-License-Identifier: Apache-2.0
"""Nothing is read while git moves files."""

import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.config.rest import at_rest, lock_files
from reconciler.errors import ConfigError

ROOT = Path(__file__).parents[2]
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main")


def git(directory, *words):
    command = ["git", "-C", str(directory), *IDENTITY, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def repository(tmp_path):
    """A work tree with two revisions, and manifests in a directory of it."""
    path = tmp_path / "repository"
    manifests = path / "manifests"
    manifests.mkdir(parents=True)
    git(path, "init", "-q")
    for content in ("one", "two"):
        (manifests / "web.yaml").write_text(content)
        git(path, "add", ".")
        git(path, "commit", "-q", "-m", content)
    return path


@pytest.mark.parametrize("kind", ["work tree", "worktree", "link"])
def test_git_holds_a_lock_that_we_know_while_it_checks_files_out(repository, tmp_path, kind):
    """Asked in the midst of a real checkout, by a filter that git hands each file to."""
    directory = repository
    if kind == "worktree":
        directory = tmp_path / "linked"
        git(repository, "worktree", "add", "-q", directory)
    seen = tmp_path / "seen"
    manifests = directory / "manifests"
    if kind == "link":
        (tmp_path / "current").symlink_to(manifests)
        manifests = tmp_path / "current"
    probe = tmp_path / "probe.py"
    probe.write_text(f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from reconciler.config.rest import lock_files
Path({str(seen)!r}).write_text(str([path.name for path in lock_files(Path({str(manifests)!r}))]))
sys.stdout.write(sys.stdin.read())
""")
    attributes = Path(git(directory, "rev-parse", "--git-path", "info/attributes").strip())
    attributes = directory / attributes
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("*.yaml filter=probe\n")
    git(directory, "-c", f"filter.probe.smudge={sys.executable} {probe}", "checkout", "-q", "--detach", "HEAD~1")
    assert (directory / "manifests/web.yaml").read_text() == "one"
    assert "index.lock" in seen.read_text()
    assert list(lock_files(manifests)) == []


def test_what_was_read_under_a_lock_is_read_again(repository):
    lock = repository / ".git/index.lock"
    readings = []

    def read():
        readings.append((repository / "manifests/web.yaml").read_text())
        if len(readings) == 1:  # git begins
            lock.touch()
            (repository / "manifests/web.yaml").write_text("three")
        return readings[-1]

    assert at_rest(repository / "manifests", read, pause=lambda seconds: lock.unlink()) == "three"
    assert readings == ["two", "three"]


def test_nothing_is_read_while_a_lock_is_held_and_a_forgotten_one_is_named(repository):
    lock = repository / ".git/HEAD.lock"
    lock.touch()
    pauses = []
    with pytest.raises(ConfigError, match=r"HEAD\.lock") as caught:
        at_rest(repository / "manifests", lambda: pytest.fail("it was read"), pause=pauses.append)
    assert 4 < sum(pauses) < 6
    assert "remove that file" in caught.value.hint


ENTRIES = [b"", b"gitdir: ", b"gitdir: /nowhere\n", b"\0" * 100, b"gitdir: \xff\n", b"x" * 9999]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_file_named_git_that_says_nothing_holds_nobody_up(tmp_path, entry):
    (tmp_path / ".git").write_bytes(entry)
    assert at_rest(tmp_path, lambda: "read") == "read"


def test_where_there_is_no_work_tree_nothing_is_waited_for(tmp_path):
    assert at_rest(tmp_path / "missing", lambda: "read") == "read"
