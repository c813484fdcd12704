# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 (RFC 9112), with and without TLS: the target answers a GET with an expected status and text.

The whole check has one deadline, so a server that drips its answer byte by byte is late, and at most 4 kB of an answer
are read.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Collection, Iterator
from functools import lru_cache
from ipaddress import ip_address

from reconciler.health.checks.tls import Failure, secured, untimely, words_of
from reconciler.health.checks.wait import (
    Check,
    Late,
    Plain,
    Stream,
    Waiting,
    connect,
    in_words,
    is_unheard,
    room_in_a_packet,
)
from reconciler.health.outcome import OK, Outcome, failed, of_errno, quoted
from reconciler.health.target import Target
from reconciler.health.way import Way, lent, opened
from reconciler.model import CheckSize

MAX_ANSWER_BYTES = 4096
MAX_FILL_BYTES, FILL_LINE_BYTES = 8960, 1000
"""A packet of 9,000 bytes is the longest that networks take; lines of a request may be 8 kB long for most servers."""
_FILL_BYTES = len("X-Fill: \r\n")
_INTERIM = (100, 102, 103)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\n]*|\r)?\n")
_CHUNKED = re.compile(rb"\ntransfer-encoding:[ \t]*chunked[ \t]*\r?\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r?\n", re.IGNORECASE)
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[^\n]*\n")
_LAST_CHUNK = b"\n0\r\n\r\n"


def http(target: Target, way: Way) -> Check:
    sock = lent(target.asked, way)
    try:
        yield from connect(sock, target)
        return (yield from _asked(Plain(sock), target, sock))
    finally:
        way.place.take_back(sock)


def https(target: Target, way: Way) -> Check:
    check = target.check
    name = check.server_name or host_name(check.host or "") or str(target.asked)
    with opened(target.asked, way) as sock:
        yield from connect(sock, target)
        try:
            secure = yield from secured(sock, name, check.verify, check.ca)
        except Late:
            return failed(f"connected, but no TLS within {in_words(check.timeout_s)}")
        if not isinstance(secure, Failure):
            return (yield from _asked(secure, target, sock))
    return (yield from untimely(target, way, name)) if secure.is_untimely else secure.outcome


def host_name(host: str) -> str:
    """The name in a host with or without a port; "" if it is an address."""
    name = re.sub(r":[0-9]*$", "", host)
    return "" if _is_address(host) or _is_address(name.strip("[]")) else name


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _asked(stream: Stream, target: Target, sock: socket.socket) -> Check:
    check = target.check
    text = check.text.encode() if check.text is not None else None
    fill = min(room_in_a_packet(sock), MAX_FILL_BYTES) if check.size is CheckSize.FULL else 0
    found = yield from exchanged(stream, target, MAX_ANSWER_BYTES if text else 0, check.status, text, fill)
    if fill and isinstance(found, Outcome) and found.verdict.is_failure and is_unheard(sock):
        return failed(f"connected, but full packets get lost on the way (MTU), {fill} bytes and their headers")
    if isinstance(found, Outcome):
        return found
    status, body = found
    if status not in check.status:
        expected = ", ".join(map(str, check.status[:5])) + (" …" if len(check.status) > 5 else "")
        return failed(f"HTTP {status}, expected {expected}")
    if text is not None and text not in body:
        return failed(f"HTTP {status}, but without the text {quoted(text)}")
    return OK


def exchanged(
    stream: Stream, target: Target, body_bytes: int, expected: Collection[int], text: bytes | None = None,
    fill: int = 0,
) -> Waiting[tuple[int, bytes] | Outcome]:  # fmt: skip
    """Ask, by `fill` bytes at least, and read the status of the answer and `body_bytes` of its body, or less if it
    ends before or has the `text`; or say why there is no answer. Interim answers (103 and the like) are skipped unless
    they are expected."""
    try:
        yield from stream.send(request(target, fill))
        return (yield from _answer(stream, body_bytes, expected, text))
    except Late:
        return failed(f"connected, but no whole answer within {in_words(target.check.timeout_s)}")
    except ssl.SSLError as error:
        return failed(words_of(error))
    except OSError as error:
        return of_errno(error.errno or 0, "after it was accepted")


@lru_cache(maxsize=32_768)
def request(target: Target, fill: int = 0) -> bytes:
    """What is sent, of `fill` bytes at least; it takes as long to write as all else that Python does for a check."""
    check = target.check
    host = check.host
    if host is None:
        host = str(target.asked) if target.asked.version == 4 else f"[{target.asked}]"
        usual = 443 if check.type == "https" else 80
        host += "" if target.port == usual else f":{target.port}"
    own = {name.lower() for name, _ in check.headers}
    usual_headers = (("Host", host), ("User-Agent", "lbctl"), ("Accept", "*/*"), ("Connection", "close"))
    headers = [*(pair for pair in usual_headers if pair[0].lower() not in own), *check.headers]
    head = "".join((f"GET {check.path} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in headers)))
    while (left := fill - len(head) - len("\r\n")) > 0:
        head += f"X-Fill: {'x' * max(1, min(left, FILL_LINE_BYTES) - _FILL_BYTES)}\r\n"
    return f"{head}\r\n".encode()


def _answer(
    stream: Stream, body_bytes: int, expected: Collection[int], text: bytes | None
) -> Waiting[tuple[int, bytes] | Outcome]:
    data = b""
    while True:  # the head: MAX_ANSWER_BYTES at most, interim answers included
        piece = yield from stream.receive(MAX_ANSWER_BYTES - len(data))
        data += piece
        found = _STATUS_LINE.match(data)
        end = _END_OF_HEAD.search(data)
        while found and end and int(found[1]) in _INTERIM and int(found[1]) not in expected:
            data = data[end.end() :]
            found, end = _STATUS_LINE.match(data), _END_OF_HEAD.search(data)
        is_interim = found and int(found[1]) in _INTERIM and int(found[1]) not in expected
        if found and not is_interim and (end or not body_bytes):
            break
        if not data:
            return failed("closed without an answer")
        if not found and (b"\n" in data or not b"HTTP/1.".startswith(data[:7])):
            return failed(f"no HTTP/1: {quoted(data)}")
        if not piece or len(data) == MAX_ANSWER_BYTES:
            return failed(f"an answer without an end: {quoted(data)}")
    status = int(found[1])
    if not body_bytes or end is None or status not in expected:
        return status, b""
    body = yield from _body(stream, data[: end.end()], data[end.end() :], body_bytes, text)
    return status, body


def _body(stream: Stream, head: bytes, begin: bytes, size: int, text: bytes | None) -> Waiting[bytes]:
    """The first `size` bytes of a body that begins with `begin`."""
    is_chunked = bool(_CHUNKED.search(head))
    length = _LENGTH.search(head)
    wanted = min(size, int(length[1])) if length and not is_chunked else size
    data = bytearray(begin)
    while len(data) < wanted and not (is_chunked and data.endswith(_LAST_CHUNK)):
        if text is not None and text in data:
            break
        piece = yield from stream.receive(wanted - len(data))
        if not piece:
            break
        data += piece
    return b"".join(_chunks(bytes(data))) if is_chunked else bytes(data[:size])


def _chunks(body: bytes) -> Iterator[bytes]:
    """The contents of chunks (RFC 9112, section 7.1), as far as they are there."""
    position = 0
    while (line := _CHUNK_LINE.match(body, position)) and (length := int(line[1], 16)):
        yield body[line.end() : line.end() + length]
        position = line.end() + length + (2 if body[line.end() + length :][:1] == b"\r" else 1)
