# SPDX-License-Identifier: Apache-2.0
"""Reading manifests from commits: as `read_tree` reads them from a checkout."""

import os
import subprocess
from pathlib import Path

import pytest

from reconciler.config import source
from reconciler.config.revision import locate, read_revision, resolve_range
from reconciler.config.source import read_tree
from reconciler.errors import UsageError


def read(path=Path(), revision="HEAD"):
    return read_revision(resolve_range(locate(path), revision)[0])


def problems(tree):
    return sorted((d.span.file, d.rule, d.message) for d in tree.diagnostics)


def test_a_commit_reads_like_its_checkout(repository):
    repository.commit({
        "a.yaml": "one", "sub/deep/b.yml": "two", "README.md": "none", ".hidden/c.yaml": "no", "sub/.d.yaml": "no",
        "latin.yaml": b"caf\xe9", "nul.yaml": b"a\0b", "mark.yaml": b"\xef\xbb\xbfa",
        "é \\\x1b[1m.yaml": "odd", "empty.yaml": "",
    })  # fmt: skip
    commit, checkout = read(), read_tree(repository.root)
    assert len(commit.files) == 4
    assert (commit.files, commit.texts) == (checkout.files, checkout.texts)
    assert problems(commit) == problems(checkout)
    assert len(problems(commit)) == 3


def test_the_content_is_that_of_the_revision_and_not_of_the_checkout(repository):
    repository.commit({"a.yaml": "old", "gone.yaml": "gone"})
    repository.commit({"a.yaml": "new", "gone.yaml": None})
    (repository.root / "a.yaml").write_text("not committed")
    assert read(revision="HEAD~1").texts == {"a.yaml": "old", "gone.yaml": "gone"}
    assert read(revision="HEAD").texts == {"a.yaml": "new"}


def test_digests_follow_names_and_contents(repository):
    repository.commit({"a.yaml": "1"})
    repository.commit({"README": "other"})
    repository.commit({"b.yaml": "1", "a.yaml": None})
    first, same, renamed = (read(revision=name).digest for name in ("HEAD~2", "HEAD~1", "HEAD"))
    assert first == same != renamed


def test_links_are_followed_inside_the_directory_only(repository):
    (repository.root / "conf" / "sub").mkdir(parents=True)
    (repository.root / "secret.yaml").write_text("secret")
    (repository.root / "conf" / "real.txt").write_text("real")
    for name, target in {
        "link.yaml": "real.txt", "sub/up.yaml": "../link.yaml", "note": "real.txt",
        "out.yaml": "../secret.yaml", "etc.yaml": "/etc/passwd", "directory": "sub",
        "gone.yaml": "nowhere.yaml", "loop.yaml": "loop.yaml", "lost": "nowhere",
    }.items():  # fmt: skip
        (repository.root / "conf" / name).symlink_to(target)
    repository.commit({})
    commit, checkout = read(Path("conf")), read_tree(repository.root / "conf")
    assert commit.texts == {"link.yaml": "real", "sub/up.yaml": "real"}
    assert commit.texts == checkout.texts
    assert problems(commit) == problems(checkout)
    assert len(problems(commit)) == 5


def test_directory_links_that_lead_out_are_seen(repository):
    for folder in ("conf", "shared"):
        (repository.root / folder).mkdir()
        (repository.root / folder / "a.yaml").write_text(folder)
    (repository.root / "notes").write_text("text")
    for name, target in {"more": "../shared", "notes": "../notes", "far": "/usr", "nowhere": "../gone"}.items():
        (repository.root / "conf" / name).symlink_to(target)
    repository.commit({})
    message = "links to directories are not followed"
    assert ("more", "source-link", message) in problems(read_tree(repository.root / "conf"))
    tree = read(Path("conf"))
    assert [(d.span.file, d.severity, d.rule) for d in tree.diagnostics] == [
        ("far", "warning", "source-link"), ("more", "error", "source-link"),
    ]  # fmt: skip
    repository.git("rm", "-q", "conf/far", "conf/more")
    (repository.root / "up").symlink_to("..")
    repository.commit({})
    assert [(d.span.file, d.severity) for d in read().diagnostics] == [("up", "warning")]


def test_submodules_are_left_out_with_a_warning(repository, tmp_path):
    inner = repository.commit({"a.yaml": "a"})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{inner},modules/inner")
    repository.git("commit", "-q", "-m", "submodule")
    tree = read()
    assert tree.texts == {"a.yaml": "a"}
    [warning] = tree.diagnostics
    assert (warning.severity, warning.rule, warning.span.file) == ("warning", "source-submodule", "modules/inner")


def test_sizes_and_numbers_are_bounded(repository, monkeypatch):
    repository.commit({f"{i}.yaml": "x" * 10 + str(i) for i in range(10)})
    assert read().diagnostics == ()
    monkeypatch.setattr(source, "MAX_TREE_BYTES", 60)
    tree = read()
    assert sorted(tree.texts) == [f"{i}.yaml" for i in range(5)]
    assert [d.rule for d in tree.diagnostics] == ["source-too-large"]
    monkeypatch.setattr(source, "MAX_TREE_BYTES", 1000)
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 10)
    assert read().texts == {}
    monkeypatch.setattr(source, "MAX_FILES", 3)
    assert ("." , "source-too-large", "there are more than 3 manifests") in problems(read())


def test_a_listing_that_is_cut_short_ends_git_too(repository, monkeypatch):
    """Far more output than a pipe holds: git would wait forever for somebody to read it."""
    repository.commit({})
    tree = "".join(f"100644 blob {'1' * 39}{i % 10}\t{i:06}{'x' * 80}.yaml\n" for i in range(5000))
    made = subprocess.run(
        ["git", "-C", repository.root, "mktree", "--missing"], input=tree, capture_output=True, text=True, check=True
    ).stdout.strip()
    commit = repository.git("commit-tree", "-m", "large", made).strip()
    monkeypatch.setattr(source, "MAX_FILES", 3)
    found = problems(read(revision=commit))
    assert ("." , "source-too-large", "there are more than 3 manifests") in found
    assert [rule for _, rule, _ in found].count("source-unreadable") == 3  # the blobs are missing


def test_a_directory_may_be_named_from_anywhere_and_need_not_exist_any_more(repository, monkeypatch, tmp_path):
    repository.commit({"a.yaml": "root", "old/conf/b.yaml": "old"})
    repository.commit({"old/conf/b.yaml": None, "c.yaml": "root"})
    assert not (repository.root / "old").exists()
    old, new = resolve_range(locate(Path("old/conf")), "HEAD~1")
    assert read_revision(old).texts == {"b.yaml": "old"}
    assert [d.rule for d in read_revision(new).diagnostics] == ["source-empty"]
    monkeypatch.chdir(tmp_path)
    assert read(Path("repository/old/../old"), "HEAD~1").texts == {"conf/b.yaml": "old"}
    assert sorted(read(repository.root).texts) == ["a.yaml", "c.yaml"]


def test_a_bare_repository_will_do_if_git_dir_names_it(repository, tmp_path, monkeypatch):
    repository.commit({"conf/a.yaml": "a"})
    bare = tmp_path / "bare.git"
    repository.git("clone", "-q", "--bare", ".", str(bare))
    with pytest.raises(UsageError, match="cannot use bare repository") as caught:
        locate(bare)
    assert f"GIT_DIR={bare}" in caught.value.hint
    monkeypatch.setenv("GIT_DIR", str(bare))
    assert read().texts == {"conf/a.yaml": "a"}
    assert read(Path("conf")).texts == {"a.yaml": "a"}
    with pytest.raises(UsageError, match="outside of the work tree"):
        locate(tmp_path)
    monkeypatch.chdir(bare)
    monkeypatch.setenv("GIT_DIR", ".")  # as it is in the hooks of a server
    assert read(Path("conf")).texts == {"a.yaml": "a"}


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("main..side", "main", "side"), ("side..main", "side", "main"), ("main...side", "base", "side"),
        ("side", "side", "head"), ("side..", "side", "head"), ("..side", "head", "side"), ("v1..side", "base", "side"),
    ],
)  # fmt: skip
def test_forms_of_a_range(repository, text, first, second):
    commits = {"base": repository.commit({"a.yaml": "base"})}
    repository.git("tag", "-a", "-m", "a tag", "v1")
    repository.git("checkout", "-q", "-b", "side")
    commits["side"] = repository.commit({"a.yaml": "side"})
    repository.git("checkout", "-q", "main")
    commits["main"] = repository.commit({"a.yaml": "main"})
    repository.git("checkout", "-q", "--detach")
    commits["head"] = repository.commit({"a.yaml": "head"})
    old, new = resolve_range(locate(Path()), text)
    assert (old.commit, new.commit) == (commits[first], commits[second])


@pytest.mark.parametrize(
    "text", ["nowhere", "HEAD..nowhere", "HEAD...nowhere", "HEAD:a.yaml", "--all", "HEAD..HEAD..HEAD"]
)
def test_what_is_no_revision_is_an_error_of_usage(repository, text):
    repository.commit({"a.yaml": "a"})
    with pytest.raises(UsageError, match="there is no revision"):
        resolve_range(locate(Path()), text)


def test_a_name_that_stands_for_several_commits_is_refused(repository):
    first = repository.commit({"a.yaml": "1"})
    repository.commit({"a.yaml": "2"})
    repository.git("tag", "release", first)
    repository.git("branch", "release", "HEAD")
    for text in ("release", "release~0..HEAD", "HEAD..release"):
        with pytest.raises(UsageError, match="stands for more than one commit") as caught:
            resolve_range(locate(Path()), text)
        assert "heads/release" in caught.value.hint
        assert "tags/release" in caught.value.hint
    assert resolve_range(locate(Path()), "tags/release..heads/release")[0].commit == first
    repository.git("branch", "-f", "release", first)
    assert resolve_range(locate(Path()), "release")[0].commit == first, "both are the same commit"
    repository.git("tag", "HEAD", first)
    assert resolve_range(locate(Path()), "HEAD")[0].commit != first
    repository.git("update-ref", f"refs/heads/{first[:8]}", "HEAD~0")
    with pytest.raises(UsageError, match="stands for more than one commit") as caught:
        resolve_range(locate(Path()), first[:8])
    assert f"heads/{first[:8]}" in caught.value.hint


def test_histories_without_a_common_ancestor_have_no_merge_base(repository):
    repository.commit({"a.yaml": "a"})
    repository.git("checkout", "-q", "--orphan", "other")
    repository.commit({"a.yaml": "b"})
    with pytest.raises(UsageError, match="main and other have no common ancestor"):
        resolve_range(locate(Path()), "main...other")


def test_outside_of_a_repository_and_without_git_the_error_says_so(tmp_path, repository, monkeypatch):
    with pytest.raises(UsageError, match="not a git repository"):
        locate(tmp_path)
    repository.commit({"a.yaml": "a"})
    with pytest.raises(UsageError, match="neither HEAD nor HEAD has a directory nowhere"):
        resolve_range(locate(Path("nowhere")), "HEAD")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(UsageError, match="git is not installed"):
        locate(repository.root)


def test_a_file_that_the_repository_has_lost_is_a_problem_of_that_file(repository):
    repository.commit({"a.yaml": "a", "b.yaml": "b"})
    lost = repository.git("rev-parse", "HEAD:b.yaml").strip()
    (repository.root / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    tree = read()
    assert tree.texts == {"a.yaml": "a"}
    assert problems(tree) == [("b.yaml", "source-unreadable", "this can't be read: the repository lacks it")]
