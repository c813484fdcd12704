# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, as `ip netns` names them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from reconciler.errors import KernelError
from reconciler.safe import some

_DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
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
        if _libc.setns(fd, _CLONE_NEWNET) < 0:
            number = ctypes.get_errno()
            raise KernelError(f"can't enter the network namespace {name}: {os.strerror(number)}", hint="run as root")
    finally:
        os.close(fd)
