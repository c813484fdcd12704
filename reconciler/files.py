# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, like: os.stat_result | None = None) -> None:
    """Put a file in place whole or not at all, even if the machine crashes or loses power.

    Only its owner may read it; with `like` it gets the mode of a former file, and its owner if this process may give
    files away. It replaces any file or link of that name. Raises OSError.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # whatever the umask is
            if like:
                _resemble(handle, like)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_output(path: Path, content: bytes) -> None:
    """Write to a path that a user names. A file is replaced as a whole, and a link to it stays a link; a device or a
    pipe is written to. Raises OSError, also for a directory."""
    try:
        before = path.stat()
    except FileNotFoundError:
        write_atomically(Path(os.path.realpath(path)), content)
        return
    if stat.S_ISREG(before.st_mode):
        write_atomically(Path(os.path.realpath(path)), content, like=before)
        return
    with path.open("wb") as file:
        file.write(content)


def _resemble(handle: int, like: os.stat_result) -> None:
    os.fchmod(handle, stat.S_IMODE(like.st_mode))
    try:
        os.fchown(handle, like.st_uid, like.st_gid)
    except PermissionError:
        os.fchmod(handle, stat.S_IMODE(like.st_mode) & 0o777)
