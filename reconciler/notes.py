# SPDX-License-Identifier: Apache-2.0
"""Notes that people leave in an instance's directory, where every process reads them: a pause, an unconfirmed
change, a balancer that leaves.

A note is a frozen dataclass in a file of its own, as JSON. The directory is emptied at each boot, and so times are
those of the clock that counts from there (CLOCK_BOOTTIME): no change of the date makes a note older or younger.
"""

from __future__ import annotations

import pwd
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import environ, getuid
from pathlib import Path
from typing import TypeVar

import msgspec

from reconciler import private
from reconciler.errors import FilesError
from reconciler.safe import line

N = TypeVar("N")


@dataclass(frozen=True, slots=True)
class Pause:
    """The agent leaves the node as it is, until a time (None: until it is told to go on)."""

    who: str
    reason: str
    until_s: float | None = None
    until: str = "`lbctl resume`"
    """The same for people."""

    @property
    def is_over(self) -> bool:
        return self.until_s is not None and now_s() >= self.until_s

    def __str__(self) -> str:
        return f"paused until {line(self.until)}, by {line(self.who)}: {line(self.reason)}"


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A change that is taken back at a time, unless somebody confirms it: then the node gets `back_to`, the revision
    that was in force before; empty: nothing at all."""

    who: str
    token: str
    until_s: float
    until: str
    back_to: str

    @property
    def is_over(self) -> bool:
        return now_s() >= self.until_s

    def __str__(self) -> str:
        where = f"to revision {line(self.back_to)[:12]}" if self.back_to else "to nothing"
        return f"the change by {line(self.who)} goes back {where} at {line(self.until)}, unless confirmed"


@dataclass(frozen=True, slots=True)
class Leaving:
    """Routers are to turn to other balancers, from a time on, until another one (None: until it is undone)."""

    who: str
    reason: str
    since_s: float
    until_s: float | None = None
    until: str = "`lbctl undrain --balancer`"
    """The same for people."""

    @property
    def is_over(self) -> bool:
        return self.until_s is not None and now_s() >= self.until_s

    def __str__(self) -> str:
        reason = f": {line(self.reason)}" if self.reason else ""
        return f"until {line(self.until)}, by {line(self.who)}{reason}"


_FILES: dict[type, str] = {Pause: "paused.json", Unconfirmed: "unconfirmed.json", Leaving: "leaving.json"}


def path_of(instance_dir: Path, kind: type) -> Path:
    return instance_dir / _FILES[kind]


def read(instance_dir: Path, kind: type[N]) -> N | None:
    """The note of this kind, if there is one. Raises FilesError, also if it is damaged."""
    path = path_of(instance_dir, kind)
    content = private.read(path)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FilesError(f"{path} is damaged: {error}", hint="see what is in it, and remove it") from error


def write(instance_dir: Path, note: object) -> None:
    """Leave a note in the place of a former one. Raises FilesError."""
    private.write(instance_dir / _FILES[type(note)], msgspec.json.encode(note))


def remove(instance_dir: Path, kind: type) -> bool:
    """Take a note away; whether there was one. Raises FilesError."""
    path = path_of(instance_dir, kind)
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise FilesError(f"can't remove {path}: {error.strerror or error}") from error
    return True


def now_s() -> float:
    """Seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def clock_text(after_s: float) -> str:
    """The date and time in so many seconds, for people."""
    return (datetime.now().astimezone() + timedelta(seconds=after_s)).isoformat(" ", timespec="seconds")


def user() -> str:
    """Who runs this process: the user who called sudo, if that is known, else the process's own; also where root works
    as the agent's user."""
    given = environ.get("SUDO_USER", "")
    if given and getuid() == 0:
        return f"{line(given)[:40]} (sudo)"
    try:
        return pwd.getpwuid(getuid()).pw_name
    except KeyError:
        return f"uid {getuid()}"
