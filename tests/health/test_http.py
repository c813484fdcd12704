# SPDX-License-Identifier: Apache-2.0
"""Checks of HTTP against servers that behave, and against many that don't."""

import re
import socket
import struct
import time

import pytest

from reconciler.health.checks.http import MAX_ANSWER_BYTES, _chunks, request
from reconciler.model import CheckSize
from tests.health.run import LATE_S, outcome, said, target, until

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def answering(*pieces, keep_open=False):
    """Reads a request, and sends these bytes."""

    def talk(connection):
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        for piece in pieces:
            connection.sendall(piece)
        if keep_open:
            connection.recv(1)

    return talk


def ok(body=b"", headers=b"", status=b"200 OK"):
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n" % len(body) + headers + b"\r\n" + body


@pytest.mark.parametrize("answer", [
    ok(), b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200\r\n\r\n", b"HTTP/1.1 200 \n\n", b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok(), b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + ok(),
])  # fmt: skip
def test_status_as_expected(serve, answer):
    assert said("http", serve(answering(answer))) == ("OK", "")


def test_answer_in_many_pieces(serve):
    pieces = [bytes([byte]) for byte in ok(b"xxreadyxx")]
    assert said("http", serve(answering(*pieces)), text="ready") == ("OK", "")


@pytest.mark.parametrize(("status", "expected", "words"), [
    (b"503 Service Unavailable", (200,), "HTTP 503, expected 200"),
    (b"301 Moved", (200, 204), "HTTP 301, expected 200, 204"),
    (b"404 x", tuple(range(200, 207)), "HTTP 404, expected 200, 201, 202, 203, 204 …"),
])  # fmt: skip
def test_another_status(serve, status, expected, words):
    assert said("http", serve(answering(ok(status=status))), status=expected) == ("FAILED", words)


def test_an_interim_status_can_be_what_is_expected(serve):
    answer = b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok()
    assert said("http", serve(answering(answer)), status=(103,)) == ("OK", "")


@pytest.mark.parametrize("answer", [
    ok(b"all ready now"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nall r\r\n8;x=y\r\neady now\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nready",
    ok(b"x" * 3000 + b"ready"),
])  # fmt: skip
def test_text_is_found(serve, answer):
    assert said("http", serve(answering(answer)), text="ready") == ("OK", "")
    assert said("http", serve(answering(answer)), text="steady") == (
        "FAILED", 'HTTP 200, but without the text "steady"'
    )  # fmt: skip


@pytest.mark.parametrize("answer", [
    ok(b"ready"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nready and more to come",
])  # fmt: skip
def test_a_server_that_keeps_the_connection_is_not_waited_for(serve, answer):
    assert said("http", serve(answering(answer, keep_open=True)), text="ready") == ("OK", "")


@pytest.mark.parametrize("answer", [
    ok(b"steady"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsteady\r\n0\r\n\r\n",
])  # fmt: skip
def test_the_end_of_a_body_is_known_without_the_end_of_the_connection(serve, answer):
    found = said("http", serve(answering(answer, keep_open=True)), text="ready")
    assert found == ("FAILED", 'HTTP 200, but without the text "ready"')


def test_the_text_in_a_header_does_not_count(serve):
    found = said("http", serve(answering(ok(b"no", b"X-State: ready\r\n"))), text="ready")
    assert found == ("FAILED", 'HTTP 200, but without the text "ready"')


def test_four_kilobytes_are_read_and_no_more(serve):
    body = b"x" * (MAX_ANSWER_BYTES - 5) + b"ready"
    assert said("http", serve(answering(ok(body))), text="ready") == ("OK", "")
    assert said("http", serve(answering(ok(b"x" + body))), text="ready")[0] == "FAILED"


def test_endless_answer(serve):
    def talk(connection):
        connection.recv(4096)
        while True:
            connection.sendall(b"x" * 65_536)

    assert said("http", serve(talk)) == ("FAILED", f'no HTTP/1: "{"x" * 60}…"')


def test_endless_head(serve):
    def talk(connection):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X: y\r\n" * 1000)

    verdict, words = said("http", serve(talk), text="ready")
    assert verdict == "FAILED"
    assert words.startswith('an answer without an end: "HTTP/1.1 200 OK\\r\\nX: y')


@pytest.mark.parametrize(("answer", "words"), [
    (b"SSH-2.0-OpenSSH_9.2\r\n", r'no HTTP/1: "SSH-2.0-OpenSSH_9.2\r\n"'),
    (b"\x1b[2J\x00\xff<script>\r\n", 'no HTTP/1: "\\x1b[2J\\x00�<script>\\r\\n"'),
    (b"HTTP/2 200\r\n\r\n", r'no HTTP/1: "HTTP/2 200\r\n\r\n"'),
    (b"HTTP/1.1 2000 OK\r\n\r\n", r'no HTTP/1: "HTTP/1.1 2000 OK\r\n\r\n"'),
    (b"HTTP/1.1 -20 OK\r\n\r\n", r'no HTTP/1: "HTTP/1.1 -20 OK\r\n\r\n"'),
    (b"HTTP/1.1 200", 'an answer without an end: "HTTP/1.1 200"'),
    (b"H", 'an answer without an end: "H"'),
    (b"", "closed without an answer"),
])  # fmt: skip
def test_garbage(serve, answer, words):
    assert said("http", serve(answering(answer))) == ("FAILED", words)


@pytest.mark.parametrize("content", [
    b"Content-Length: 99999999999999999999999999\r\n", b"Content-Length: -5\r\n", b"Content-Length: x\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
])  # fmt: skip
@pytest.mark.parametrize("body", [b"zz\r\n", b"ffffffff\r\nabc", b"-1\r\nabc", b"5", b"\n\n\n", b"0\r\n\r\n"])
def test_nonsense_about_the_length_of_a_body(serve, content, body):
    found = said("http", serve(answering(b"HTTP/1.1 200 OK\r\n" + content + b"\r\n" + body)), text="ready")
    assert found == ("FAILED", 'HTTP 200, but without the text "ready"')


def test_chunks_that_end_early():
    whole = b"3\r\nabc\r\n2\nde\n0\r\n\r\n"
    assert b"".join(_chunks(whole)) == b"abcde"
    for length in range(len(whole)):
        assert b"abcde".startswith(b"".join(_chunks(whole[:length])))


def test_frozen_server(frozen_port):
    """The kernel accepts, so somebody is there."""
    assert said("http", frozen_port, timeout_s=LATE_S) == (
        "FAILED", "connected, but no whole answer within 200 ms"
    )  # fmt: skip


def test_dripping_server_is_down(serve):
    """Each byte comes soon after the last one, but the answer takes for ever."""

    def talk(connection):
        connection.recv(4096)
        for byte in b"HTTP/1.1 200 " + b"O" * 3000:
            connection.sendall(bytes([byte]))
            time.sleep(0.01)

    assert said("http", serve(talk), timeout_s=1.0) == ("FAILED", "connected, but no whole answer within 1 s")


def test_reset_in_the_middle(serve):
    def talk(connection):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 2")
        time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    assert said("http", serve(talk)) == ("FAILED", "connection reset after it was accepted")


def test_refused(closed_port):
    assert said("http", closed_port) == ("FAILED", "refused")


def test_request(serve):
    seen = []

    def talk(connection):
        seen.append(connection.recv(4096))
        connection.sendall(ok())

    port = serve(talk)
    headers = (("X-Probe", "yes"), ("user-agent", "other"))
    assert said("http", port, path="/healthz?full=1", headers=headers) == ("OK", "")
    until(lambda: seen)
    assert seen == [
        b"GET /healthz?full=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\nConnection: close\r\n"
        b"X-Probe: yes\r\nuser-agent: other\r\n\r\n" % port
    ]


@pytest.mark.parametrize(("kind", "port", "address", "host", "expected"), [
    ("http", 80, "192.0.2.1", None, "192.0.2.1"), ("http", 8080, "192.0.2.1", None, "192.0.2.1:8080"),
    ("https", 443, "2001:db8::1", None, "[2001:db8::1]"), ("https", 80, "2001:db8::1", None, "[2001:db8::1]:80"),
    ("http", 80, "192.0.2.1", "www.example.com", "www.example.com"),
])  # fmt: skip
def test_host(kind, port, address, host, expected):
    found = re.search(rb"\r\nHost: (.*?)\r\n", request(target(kind, port, address, host=host)))
    assert found[1].decode() == expected


def test_latency_is_of_the_whole_check(serve):
    def talk(connection):
        connection.recv(4096)
        time.sleep(0.05)
        connection.sendall(ok())

    assert outcome("http", serve(talk)).latency_s >= 0.05


@pytest.mark.parametrize("fill", [0, 1, 1, 99, 130, 1000, 1448, 8948])
def test_a_request_of_full_size_is_as_long_as_it_should_be_and_still_one(fill):
    item = target("http", 80, size=CheckSize.FULL)
    small, found = request(item), request(item, fill)
    assert max(fill, len(small)) <= len(found) < max(fill, len(small)) + 16
    lines = found.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert [line for line in lines if not line.startswith(b"X-Fill: ")] == small.split(b"\r\n")
    assert all(len(line) <= 1000 for line in lines)
