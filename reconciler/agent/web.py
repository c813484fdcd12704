# SPDX-License-Identifier: Apache-2.0
"""The agent's side of HTTP: `GET /metrics` for monitoring, and a page for people at `/`, each off unless asked for.

Whoever can reach it reads only. The page answers to addresses and to the host's own name only, so that no site in a
browser can read it under a name of its own (DNS rebinding). A text is made by one thread at a time and kept for a
while, the longer the more it takes to make: however many ask, the agent spends no more than a thirtieth of a CPU on
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
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from ipaddress import ip_address
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

from reconciler.errors import LbctlError
from reconciler.render.page import policy
from reconciler.safe import line

PATH, PAGE = "/metrics", "/"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HTML = "text/html; charset=utf-8"
_LIVE = "live"
MAX_LINE_BYTES, MAX_HEADERS = 8_192, 100
MAX_CONNECTIONS = 16
MIN_AGE_S = 1.0
COSTS = 30
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


class _Server(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

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


class _Page(StreamRequestHandler):
    """One request and its answer (RFC 9112); of the request only its line and its Host matter."""

    timeout = PATIENCE_S
    server: _Server

    def handle(self) -> None:
        method, target, host = self._request()
        path, _, query = target.partition("?")
        kept = self.server.kept.get(f"{path}?{_LIVE}" if path == PAGE and query == _LIVE else path)
        if method != "GET":
            self._answer(HTTPStatus.NOT_IMPLEMENTED, "nothing can be changed here: there is GET only")
        elif kept is None:
            self._answer(HTTPStatus.NOT_FOUND, "there is no such page")
        elif path == PAGE and not is_own_name(host):
            self._answer(HTTPStatus.FORBIDDEN, "ask by the address, or by the name of the host")
        else:
            try:
                text = kept.text()
            except (LbctlError, OSError) as error:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, line(str(error)))
            else:
                self._send(HTTPStatus.OK, HTML if path == PAGE else CONTENT_TYPE, text)

    def _request(self) -> tuple[str, str, str]:
        """Method, target and Host; empty where there is none. Raises OSError if it is too long, or no request."""
        words = self._line().split(" ")
        host = ""
        for _ in range(MAX_HEADERS):
            text = self._line()
            if not text:
                break
            name, _, value = text.partition(":")
            if name.lower() == "host":
                host = value.strip()
        else:
            raise OSError("too many headers")
        if len(words) != 3:
            raise OSError("no request")
        return words[0], words[1], host

    def _line(self) -> str:
        content = self.rfile.readline(MAX_LINE_BYTES + 1)
        if not content.endswith(b"\n"):
            raise OSError("no whole line")
        return content.decode("latin-1").rstrip("\r\n")

    def _answer(self, status: HTTPStatus, why: str) -> None:
        title = f"{status.value} {status.phrase}"
        self._send(status, HTML, f"<!doctype html><title>{title}</title><h1>{title}</h1><p>{escape(why)}</p>\n")

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        content = text.encode(errors="replace")
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: lbctl\r\nConnection: close\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
            f"Content-Security-Policy: {policy()}\r\nX-Content-Type-Options: nosniff\r\n"
            "Referrer-Policy: no-referrer\r\nCache-Control: no-store\r\n\r\n"
        )
        self.wfile.write(head.encode() + content)


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
