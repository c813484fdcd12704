# SPDX-License-Identifier: Apache-2.0
"""Hints that a directory of manifests may have changed.

Only hints: inotify loses events silently when its queue overflows, and reports nothing when a directory above is
renamed. So the listener reads the directory again and compares contents, and does so on a timer, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePath

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

MAX_LINKS = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""

# It warns when it is re-armed and when events were lost; neither matters for hints.
logging.getLogger("watchdog").setLevel(logging.ERROR)


class Watch:
    """Calls `hint` from a thread of its own whenever a file changes in `directory` or on the path to it."""

    def __init__(self, directory: Path, hint: Callable[[], None]) -> None:
        self.directory = directory
        self._hint = hint
        self._observer: BaseObserver | None = None

    def arm(self) -> None:
        """Watch the directory that the path leads to now. Call it before each reading, so that no change falls in
        between.

        Raises OSError if the kernel grants no more watches.
        """
        if self._observer is None:
            self._observer = Observer()
            self._observer.start()
        self._observer.unschedule_all()
        real, entries = trail(self.directory)
        for parent, names in entries.items():
            _schedule(self._observer, _Entries(parent, names, self._hint), parent, recursive=False)
        if real is not None:
            _schedule(self._observer, _Tree(real, self._hint), real, recursive=True)

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()


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
    """Hears of everything below a directory, except git's own files in .git."""

    def __init__(self, root: Path, hint: Callable[[], None]) -> None:
        self._root = root
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        if _is_change(event) and not all(self._is_git(path) for path in _paths(event)):
            self._hint()

    def _is_git(self, path: str) -> bool:
        return ".git" in PurePath(path).parts[len(self._root.parts) :]


def _is_change(event: FileSystemEvent) -> bool:
    return event.event_type not in ("opened", "closed_no_write")  # reading a file is no change


def _paths(event: FileSystemEvent) -> list[str]:
    return [os.fsdecode(path) for path in (event.src_path, event.dest_path) if path]
