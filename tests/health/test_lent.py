# SPDX-License-Identifier: Apache-2.0
"""Checks that share sockets, one after the other: nothing of one is left to the next."""

from __future__ import annotations

from contextlib import closing

import pytest

from reconciler.health.prober import Prober
from reconciler.health.target import Target

from .run import LATE_S, target, until

LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"HTTP/1.1 500 x\r\n\r\n" * 5000


@pytest.fixture
def one_by_one():
    """A function that runs checks and gives what they said, and the numbers of their sockets."""
    numbers: set[int] = set()
    with closing(Prober()) as prober:

        def run(*items: Target) -> list[str]:
            said = []
            for item in items:
                prober.start(item)
                numbers.update(run.fd for run in prober._waiting.values())
                results: list = []
                until(lambda results=results: results.extend(prober.poll(0.1)) or results)
                said += [outcome.error or outcome.verdict.name for _, outcome in results]
            return said

        yield run, numbers


def test_what_a_server_sends_beyond_its_answer_is_no_answer_to_the_next_check(
    serve, frozen_port, closed_port, one_by_one
):
    """Also if it sent before it was asked, or both at once, and whatever kind of check comes next."""
    run, numbers = one_by_one
    ends = []

    def talk(connection, answer=LONG, waits=True):
        if waits:
            connection.recv(4096)
        try:
            connection.sendall(answer)
            while connection.recv(4096):
                pass
            ends.append("closed")
        except ConnectionResetError:
            ends.append("reset")

    asked = target("http", serve(talk))
    unasked = target("http", serve(lambda connection: talk(connection, waits=False)))
    silent = target("http", frozen_port, timeout_s=LATE_S)
    refused, open_ = target("http", closed_port), target("tcp", frozen_port)
    late = "connected, but no whole answer within 200 ms"
    assert run(asked, silent, unasked, silent, open_, asked, refused, asked, open_, unasked) == [
        "OK", late, "OK", late, "OK", "OK", "refused", "OK", "OK", "OK",
    ]  # fmt: skip
    until(lambda: len(ends) == 5)
    assert (len(numbers), set(ends)) == (1, {"reset"})


def test_an_answer_that_came_before_anybody_looked_is_heard(serve, one_by_one):
    """It came with the connection, so nothing happens to the socket any more."""
    run, _ = one_by_one
    port = serve(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n") or connection.recv(4096))
    assert run(*[target("http", port)] * 20) == ["OK"] * 20


def test_a_request_that_does_not_fit_is_sent_as_there_is_room(serve, one_by_one):
    """The server reads it late and slowly."""
    run, _ = one_by_one
    large = "x" * 6_000_000

    def talk(connection):
        left = len(large)
        while left > 0:
            left -= len(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 204 x\r\n\r\n")
        connection.recv(1)

    assert run(target("http", serve(talk), path=f"/{large}", status=(204,))) == ["OK"]
