# SPDX-License-Identifier: Apache-2.0
"""One agent an instance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler import private
from reconciler.errors import LbctlError

LOCK = "agent.lock"


@contextmanager
def only_agent(instance_dir: Path) -> Iterator[None]:
    """Be the instance's agent. Raises LbctlError, naming its process, if there is one already.

    The kernel drops the lock with the process, however that ends; the file stays and means nothing by itself.
    """
    with private.opened(instance_dir / LOCK) as handle:
        if not private.lock(handle, 0):
            raise LbctlError(
                f"an agent runs on instance {instance_dir.name} already: pid {os.read(handle, 20).decode().strip()}",
                hint="stop it first, or name another instance with --instance",
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
