# SPDX-License-Identifier: Apache-2.0
"""One agent an instance."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import LbctlError

LOCK = "agent.lock"


@contextmanager
def only_agent(instance_dir: Path) -> Iterator[None]:
    """Be the instance's agent. Raises LbctlError, naming its process, if there is one already.

    The kernel drops the lock with the process, however that ends; the file stays and means nothing by itself.
    """
    instance_dir.mkdir(parents=True, exist_ok=True)
    with (instance_dir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LbctlError(
                f"an agent runs on instance {instance_dir.name} already: pid {file.read().strip()}",
                hint="stop it first, or name another instance with --instance",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
