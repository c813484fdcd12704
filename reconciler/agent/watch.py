# SPDX-License-Identifier: Apache-2.0
"""Hints that a directory of manifests may have changed.

Only hints: inotify loses events silently when its queue overflows, and reports nothing when a directory above is
renamed. So the listener reads the directory again and compares contents, and does so on a timer, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from reconciler.config.listing import SUFFIXES

MAX_LINKS = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""

BURST_S = 0.2
"""Files that are complete within so short a time of each other may be parts of one change: it has to settle."""

_GIT_LOCK = "/.git/index.lock"
"""Git renames it, or removes it, after the last file of a work tree."""

# It warns when it is re-armed and when events were lost; neither matters for hints.
logging.getLogger("watchdog").setLevel(logging.ERROR)


class Watch:
    """Calls `hint` from a thread of its own whenever a file changes in `directory` or on the path to it.

    It says whether all changes so far are complete: one manifest that was closed, or renamed into its place, is, and
    so is everything that git wrote once its lock goes.
    """

    def __init__(self, directory: Path, hint: Callable[[bool], None]) -> None:
        self.directory = directory
        self._hint = hint
        self._observer: BaseObserver | None = None
        self._places: Mapping[Path, tuple[int, ...]] = {}
        self._is_stale = True

    def arm(self, *, afresh: bool = False) -> None:
        """Watch the directory that the path leads to now. Call it before each reading, so that no change falls in
        between. If the path leads to the same directory as before, and nothing on it has moved, the former watch
        still holds; but inotify does not tell of all that may happen, so watch `afresh` from time to time.

        Raises OSError if the kernel grants no more watches.
        """
        real, entries = trail(self.directory)
        places = {path: _identity(path) for path in (*entries, *([real] if real else []))}
        if not afresh and not self._is_stale and places == self._places:
            return
        if self._observer is None:
            self._observer = Observer()
            self._observer.start()
        self._places, self._is_stale = places, True  # until all of it is watched
        self._observer.unschedule_all()
        for parent, names in entries.items():
            _schedule(self._observer, _Entries(parent, names, self._moved), parent, recursive=False)
        if real is not None:
            _schedule(self._observer, _Tree(real, self._hint), real, recursive=True)
        self._is_stale = False

    def _moved(self) -> None:
        self._is_stale = True
        self._hint(False)

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino


def _schedule(observer: BaseObserver, handler: FileSystemEventHandler, path: Path, *, recursive: bool) -> None:
    # The directory is gone again: its parent is watched already.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        observer.schedule(handler, str(path), recursive=recursive)


def trail(directory: Path) -> tuple[Path | None, dict[Path, set[str]]]:
    """The real directory of a path, and the directory entries that decide where it leads, by parent.

    The entries are each symbolic link on the way and the last directory itself. If an entry is missing, the first
    missing one ends the trail, and there is no real directory.
    """
    entries: dict[Path, set[str]] = {}
    here = Path("/")
    left = list(reversed((Path.cwd() / directory).parts[1:]))
    links = 0
    while left:
        name = left.pop()
        if name == "..":
            here = here.parent
            continue
        try:
            target = PurePath((here / name).readlink())
        except OSError:  # not a link, or not there
            if not (here / name).is_dir():
                entries.setdefault(here, set()).add(name)
                return None, entries
            here /= name
            continue
        entries.setdefault(here, set()).add(name)
        links += 1
        if links > MAX_LINKS:
            return None, entries
        if target.is_absolute():
            here = Path("/")
        left += reversed([part for part in target.parts if part != "/"])
    entries.setdefault(here.parent, set()).add(here.name)
    return here, entries


class _Entries(FileSystemEventHandler):
    """Hears of some entries of a directory; its other entries, e.g. in /tmp, don't matter."""

    def __init__(self, parent: Path, names: set[str], hint: Callable[[], None]) -> None:
        self._paths = {str(parent / name) for name in names}
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        if _is_change(event) and not self._paths.isdisjoint(_paths(event)):
            self._hint()


class _Tree(FileSystemEventHandler):
    """Hears of everything below a directory, except git's own files in .git, but for its lock."""

    def __init__(self, root: Path, hint: Callable[[bool], None]) -> None:
        self._root = root
        self._hint = hint
        self._written: set[str] = set()
        """The files that somebody may still be writing."""
        self._last = "", -BURST_S
        """The manifest that was complete last, and when."""

    def on_any_event(self, event: FileSystemEvent) -> None:
        if not _is_change(event) or (event.is_directory and event.event_type == "modified"):
            return  # what changed in a directory tells of itself
        paths = _paths(event)
        if all(self._is_git(path) for path in paths):
            if self._written and event.event_type in ("moved", "deleted") and paths[0].endswith(_GIT_LOCK):
                self._written.clear()
                self._hint(True)
            return
        self._written.difference_update(paths)
        if event.event_type in ("created", "modified") and not event.is_directory:
            self._written.update(paths)
        is_complete = event.event_type in ("moved", "closed") and self._is_alone(paths[-1])
        self._hint(is_complete and not self._written)

    def _is_alone(self, path: str) -> bool:
        """Whether this is a manifest that is complete now, and no other one became so a moment ago: more may come."""
        if not path.endswith(SUFFIXES):
            return False
        (last, when), now = self._last, time.monotonic()
        self._last = path, now
        return last == path or now - when > BURST_S

    def _is_git(self, path: str) -> bool:
        return ".git" in PurePath(path).parts[len(self._root.parts) :]


def _is_change(event: FileSystemEvent) -> bool:
    return event.event_type not in ("opened", "closed_no_write")  # reading a file is no change


def _paths(event: FileSystemEvent) -> list[str]:
    return [os.fsdecode(path) for path in (event.src_path, event.dest_path) if path]
