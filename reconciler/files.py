# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, like: os.stat_result | None = None) -> None:
    """Put a file in place whole or not at all, also across a crash or a power cut.

    It is for its owner alone; `like` gives it the mode of a former file, and the owner as far as we may give files
    away. Whatever had the name before is replaced, a link too. Raises OSError.
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
    """Write where a user says. A file is replaced as a whole and a link to it stays one; into a device or a pipe
    the content is written. Raises OSError, for a directory too."""
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
