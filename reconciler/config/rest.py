# SPDX-License-Identifier: Apache-2.0
"""Reading manifests while nobody changes the directory.

`source` reads again if files change during the reading. It can't notice a checkout that is only half done and pauses
between two files. Git's locks show that git is at work; other programs' changes show in a second look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from reconciler.errors import ConfigError

PATIENCE_S = 5.0
"""How long git may hold its lock before lbctl reports it."""
SECOND_LOOK_S = 1.0
"""How long files must stay unchanged before lbctl removes anything because of them."""
_FIRST_STEP_S, _LAST_STEP_S = 0.005, 0.05  # most of git's work is done within milliseconds
_LOCKS = ("index.lock", "HEAD.lock")
"""Git holds the first one from before it changes the first file of a work tree until after the last one."""
_POINTER = b"gitdir: "
_POINTER_BYTES = 4096

T = TypeVar("T")


def at_rest(
    directory: Path, read: Callable[[], T], patience_s: float = PATIENCE_S, pause: Callable[[float], None] = time.sleep
) -> T:
    """The result of a `read` during which git held no lock on the work tree around `directory`.

    Raises ConfigError if git holds one for longer than `patience_s`.
    """
    left_s, step_s = patience_s, _FIRST_STEP_S
    while True:
        held = next(lock_files(directory), None)
        if held is None:
            result = read()
            held = next(lock_files(directory), None)
            if held is None:
                return result
        if left_s <= 0:
            raise ConfigError(
                f"git is at work on {directory}: {held} is there after {patience_s:g} seconds",
                hint="wait for it; if no git runs, one was killed: remove that file",
            )
        pause(step_s)
        left_s -= step_s
        step_s = min(2 * step_s, _LAST_STEP_S)


def lock_files(directory: Path) -> Iterator[Path]:
    """The locks that git holds just now on the work tree which `directory` is part of."""
    repository = _repository(Path(os.path.realpath(directory)))
    if repository is not None:
        yield from (path for name in _LOCKS if (path := repository / name).exists())


def _repository(directory: Path) -> Path | None:
    """Where git keeps the index of the work tree around a directory; None if there is no work tree.

    Of a worktree or a submodule, `.git` is a file that says where.
    """
    for parent in (directory, *directory.parents):
        entry = parent / ".git"
        if entry.is_dir():
            return entry
        if entry.is_file():
            with entry.open("rb") as file:
                line = file.read(_POINTER_BYTES).split(b"\n")[0]
            return parent / os.fsdecode(line.removeprefix(_POINTER).strip()) if line.startswith(_POINTER) else None
    return None
