# SPDX-License-Identifier: Apache-2.0
import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from reconciler.config import source
from reconciler.config.source import read_tree


def names(tree):
    return [file.name for file in tree.files]


def problems(tree):
    return [(d.span.file, d.rule) for d in tree.diagnostics]


def test_manifests_are_found_at_any_depth_in_order(write):
    files = ["b.yaml", "a.yml", "sub/c.yaml", "sub/deep/d.yaml", "zz.yaml", "dir.yaml/e.yaml"]
    others = ["README.md", "x.yaml.bak", "y.json", ".hidden.yaml", ".git/f.yaml", "sub/.git/g.yaml", "yaml", ".yaml"]
    tree = read_tree(write({name: name for name in files + others}))
    assert [(file.name, file.text) for file in tree.files] == [(name, name) for name in sorted(files)]
    assert tree.diagnostics == ()
    assert tree.texts == {name: name for name in files}


def test_directory_without_manifests_is_a_warning(tmp_path):
    assert problems(read_tree(tmp_path)) == [(str(tmp_path), "source-empty")]


def test_missing_directory_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "gone", tmp_path / "file", tmp_path / "file" / "below"):
        tree = read_tree(path)
        assert problems(tree) == [(str(path), "source-missing")]


def test_directory_may_be_reached_by_a_link(write, tmp_path):
    directory = write({"a.yaml": "a"})
    (tmp_path / "link").symlink_to(directory)
    assert names(read_tree(tmp_path / "link")) == ["a.yaml"]


def test_mounted_config_map_is_read(tmp_path):
    """Kubernetes publishes a version as a hidden directory that the visible files point into."""
    version = tmp_path / "..2026_01_31"
    version.mkdir()
    (version / "a.yaml").write_text("a")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    tree = read_tree(tmp_path)
    assert [(file.name, file.text) for file in tree.files] == [("a.yaml", "a")]
    assert tree.diagnostics == ()


def test_link_out_of_the_tree_is_refused_and_its_target_stays_unread(write, tmp_path):
    directory = write({"a.yaml": "a"})
    (tmp_path / "secret.yaml").write_text("secret")
    (directory / "near.yaml").symlink_to("../secret.yaml")
    (directory / "passwd.yaml").symlink_to("/etc/passwd")
    tree = read_tree(directory)
    assert problems(tree) == [("near.yaml", "source-link"), ("passwd.yaml", "source-link")]
    assert tree.texts == {"a.yaml": "a"}


def test_directory_beside_with_the_same_beginning_is_out_of_the_tree(write, tmp_path):
    directory = write({"a.yaml": "a"})
    beside = Path(f"{directory}-old")
    beside.mkdir()
    (beside / "b.yaml").write_text("b")
    (directory / "b.yaml").symlink_to(beside / "b.yaml")
    assert problems(read_tree(directory)) == [("b.yaml", "source-link")]


def test_linked_directories_and_loops_are_refused(write):
    directory = write({"a.yaml": "a", "sub/b.yaml": "b"})
    (directory / "up").symlink_to("..")
    (directory / "sub" / "here").symlink_to(".")
    (directory / "loop.yaml").symlink_to("loop.yaml")
    (directory / "loop").symlink_to("loop")  # no manifest by its name
    (directory / "gone.yaml").symlink_to("nowhere.yaml")
    tree = read_tree(directory)
    assert names(tree) == ["a.yaml", "sub/b.yaml"]
    assert sorted(problems(tree)) == [
        ("gone.yaml", "source-unreadable"),
        ("loop.yaml", "source-unreadable"),
        ("sub/here", "source-link"),
        ("up", "source-link"),
    ]


@pytest.fixture
def bounded():
    """Opening a pipe waits for the other end for ever: make that a failure."""

    def give_up(*_):
        pytest.fail("waited for a pipe")

    former = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.usefixtures("bounded")
def test_pipes_sockets_and_devices_are_refused_without_waiting(write, monkeypatch):
    directory = write({"a.yaml": "a"})
    os.mkfifo(directory / "pipe.yaml")
    monkeypatch.chdir(directory)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.yaml")
    tree = read_tree(directory)
    assert names(tree) == ["a.yaml"]
    assert problems(tree) == [("pipe.yaml", "source-not-a-file"), ("socket.yaml", "source-not-a-file")]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("swap", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_file_that_turns_into_something_else_is_not_read(write, monkeypatch, swap):
    directory = write({"a.yaml": "a"})
    real_list = source._list

    def list_then_swap(path):
        listing = real_list(path)
        (path / "a.yaml").unlink()
        swap(path / "a.yaml")
        return listing

    monkeypatch.setattr(source, "_list", list_then_swap)
    monkeypatch.setattr(source, "MAX_ATTEMPTS", 1)
    tree = read_tree(directory)
    assert ("a.yaml", "source-unreadable") in problems(tree)
    assert tree.texts == {}


@pytest.fixture
def as_nobody():
    """Run as a user whom permissions bind, in a directory that this user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield directory, lambda: os.seteuid(user)
        finally:
            os.seteuid(user)


def test_what_may_not_be_read_is_a_problem_each(as_nobody):
    directory, become_owner = as_nobody
    user = os.geteuid()
    become_owner()
    for name in ("a.yaml", "secret.yaml", "locked/b.yaml"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
    (directory / "secret.yaml").chmod(0)
    (directory / "locked").chmod(0)
    os.seteuid(user)
    tree = read_tree(directory)
    become_owner()
    (directory / "locked").chmod(0o755)
    assert names(tree) == ["a.yaml"]
    assert sorted(problems(tree)) == [("locked", "source-unreadable"), ("secret.yaml", "source-unreadable")]


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [
        ("é: 1\nname: caf\xe9\n".encode("latin-1"), 1, 1),
        (b"\xc3\xa9: 1\nname: \xc3\xa9caf\xe9\n", 2, 11),
        (b"a: 1\r\nb: \xff\n", 2, 4),
        (b"a: 1\nb: \x00\n", 2, 4),
        ("a: 1\n".encode("utf-8-sig"), 1, 1),
        ("a: 1\n".encode("utf-16"), 1, 1),
        ("a: 1\n".encode("utf-32"), 1, 1),
        ("a: 1\n".encode("utf-16-be"), 1, 1),
        (b"a: \xed\xa0\x80", 1, 4),  # a surrogate
        (b"a: \xc3", 1, 4),  # cut off
    ],
)
def test_what_is_not_utf_8_is_shown_where_it_is(write, content, line, column):
    tree = read_tree(write({"a.yaml": content, "b.yaml": "fine"}))
    [found] = tree.diagnostics
    assert (found.span.file, found.span.line, found.span.column) == ("a.yaml", line, column)
    assert found.rule == "source-encoding"
    assert names(tree) == ["b.yaml"]


def test_huge_file_is_refused_before_it_is_parsed(write):
    directory = write({"small.yaml": "a"})
    with (directory / "huge.yaml").open("wb") as file:
        file.write(b"a: ")
        file.truncate(100 << 20)
    tree = read_tree(directory)
    assert problems(tree) == [("huge.yaml", "source-too-large")]
    assert names(tree) == ["small.yaml"]


def test_size_and_number_of_files_are_bounded(write, monkeypatch):
    directory = write({f"{i}.yaml": "x" * 10 for i in range(10)})
    assert read_tree(directory).diagnostics == ()
    monkeypatch.setattr(source, "MAX_TREE_BYTES", 55)
    tree = read_tree(directory)
    assert names(tree) == [f"{i}.yaml" for i in range(5)]
    assert problems(tree) == [("5.yaml", "source-too-large")]
    monkeypatch.setattr(source, "MAX_FILES", 3)
    tree = read_tree(directory)
    assert len(tree.files) == 3
    assert problems(tree) == [(str(directory), "source-too-large")]


def test_unusual_names_are_printable_and_stay_apart(write):
    directory = write({})
    directory.mkdir()
    for name in (b"a\n.yaml", b"a\\n.yaml", b"\xff.yaml", "é.yaml".encode(), b"\x1b[31m.yaml"):
        (directory / os.fsdecode(name)).write_bytes(name)
    tree = read_tree(directory)
    assert sorted(tree.texts) == ["\\udcff.yaml", "\\x1b[31m.yaml", "a\\\\n.yaml", "a\\n.yaml", "é.yaml"]
    assert all(name.isprintable() for name in tree.texts)


def test_digest_follows_names_and_contents_only(write):
    directory = write({"a.yaml": "1", "b.yaml": "2"})
    first = read_tree(directory).digest
    (directory / "README.md").write_text("no manifest")
    (directory / "a.yaml").touch()
    assert read_tree(directory).digest == first
    seen = {first}
    for change in (
        lambda: (directory / "a.yaml").write_text("3"),
        lambda: (directory / "a.yaml").rename(directory / "c.yaml"),
        lambda: (directory / "b.yaml").unlink(),
        lambda: (directory / "c.yaml").write_bytes(b"\xff"),
        lambda: (directory / "c.yaml").write_bytes(b"\xfe"),
        lambda: (directory / "d.yaml").symlink_to("nowhere"),
    ):
        change()
        digest = read_tree(directory).digest
        assert digest not in seen
        seen.add(digest)


def after_each_read(monkeypatch, action):
    real_read = source._read

    def read(*args):
        result = real_read(*args)
        action()
        return result

    monkeypatch.setattr(source, "_read", read)


def test_directory_that_changes_while_it_is_read_is_read_again(write, monkeypatch):
    directory = write({"a.yaml": "old", "b.yaml": "old"})
    changes = iter([
        lambda: (directory / "b.yaml").write_text("new"),
        lambda: (directory / "sub").mkdir(),
        lambda: (directory / "sub" / "c.yaml").write_text("new"),
    ])  # fmt: skip
    after_each_read(monkeypatch, lambda: next(changes, lambda: None)())
    tree = read_tree(directory)
    assert {file.name: file.text for file in tree.files} == {"a.yaml": "old", "b.yaml": "new", "sub/c.yaml": "new"}
    assert tree.diagnostics == ()


def test_swapped_link_to_another_checkout_is_read_again(tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("old")

    def swap():
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(link)
        monkeypatch.undo()

    after_each_read(monkeypatch, swap)
    assert read_tree(link).texts == {"a.yaml": "new"}


def test_directory_that_never_rests_is_a_problem(write, monkeypatch):
    directory = write({"a.yaml": "0"})
    counter = iter(range(100))
    monkeypatch.setattr(source, "_PAUSE_S", 0)
    after_each_read(monkeypatch, lambda: (directory / "a.yaml").write_text(str(next(counter))))
    assert problems(read_tree(directory)) == [(str(directory), "source-changing")]
    assert next(counter) == source.MAX_ATTEMPTS


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("s.YAML", "name it s.yaml"), ("sub/s.Yml", "name it s.yml"), ("web.j2", "name it web.yaml.j2"),
        ("web.yml.j2", "name it web.yaml.j2"), ("web.yaml.J2", "name it web.yaml.j2"),
        ("web.yaml.jinja", "name it web.yaml.j2"), ("s.json", "JSON is YAML, too: name it s.yaml"),
    ],
)  # fmt: skip
def test_file_that_is_nearly_a_manifest_is_told(tmp_path, name, hint):
    (tmp_path / "a.yaml").write_text("a: 1\n")
    before = read_tree(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"apiVersion": "lbctl/v1"}')
    tree = read_tree(tmp_path)
    assert [(d.span.file, d.rule, d.severity, d.hint) for d in tree.diagnostics] == [
        (name, "source-ignored", "warning", hint)
    ]
    assert tree.digest == before.digest
    (tmp_path / "a.yaml").unlink()
    assert {d.rule for d in read_tree(tmp_path).diagnostics} == {"source-ignored", "source-empty"}


@pytest.mark.parametrize("name", ["web.yaml.bak", "web.yaml~", "j2", ".j2", "lb1.json", "README.j2.md"])
def test_other_files_are_nobodys_business(tmp_path, name):
    (tmp_path / "a.yaml").write_text("a: 1\n")
    (tmp_path / name).write_text('{"format_version": 1}')
    assert read_tree(tmp_path).diagnostics == ()


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are read."""
    found = []
    real = source.read_file
    monkeypatch.setattr(source, "read_file", lambda path, most: found.append(Path(path).name) or real(path, most))
    return found


def test_only_files_with_another_state_are_read_again(write, opened, monkeypatch):
    monkeypatch.setattr(source, "SETTLED_NS", -(10**18))  # everything counts as old
    directory = write({"a.yaml": "a", "b.yaml": "b", "sub/c.yaml": "c"})
    memory = source.Memory()
    first = read_tree(directory, memory)
    assert read_tree(directory, memory) is first
    assert opened == ["a.yaml", "b.yaml", "c.yaml"]
    opened.clear()
    (directory / "b.yaml").write_text("B")
    second = read_tree(directory, memory)
    assert opened == ["b.yaml"]
    assert second == read_tree(directory)
    assert second.digest != first.digest
    assert [new is old for new, old in zip(second.files, first.files, strict=True)] == [True, False, True]


def test_what_changes_besides_manifests_gives_the_same_tree(write):
    directory = write({"a.yaml": "a"})
    memory = source.Memory()
    first = read_tree(directory, memory)
    (directory / "README.md").write_text("no manifest")
    (directory / "a.yaml").touch()
    assert read_tree(directory, memory) is first


def test_state_of_a_young_file_proves_nothing(write, monkeypatch):
    """A write within the same tick of the file system's clock leaves the same times, and here the same size."""
    directory = write({"a.yaml": "old"})
    memory = source.Memory()
    state = (1, 2, 3, 4, 5)
    for now_ns, content in (
        (source.SETTLED_NS, "new"),
        (source.SETTLED_NS + 5, "few"),
        (source.SETTLED_NS + 6, "yes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("reconciler.config.listing.state_of", lambda _: state)
            patch.setattr(source.time, "time_ns", lambda now_ns=now_ns: now_ns)
            (directory / "a.yaml").write_text(content)
            assert read_tree(directory, memory).texts == {"a.yaml": content}
            (directory / "a.yaml").write_text("unseen")
            assert (read_tree(directory, memory).texts == {"a.yaml": content}) == (content == "yes")
            assert read_tree(directory, memory, afresh=True).texts == {"a.yaml": "unseen"}


def test_file_that_could_not_be_read_is_tried_again(write, monkeypatch):
    monkeypatch.setattr(source, "SETTLED_NS", -(10**18))
    directory = write({"a.yaml": "a"})
    memory = source.Memory()
    with monkeypatch.context() as patch:
        patch.setattr(source, "read_file", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert problems(read_tree(directory, memory)) == [("a.yaml", "source-unreadable")]
    assert read_tree(directory, memory).texts == {"a.yaml": "a"}
    assert problems(read_tree(directory, memory)) == []


def test_directory_that_never_rested_proves_nothing(write, monkeypatch):
    directory = write({"a.yaml": "0"})
    monkeypatch.setattr(source, "_PAUSE_S", 0)
    monkeypatch.setattr(source, "SETTLED_NS", -(10**18))
    memory = source.Memory()
    counter = iter(range(100))
    with monkeypatch.context() as patch:
        after_each_read(patch, lambda: (directory / "a.yaml").write_text(str(next(counter))))
        assert problems(read_tree(directory, memory)) == [(str(directory), "source-changing")]
    assert read_tree(directory, memory) == read_tree(directory)
    assert problems(read_tree(directory, memory)) == []
