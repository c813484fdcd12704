# SPDX-License-Identifier: Apache-2.0
"""One writer at a time on an instance."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import LbctlError

PATIENCE_S = 30.0


@contextmanager
def apply_lock(instance_dir: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the instance's lock. Raises LbctlError if somebody else holds it for longer than `patience_s`."""
    instance_dir.mkdir(parents=True, exist_ok=True)
    with (instance_dir / "lock").open("w") as file:
        give_up = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    raise LbctlError(
                        f"another lbctl has been writing to {instance_dir.name} for {patience_s:.0f} seconds",
                        hint="wait for it, or look for it with `pgrep -af lbctl`",
                    ) from error
                time.sleep(0.02)
        yield
