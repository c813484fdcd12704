# SPDX-License-Identifier: Apache-2.0
"""A network namespace that sockets of checks are made in.

Going there and back takes four system calls, each of which costs as much as all else that a check needs of the kernel
before its first packet. So sockets are made ahead, many in one visit.
"""

from __future__ import annotations

import os
import socket

from reconciler.kernel.netns import within

AT_ONCE = 32
"""How many are made ahead. What isn't needed any more holds that many descriptors."""

Kind = tuple[int, int, int]
"""Family, type and protocol, as socket() takes them."""


class Place:
    """`handle` is a descriptor of the namespace, which it closes when it is closed itself."""

    def __init__(self, handle: int) -> None:
        status = os.fstat(handle)
        self.identity = status.st_dev, status.st_ino
        """Of the namespace: the same for each descriptor of it."""
        self._handle = handle
        self._ahead: dict[Kind, list[socket.socket]] = {}

    def opened(self, family: int, type_: int, protocol: int) -> socket.socket:
        """A socket of the namespace. Raises OSError."""
        kind = family, type_, protocol
        ahead = self._ahead.setdefault(kind, [])
        if not ahead:
            with within(self._handle):
                first = socket.socket(*kind)
                try:
                    ahead.extend([socket.socket(*kind) for _ in range(AT_ONCE - 1)])
                except OSError:
                    return first  # the next one will say what is lacking
            return first
        return ahead.pop()

    def close(self) -> None:
        for sockets in self._ahead.values():
            for sock in sockets:
                sock.close()
        self._ahead.clear()
        os.close(self._handle)
