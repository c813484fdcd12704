# SPDX-License-Identifier: Apache-2.0
"""The agent's side of HTTP: `GET /metrics` for monitoring, and a page for people at `/`, each off unless asked for.

Whoever can reach it reads only. The page answers to addresses and to the host's own name only, so that no site in a
browser can read it under a name of its own (DNS rebinding). A text is made by one thread at a time and kept for a
while, the longer the more it takes to make: however many ask, the agent spends no more than a twentieth of a CPU on
it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from reconciler.errors import LbctlError
from reconciler.render.page import policy
from reconciler.safe import line

PATH, PAGE = "/metrics", "/"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LIVE = "live"
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

    def __init__(self, address: tuple[str, int], kept: Mapping[str, Kept]) -> None:
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
        path, _, query = self.path.partition("?")
        kept = self.server.kept.get(f"{path}?{_LIVE}" if path == PAGE and query == _LIVE else path)
        if kept is None:
            self.send_error(404)
            return
        if path == PAGE and not is_own_name(self.headers.get("Host", "")):
            self.send_error(403, explain="ask by the address, or by the name of the host")
            return
        try:
            content = kept.text().encode(errors="replace")
        except (LbctlError, OSError) as error:
            self.send_error(503, explain=line(str(error)))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if path == PAGE else CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in (
            ("Content-Security-Policy", policy()), ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-store"),
        ):  # fmt: skip
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants a line for each scrape."""


def is_own_name(host: str) -> bool:
    """Whether a header Host names an address, the loopback or this host, with or without a port."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) and not host.endswith("]") else host
    if name.lower() in ("localhost", socket.gethostname().lower()):
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


@contextmanager
def serving(
    address: tuple[str, int] | None, make: Callable[[], str], page: Callable[[bool], str] | None = None
) -> Iterator[int]:
    """Serve the metrics that `make` makes at this address meanwhile (None: nowhere), and the page, which is told
    whether it is to renew itself; the port. Raises LbctlError."""
    if address is None:
        yield 0
        return
    try:
        pages = {PAGE: Kept(lambda: page(False)), f"{PAGE}?{_LIVE}": Kept(lambda: page(True))} if page else {}
        server = _Server(address, {PATH: Kept(make), **pages})
    except OSError as error:
        where, what = f"{address[0]}:{address[1]}", "the page" if page else "metrics"
        raise LbctlError(f"can't serve {what} at {where}: {error.strerror or error}", hint="name another") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        with contextlib.suppress(OSError):
            server.shutdown()
            server.server_close()
        thread.join()
