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

from reconciler.errors import LbctlError
from reconciler.render.page import policy
from reconciler.safe import line

PATH, PAGE = "/metrics", "/"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HTML = "text/html; charset=utf-8"
_LIVE = "live"
MAX_REQUEST_BYTES, MAX_HEADERS = 16_384, 100
MAX_CONNECTIONS, BACKLOG = 8, 64
MIN_AGE_S = 1.0
COSTS = 30
"""A text is kept for so many times as long as it took to make."""
PATIENCE_S = 5.0
"""How long a peer may take to ask, and to take the answer."""

_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")


class Kept:
    """The text that `make` makes, made anew when it is too old."""

    def __init__(self, make: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._text = ""
        self._content: bytes | None = None
        self._until_s = -1.0

    def text(self) -> str:
        """Raises what `make` raises."""
        with self._lock:
            began_s = self._clock()
            if began_s >= self._until_s or not self._text:
                self._text, self._content = self._make(), None
                took_s = self._clock() - began_s
                self._until_s = self._clock() + max(MIN_AGE_S, COSTS * took_s)
            return self._text

    def content(self) -> bytes:
        """The text as it is sent. Raises what `make` raises."""
        self.text()
        with self._lock:
            if self._content is None:
                self._content = self._text.encode(errors="replace")
            return self._content


class _Server:
    """Threads that wait for connections, each with one at a time; whoever comes while all are busy waits in the
    kernel's queue. Raises OSError if the address can't be had."""

    def __init__(self, address: tuple[str, int], kept: Mapping[str, Kept]) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._kept = kept
        self._has_ended = threading.Event()
        self._socket = socket.create_server(address, family=family, backlog=BACKLOG)
        self.port = int(self._socket.getsockname()[1])
        for _ in range(MAX_CONNECTIONS):
            threading.Thread(target=self._work, name="http", daemon=True).start()

    def close(self) -> None:
        self._has_ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # those who wait in accept(2) get EINVAL
        self._socket.close()

    def _work(self) -> None:
        while not self._has_ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # no descriptors are left; or it is over
                self._has_ended.wait(1.0)
                continue
            with connection, contextlib.suppress(OSError):  # a peer that went away is nobody's problem
                _attend(connection, self._kept)
                connection.shutdown(socket.SHUT_WR)


def _attend(connection: socket.socket, kept: Mapping[str, Kept]) -> None:
    """One request and its answer (RFC 9112); of the request only its line and its Host matter. Raises OSError if the
    peer is gone or too slow, or asks for nothing."""
    method, target, host = _request(connection)
    path, _, query = target.partition("?")
    page = kept.get(f"{path}?{_LIVE}" if path == PAGE and query == _LIVE else path)
    if method != "GET":
        answer = _refusal(HTTPStatus.NOT_IMPLEMENTED, "nothing can be changed here: there is GET only")
    elif page is None:
        answer = _refusal(HTTPStatus.NOT_FOUND, "there is no such page")
    elif path == PAGE and not is_own_name(host):
        answer = _refusal(HTTPStatus.FORBIDDEN, "ask by the address, or by the name of the host")
    else:
        try:
            answer = _answer(HTTPStatus.OK, HTML if path == PAGE else CONTENT_TYPE, page.content())
        except (LbctlError, OSError) as error:
            answer = _refusal(HTTPStatus.SERVICE_UNAVAILABLE, line(str(error)))
    connection.settimeout(PATIENCE_S)
    connection.sendall(answer)


def _request(connection: socket.socket) -> tuple[str, str, str]:
    """Method, target and Host, which is empty if there is none. Raises OSError if it is too long or slow, or no
    request."""
    until_s, content = time.monotonic() + PATIENCE_S, b""
    while not (end := _EMPTY_LINE.search(content)):
        connection.settimeout(max(0.001, until_s - time.monotonic()))
        chunk = connection.recv(MAX_REQUEST_BYTES)
        content += chunk
        if not chunk or len(content) > MAX_REQUEST_BYTES:
            raise OSError("no whole request, or too long")
    first, *headers = re.split("\r?\n", content[: end.start()].decode("latin-1"))
    words = first.split(" ")
    if len(words) != 3 or len(headers) > MAX_HEADERS:
        raise OSError("no request, or too many headers")
    host = ""
    for header in headers:
        name, _, value = header.partition(":")
        if name.lower() == "host":
            host = value.strip()
    return words[0], words[1], host


def _refusal(status: HTTPStatus, why: str) -> bytes:
    title = f"{status.value} {status.phrase}"
    text = f"<!doctype html><title>{title}</title><h1>{title}</h1><p>{escape(why)}</p>\n"
    return _answer(status, HTML, text.encode(errors="replace"))


def _answer(status: HTTPStatus, content_type: str, content: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: lbctl\r\nConnection: close\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
        f"Content-Security-Policy: {policy()}\r\nX-Content-Type-Options: nosniff\r\n"
        "Referrer-Policy: no-referrer\r\nCache-Control: no-store\r\n\r\n"
    )
    return head.encode() + content


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
    try:
        yield server.port
    finally:
        server.close()
