# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, as `ip netns` names them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import KernelError
from reconciler.safe import some

_DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def exists(name: str) -> bool:
    """Whether there is a network namespace of this name."""
    return (_DIRECTORY / name).exists()


def enter(name: str) -> None:
    """Move the calling thread into a network namespace, and nothing else: mounts stay as they are.

    Raises KernelError if there is no such namespace or entering it is not allowed.
    """
    try:
        fd = os.open(_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        existing = some(sorted(path.name for path in _DIRECTORY.glob("*"))) or "none"
        raise KernelError(
            f"can't open the network namespace {name}: {error.strerror}", hint=f"there are: {existing}"
        ) from error
    try:
        move(fd)
    except OSError as error:
        raise KernelError(f"can't enter the network namespace {name}: {error.strerror}", hint="run as root") from error
    finally:
        os.close(fd)


def move(there: int) -> None:
    """Move the calling thread into the namespace of a descriptor. OSError if that is not allowed."""
    if _libc.setns(there, _CLONE_NEWNET) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def within(there: int) -> Iterator[None]:
    """Within this, the calling thread is in the namespace of a descriptor. OSError if that is not allowed."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        move(there)
        try:
            yield
        finally:
            move(home)
    finally:
        os.close(home)
