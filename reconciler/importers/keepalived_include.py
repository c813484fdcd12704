# SPDX-License-Identifier: Apache-2.0
"""The files that a keepalived.conf includes, read from its own directory and those below it.

Somebody else may have written the configuration, so files in other places are never read, and only regular files are.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from glob import iglob
from itertools import islice
from pathlib import Path

from reconciler.importers.draft import InputError, bare
from reconciler.importers.keepalived_source import Include

MAX_FILES = 10_000

_BRACES = re.compile(r"\{([^{}]*)\}")


def reader_for(main: Path, decode: Callable[[str, bytes], str], max_bytes: int) -> Include:
    """A reader of the files that `main`, the imported file, includes, and those that they include.

    Names are relative to the directory of `main`. All of them together may have `max_bytes`.
    """
    root = main.parent.resolve()
    left = max_bytes

    def read(pattern: str, within: str) -> list[tuple[str, str]]:
        nonlocal left
        found = []
        for path in _matching(pattern, (root / within).parent if within else root, root):
            content = _content(path, root, left)
            left -= len(content)
            name = str(path.relative_to(root))
            found.append((name, decode(name, content)))
        return found

    return read


def _matching(pattern: str, base: Path, root: Path) -> list[Path]:
    """The files of a pattern in the order of their names. Raises InputError if there are none, or any is elsewhere."""
    paths: dict[Path, None] = {}
    for one in _without_braces(pattern):
        whole = Path(os.path.normpath(base / one))
        if not whole.is_relative_to(root):
            raise InputError(0, "only files in its own directory and below are")
        # The root has no wildcards: a pattern can't search directories outside of the input's.
        names = sorted(islice(iglob(str(whole.relative_to(root)), root_dir=root), MAX_FILES))  # noqa: PTH207 - skips hidden files
        paths |= dict.fromkeys(root / name for name in names)
    if not paths:
        raise InputError(0, "there is no such file")
    return list(paths)


def _without_braces(pattern: str) -> Iterator[str]:
    """`a{b,c}` as `ab` and `ac`, one after the other, as the caller asks for them."""
    waiting = [pattern]
    for _ in range(MAX_FILES):
        if not waiting:
            return
        one = waiting.pop(0)
        if match := _BRACES.search(one):
            waiting = [f"{one[: match.start()]}{word}{one[match.end() :]}" for word in match[1].split(",")] + waiting
        else:
            yield one


def _content(path: Path, root: Path, max_bytes: int) -> bytes:
    name = path.relative_to(root)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(0, f"{bare(str(name))} is no regular file")
            if not Path(f"/proc/self/fd/{descriptor}").resolve().is_relative_to(root):
                raise InputError(0, f"{bare(str(name))} leads out of its directory")
            content = stream.read(max_bytes + 1)
    except OSError as error:
        raise InputError(0, f"{bare(str(name))} can't be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise InputError(0, "the files together are too large")
    return content
