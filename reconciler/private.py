# SPDX-License-Identifier: Apache-2.0
"""Directories and files of lbctl's own: only its user may use them, and they are trusted only if nobody else could
have made them.

Their contents decide what root does: which settings it restores, which program the kernel runs, which process waits
for a lock. So modes don't depend on the umask, links are not followed, and owner and mode are checked before a file is
read. Any user who may open a file may also lock it, so other users may not.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import FilesError
from reconciler.files import write_atomically

_OURS, _OPEN = 0o700, 0o755
TRAVERSABLE = 0o711
"""The mode of a directory in which some names are for others, such as a socket: they may neither list nor open it, so
they can't lock it either."""
_FILE = 0o600
_OTHERS_MAY_WRITE = 0o022
_LOOK_AGAIN_S = 0.02

_told_to_end = threading.Event()


def make_directory(path: Path) -> None:
    """Make a directory that only we may enter, and missing ones above it. Raises FilesError.

    An existing directory is left as it is, and refused if others could write into it.
    """
    try:
        for missing in reversed([parent for parent in path.parents if not parent.exists()]):
            _make(missing, _OPEN)
        _make(path, _OURS)
        check_directory(path)
    except OSError as error:
        raise _unusable("make the directory", path, error) from error


def check_directory(path: Path) -> None:
    """Raise FilesError if other users could have written into a directory, or could replace it by another one."""
    try:
        above, named, status = path.parent.stat(), path.lstat(), path.stat()
    except OSError as error:
        raise _unusable("use the directory", path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise FilesError(f"{path} is no directory", hint="remove it")
    if not _is_ours(above) or (above.st_mode & _OTHERS_MAY_WRITE and not above.st_mode & stat.S_ISVTX):
        raise _writable(path.parent)
    if not (_is_ours(named) and _is_ours(status)) or status.st_mode & _OTHERS_MAY_WRITE:
        raise _writable(path)


def read(path: Path) -> bytes | None:
    """The content of a file, None if there is none. Raises FilesError if it can't be read or others could have written
    it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable("read", path, error) from error
    with os.fdopen(handle, "rb") as file:
        check_directory(path.parent)
        _check_file(path, handle)
        try:
            return file.read()
        except OSError as error:
            raise _unusable("read", path, error) from error


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole, into a directory that is made if it is missing. Raises FilesError."""
    make_directory(path.parent)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise _unusable("write", path, error) from error


def mark(path: Path) -> tuple[int, ...]:
    """Differs after each time that a file was written by `write`, or added to; () if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def append(path: Path, content: bytes) -> int:
    """Add to the end of a file, which is made if it is missing; returns its size. Raises FilesError."""
    with opened(path) as handle:
        try:
            os.lseek(handle, 0, os.SEEK_END)
            os.write(handle, content)
            return os.fstat(handle).st_size
        except OSError as error:
            raise _unusable("write", path, error) from error


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file to be locked, for reading and writing; it and its directory are made if missing. Raises FilesError."""
    make_directory(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _FILE)
    except OSError as error:
        raise _unusable("open", path, error) from error
    try:
        _check_file(path, handle)
        os.fchmod(handle, _FILE)
        yield handle
    finally:
        os.close(handle)


def lock(handle: int, patience_s: float) -> bool:
    """Lock an open file or directory; the lock goes with the descriptor. False if others hold it for too long.

    Raises FilesError as soon as this process is told to end, see `stop_waiting`.
    """
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if _told_to_end.is_set():
                raise FilesError("told to end while waiting for another lbctl; nothing was changed") from None
            if time.monotonic() >= give_up:
                return False
            time.sleep(_LOOK_AGAIN_S)


def stop_waiting() -> None:
    """End every wait for a lock, present or future: this process was told to end. Free locks can still be taken."""
    _told_to_end.set()


def _make(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode)
    except FileExistsError:
        return
    path.chmod(mode)


def _check_file(path: Path, handle: int) -> None:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise FilesError(f"{path} is no file", hint="remove it")
    if not _is_ours(status) or status.st_mode & _OTHERS_MAY_WRITE or status.st_nlink > 1:
        raise _writable(path)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _writable(path: Path) -> FilesError:
    if os.geteuid():
        return FilesError(f"{path} is another user's, or others could have written it", hint="run as root")
    return FilesError(
        f"{path} could have been written by somebody else, and lbctl would obey it as root",
        hint=f"see what is in it; to use it all the same: chown -h root {path} && chmod go-w {path}",
    )


def _unusable(verb: str, path: Path, error: OSError) -> FilesError:
    hint = "run as root" if isinstance(error, PermissionError) and os.geteuid() else ""
    return FilesError(f"can't {verb} {path}: {error.strerror or error}", hint=hint)
