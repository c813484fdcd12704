# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, and the note in which an instance writes down its own.

A namespace is known by its cookie: the kernel gives each cookie once until the next boot, which empties /run.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError, KernelError

NOTE = "namespace.json"

_SO_NETNS_COOKIE = 71
_COOKIE_BYTES = 8
_OWN = Path("/proc/thread-self/ns/net")


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace. `name` is that of --netns, empty if there was none; `cookie` is 0 before Linux 5.14."""

    cookie: int
    inode: int
    name: str

    def is_same(self, other: Place) -> bool:
        """Whether both are one namespace; its name may be another one."""
        if self.cookie and other.cookie:
            return self.cookie == other.cookie
        return self.inode == other.inode

    def __str__(self) -> str:
        return f"the network namespace {self.name}" if self.name else "another network namespace, without a name"


def here(name: str) -> Place:
    """The namespace that the calling thread is in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            cookie = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)
        except OSError:
            cookie = b""
    return Place(int.from_bytes(cookie, "little"), _OWN.stat().st_ino, name)


def noted(instance_dir: Path) -> Place | None:
    """The namespace that an instance noted; None if it never changed anything. Raises KernelError."""
    try:
        content = private.read(instance_dir / NOTE)
        fields = json.loads(content) if content is not None else None
        return Place(int(fields["cookie"]), int(fields["inode"]), str(fields["name"])) if fields else None
    except FilesError as error:
        raise KernelError(error.message, hint=error.hint) from error
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise KernelError(
            f"{instance_dir / NOTE} does not say which network namespace the instance is in: {error!r}",
            hint="if it is the one that you are in, remove the file",
        ) from error


def note(instance_dir: Path, place: Place) -> None:
    """Write down the namespace of an instance. Raises KernelError."""
    try:
        private.write(instance_dir / NOTE, json.dumps(asdict(place)).encode())
    except FilesError as error:
        raise KernelError(error.message, hint=error.hint) from error


def neighbours(instance_dir: Path, place: Place) -> Iterator[str]:
    """The names of other instances below the same run directory that are in this namespace."""
    for path in sorted(instance_dir.parent.iterdir()) if instance_dir.parent.is_dir() else []:
        if path != instance_dir and path.is_dir():
            other = noted(path)
            if other is not None and other.is_same(place):
                yield path.name


def is_alive(place: Place) -> bool:
    """Whether any process that can be seen from here is in the namespace."""
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if link.stat().st_ino == place.inode:
                return True
        except OSError:  # a process that has ended, or one that we may not look at
            continue
    return False
