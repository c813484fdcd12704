# SPDX-License-Identifier: Apache-2.0
"""Real files, real events. Waits end with the event; a bound of many seconds ends them only in failure."""

import queue
from pathlib import Path

import pytest
from watchdog.events import (
    DirModifiedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
)

from reconciler.agent.watch import Watch, _Tree, trail

PATIENCE_S = 20


class Hints:
    def __init__(self):
        self._queue = queue.SimpleQueue()

    def __call__(self, is_settled):
        self._queue.put(is_settled)

    def came(self):
        try:
            self._queue.get(timeout=PATIENCE_S)
        except queue.Empty:
            return False
        return True

    def next(self):
        """The next hint: whether all changes so far are complete."""
        return self._queue.get(timeout=PATIENCE_S)

    def is_silent(self):
        return self._queue.empty()

    def settle(self, watch):
        """Arm again and forget the past: a hint that comes now is about something that moved after this."""
        watch.arm()
        drain(watch)
        while not self._queue.empty():
            self._queue.get()


def drain(watch):
    """Wait until all events that were read have been handled."""
    events = watch._observer.event_queue
    with events.all_tasks_done:
        assert events.all_tasks_done.wait_for(lambda: not events.unfinished_tasks, PATIENCE_S)


@pytest.fixture
def hints():
    return Hints()


@pytest.fixture
def watching(hints):
    watches = []

    def watch(directory):
        watches.append(Watch(directory, hints))
        watches[-1].arm()
        return watches[-1]

    yield watch
    for watch in watches:
        watch.stop()


def checkout(root, name, text="a"):
    tree = root / name
    (tree / "pools").mkdir(parents=True)
    (tree / "pools" / "web.yaml").write_text(text)
    return tree


def swap(link, target):
    """As git-sync does: a new link, renamed over the old one."""
    new = link.with_name(link.name + ".new")
    new.symlink_to(target)
    new.rename(link)


def test_a_write_deep_in_the_tree_is_heard(tmp_path, watching, hints):
    tree = checkout(tmp_path, "etc")
    watching(tree)
    (tree / "pools" / "web.yaml").write_text("b")
    assert hints.came()


def test_a_save_by_rename_is_heard(tmp_path, watching, hints):
    tree = checkout(tmp_path, "etc")
    part = tmp_path / "part"
    part.write_text("b")
    watching(tree)
    part.rename(tree / "pools" / "web.yaml")
    assert hints.came()


def test_a_swapped_link_is_heard_and_so_is_the_new_tree(tmp_path, watching, hints):
    old, new = checkout(tmp_path, "1"), checkout(tmp_path, "2")
    link = tmp_path / "current"
    link.symlink_to(old.name)
    watch = watching(link / "pools")
    swap(link, new.name)
    assert hints.came()
    hints.settle(watch)
    (new / "pools" / "web.yaml").write_text("b")
    assert hints.came()


def test_a_swap_as_kubernetes_makes_it_is_heard(tmp_path, watching, hints):
    mount = tmp_path / "config"
    checkout(mount, "..1")
    checkout(mount, "..2")
    (mount / "..data").symlink_to("..1")
    (mount / "web.yaml").symlink_to("..data/pools/web.yaml")
    watching(mount)
    swap(mount / "..data", "..2")
    assert hints.came()


def test_a_directory_renamed_away_and_made_anew_is_found(tmp_path, watching, hints):
    tree = checkout(tmp_path, "etc")
    watch = watching(tree)
    tree.rename(tmp_path / "old")
    assert hints.came()
    hints.settle(watch)
    checkout(tmp_path, "etc")
    assert hints.came()
    hints.settle(watch)
    (tree / "pools" / "web.yaml").write_text("b")
    assert hints.came()


def test_reading_and_what_git_does_for_itself_are_not_heard(tmp_path, watching, hints):
    tree = checkout(tmp_path, "etc")
    (tree / ".git").mkdir()
    watch = watching(tree)
    (tree / "pools" / "web.yaml").read_text()
    (tree / ".git" / "index.lock").write_text("x")
    (tree / ".git" / "index.lock").rename(tree / ".git" / "index")
    (tmp_path / "neighbour").write_text("x")
    (tree / "pools" / "web.yaml").chmod(0o600)  # one event, and the last one
    assert hints.came()
    drain(watch)
    assert hints.is_silent()


def test_a_kernel_that_has_no_watch_left_is_asked_again(tmp_path, hints, monkeypatch):
    def refuse():
        raise OSError(24, "Too many open files")

    watch = Watch(tmp_path, hints)
    with monkeypatch.context() as patch:
        patch.setattr("reconciler.agent.watch.Observer", refuse)
        with pytest.raises(OSError, match="Too many"):
            watch.arm()
    watch.arm()
    (tmp_path / "web.yaml").write_text("a")
    assert hints.came()
    watch.stop()


def test_trail_names_each_link_and_the_directory(tmp_path):
    tree = checkout(tmp_path, "v1")
    (tmp_path / "inner").symlink_to(tree)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "outer").symlink_to("../inner")
    real, entries = trail(tmp_path / "links" / "outer" / "pools")
    assert real == tree / "pools"
    ours = {parent: names for parent, names in entries.items() if parent.is_relative_to(tmp_path)}
    assert ours == {tmp_path / "links": {"outer"}, tmp_path: {"inner"}, tree: {"pools"}}


def test_trail_ends_where_something_is_missing(tmp_path):
    assert trail(tmp_path / "gone" / "deeper") == (None, {tmp_path: {"gone"}})


def test_trail_of_links_in_a_circle_ends(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert trail(tmp_path / "a")[0] is None


def test_trail_takes_a_relative_path_from_where_we_are(tmp_path, monkeypatch):
    tree = checkout(tmp_path, "v1")
    monkeypatch.chdir(tree / "pools")
    assert trail(Path("../pools"))[0] == tree / "pools"


def test_a_file_that_is_renamed_into_its_place_is_complete_at_once(tmp_path, watching, hints):
    tree = checkout(tmp_path, "etc")
    watching(tree)
    new = tree / "pools" / ".web.yaml.swp"
    new.write_text("b")
    new.rename(tree / "pools" / "web.yaml")
    while not hints.next():
        pass


def test_what_git_wrote_is_complete_when_its_lock_goes(tmp_path, watching, hints):
    tree = checkout(tmp_path, "etc")
    (tree / ".git").mkdir()
    watching(tree)
    (tree / ".git" / "index.lock").write_text("")
    (tree / "pools" / "web.yaml").write_text("b")
    (tree / ".git" / "index.lock").rename(tree / ".git" / "index")
    while not hints.next():
        pass


def test_a_rename_beside_a_file_that_is_being_written_is_not_all():
    told = []
    tree = _Tree(Path("/etc/lbctl"), told.append)
    tree.on_any_event(FileModifiedEvent("/etc/lbctl/half.yaml"))
    tree.on_any_event(FileCreatedEvent("/etc/lbctl/web.yaml.new"))
    tree.on_any_event(FileMovedEvent("/etc/lbctl/web.yaml.new", "/etc/lbctl/web.yaml"))
    assert told == [False, False, False]
    tree.on_any_event(FileClosedEvent("/etc/lbctl/half.yaml"))
    assert told[-1] is False, "there are two of them"


def test_one_file_that_is_written_again_and_again_is_complete_each_time_it_is_closed():
    told = []
    tree = _Tree(Path("/etc/lbctl"), told.append)
    for _ in range(2):
        tree.on_any_event(FileModifiedEvent("/etc/lbctl/web.yaml"))
        tree.on_any_event(FileClosedEvent("/etc/lbctl/web.yaml"))
        tree.on_any_event(DirModifiedEvent("/etc/lbctl"))
    assert told == [False, True, False, True]


def test_a_watch_that_still_holds_is_left_alone(tmp_path, watching, hints, monkeypatch):
    tree = checkout(tmp_path, "etc")
    watch = watching(tree)
    with monkeypatch.context() as patch:
        patch.setattr(watch._observer, "unschedule_all", None)
        watch.arm()
    away = tmp_path / "away"
    tree.rename(away)
    checkout(tmp_path, "etc")
    watch.arm()
    hints.settle(watch)
    (tree / "pools" / "web.yaml").write_text("c")
    assert hints.came()
