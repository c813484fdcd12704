# SPDX-License-Identifier: Apache-2.0
"""Tells systemd the agent's state (sd_notify(3)), if systemd started it with Type=notify."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def notifier() -> Iterator[Callable[[str], None]]:
    """A function that sends a state, e.g. `READY=1`; it does nothing if systemd doesn't listen.

    Enter it before another network namespace: abstract sockets belong to one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:

        def notify(state: str) -> None:
            with contextlib.suppress(OSError):  # the agent works without systemd, too
                connection.sendto(state.encode(), address)

        yield notify if address else lambda state: None
