# SPDX-License-Identifier: Apache-2.0
"""Tells systemd the agent's state (sd_notify(3)), if systemd started it with Type=notify."""

from __future__ import annotations

import contextlib
import os
import socket
import time
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


def watchdog(notify: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Callable[[], None]:
    """A function to be called whenever the agent shows that it is alive: it tells systemd's watchdog often enough, if
    that watches this process (sd_watchdog_enabled(3)); else it does nothing."""
    watched = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    patience_us = os.environ.get("WATCHDOG_USEC", "")
    if not watched or not patience_us.isdigit() or not int(patience_us):
        return lambda: None
    pause_s = int(patience_us) / 1e6 / 4
    last_s = -pause_s

    def alive() -> None:
        nonlocal last_s
        if clock() >= last_s + pause_s:
            last_s = clock()
            notify("WATCHDOG=1")

    return alive
