# SPDX-License-Identifier: Apache-2.0
"""One agent an instance."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler import private
from reconciler.errors import FilesError, LbctlError
from reconciler.kernel.instance import AGENT_LOCK, has_open


def is_running(instance_dir: Path) -> bool:
    """Whether an agent runs on an instance. The lock is not tried: that could keep an agent from starting."""
    lock = instance_dir / AGENT_LOCK
    with contextlib.suppress(FilesError, OSError):
        pid = (private.read(lock) or b"").strip()
        return pid.isdigit() and has_open(Path(f"/proc/{int(pid)}"), lock)
    return False


@contextmanager
def only_agent(instance_dir: Path) -> Iterator[None]:
    """Be the instance's agent. Raises LbctlError, naming its process, if there is one already.

    The kernel drops the lock with the process, however that ends; the file stays and means nothing by itself.
    """
    with private.opened(instance_dir / AGENT_LOCK) as handle:
        if not private.lock(handle, 0):
            pid = os.read(handle, 20).decode("ascii", "replace").strip() or "not known"
            raise LbctlError(
                f"an agent runs on instance {instance_dir.name} already: pid {pid}",
                hint="stop it first, or name another instance with --instance",
            )
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        yield
