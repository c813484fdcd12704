# SPDX-License-Identifier: Apache-2.0
"""One writer at a time on an instance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler import private
from reconciler.errors import LbctlError

PATIENCE_S = 30.0


@contextmanager
def apply_lock(instance_dir: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the instance's lock. Raises LbctlError if somebody else holds it for longer than `patience_s`."""
    with private.opened(instance_dir / "lock") as handle:
        if not private.lock(handle, patience_s):
            raise LbctlError(
                f"another lbctl has been writing to {instance_dir.name} for {patience_s:.0f} seconds",
                hint="wait for it, or look for it with `pgrep -af lbctl`",
            )
        yield
