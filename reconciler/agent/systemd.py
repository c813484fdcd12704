# SPDX-License-Identifier: Apache-2.0
"""Tells systemd how it goes (sd_notify(3)), where it started us with Type=notify."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def notifier() -> Iterator[Callable[[str], None]]:
    """A function that sends a state, e.g. `READY=1`; it does nothing where nobody listens.

    Enter it before another network namespace: abstract sockets belong to one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:

        def notify(state: str) -> None:
            with contextlib.suppress(OSError):  # nothing here depends on being heard
                connection.sendto(state.encode(), address)

        yield notify if address else lambda state: None
