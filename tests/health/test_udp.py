# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from tests.health.run import LATE_S, said


def test_answer_as_expected(serve_udp):
    port = serve_udp(lambda data: [b"PONG " + data])
    assert said("udp", port, send="PING ☃", expect="PONG PING ☃") == ("OK", "")
    assert said("udp", port, send="PING", expect="PONG") == ("OK", "")


def test_another_answer(serve_udp):
    port = serve_udp(lambda data: [b"\x1b[31mNO" + data])
    assert said("udp", port, send="x", expect="PONG") == ("FAILED", 'answered "\\x1b[31mNOx", expected "PONG"')


def test_large_answer(serve_udp):
    port = serve_udp(lambda data: [b"y" * 60_000])
    assert said("udp", port, send="x", expect="PONG") == ("FAILED", f'answered "{"y" * 60}…", expected "PONG"')


def test_empty_request(serve_udp):
    assert said("udp", serve_udp(lambda data: [b"got " + data]), expect="got ") == ("OK", "")


@pytest.mark.parametrize("expect", ["PONG", None])
def test_closed_port_is_known_by_its_icmp_error(expect):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert said("udp", port, expect=expect) == ("FAILED", "refused")


def test_no_answer(serve_udp):
    assert said("udp", serve_udp(lambda data: []), expect="PONG", timeout_s=LATE_S) == (
        "UNREACHED", "no answer within 200 ms"
    )  # fmt: skip


def test_none_expected_and_none_given(serve_udp):
    assert said("udp", serve_udp(lambda data: []), timeout_s=LATE_S) == ("OK", "")


def test_none_expected_but_one_given(serve_udp):
    """Then there is nothing left to wait for."""
    assert said("udp", serve_udp(lambda data: [b""])) == ("OK", "")


def test_answers_of_others_do_not_count(serve_udp):
    """The socket is connected: another port of the same host can't answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        peers = []

        def answer(data):
            port = int(data)
            peers.append(port)
            other.sendto(b"PONG", ("127.0.0.1", port))
            return []

        port = serve_udp(answer)
        assert said("udp", port, send=str(other.getsockname()[1]), expect="PONG", timeout_s=LATE_S)[0] == "UNREACHED"
    assert peers
