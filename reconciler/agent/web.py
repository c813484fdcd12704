# SPDX-License-Identifier: Apache-2.0
"""The agent's page for monitoring: `GET /metrics` and nothing else, off unless asked for.

Whoever can reach it reads only. The text is made by one thread at a time and kept for a while, the longer the more it
takes to make: however many ask, the agent spends no more than a twentieth of a CPU on it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reconciler.errors import LbctlError

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_CONNECTIONS = 16
MIN_AGE_S = 1.0
COSTS = 20
"""A text is kept for so many times as long as it took to make."""
PATIENCE_S = 5.0


class Kept:
    """The text that `make` makes, made anew when it is too old."""

    def __init__(self, make: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._text = ""
        self._until_s = -1.0

    def text(self) -> str:
        """Raises what `make` raises."""
        with self._lock:
            began_s = self._clock()
            if began_s >= self._until_s or not self._text:
                self._text = self._make()
                took_s = self._clock() - began_s
                self._until_s = self._clock() + max(MIN_AGE_S, COSTS * took_s)
            return self._text


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], kept: Kept) -> None:
        self.kept = kept
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Page)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is nobody's problem."""


class _Page(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server_version = "lbctl"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        try:
            content = self.server.kept.text().encode()
        except (LbctlError, OSError) as error:
            self.send_error(503, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants a line for each scrape."""


@contextmanager
def serving(address: tuple[str, int] | None, make: Callable[[], str]) -> Iterator[int]:
    """Serve the text at this address meanwhile (None: nowhere); the port. Raises LbctlError."""
    if address is None:
        yield 0
        return
    try:
        server = _Server(address, Kept(make))
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        raise LbctlError(f"can't serve metrics at {where}: {error.strerror or error}", hint="name another") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        with contextlib.suppress(OSError):
            server.shutdown()
            server.server_close()
        thread.join()
