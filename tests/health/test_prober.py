# SPDX-License-Identifier: Apache-2.0
import errno
import os
import resource
import select
import socket
import time
from contextlib import closing

import pytest

from reconciler.health import checks, descriptors
from reconciler.health.checks.wait import Late
from reconciler.health.outcome import MAX_QUOTED, Verdict, of_errno, quoted
from reconciler.health.prober import Prober
from reconciler.model import CheckType
from tests.health.run import PATIENCE_S, outcomes, target


class Clock:
    """A clock that somebody else can move on."""

    def __init__(self):
        self.ahead_s = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead_s


def collect(prober, count):
    found, end_s = [], time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < end_s
        found += prober.poll(0.5)
    return found


def test_nothing_to_do():
    with closing(Prober()) as prober:
        assert prober.poll(0.0) == []
        assert (prober.in_flight, prober.next_deadline_s) == (0, None)


def test_answers_that_came_while_nobody_was_here_are_in_time(frozen_port):
    """The process was stopped for a minute, and all deadlines have passed meanwhile."""
    clock = Clock()
    with closing(Prober(clock)) as prober:
        for i in range(50):
            prober.start(target("tcp", frozen_port, timeout_s=1.0, interval_s=float(i + 2)))
        clock.ahead_s += 60
        assert {item.verdict for _, item in collect(prober, 50)} == {Verdict.OK}


def test_nobody_is_blamed_for_what_it_was_not_asked_in_time(serve):
    """The request of HTTP is sent after the connection is made. If that took a minute of ours, the answer has its
    time all the same."""

    def talk(connection):
        connection.recv(4096)
        time.sleep(0.1)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    port = serve(talk)
    clock = Clock()
    with closing(Prober(clock)) as prober:
        prober.start(target("http", port, timeout_s=2.0))
        clock.ahead_s += 60
        ((_, found),) = collect(prober, 1)
    assert (found.verdict, found.error) == (Verdict.OK, "")


def test_deadlines_hold_however_often_one_looks(serve):
    def talk(connection):
        connection.recv(1)

    with closing(Prober()) as prober:
        began_s = time.monotonic()
        prober.start(target("tcp", serve(talk)))
        prober.start(target("http", serve(talk), timeout_s=0.3))
        found = []
        while len(found) < 2:
            assert time.monotonic() - began_s < PATIENCE_S
            found += prober.poll(0.001)
    assert {item.verdict for _, item in found} == {Verdict.OK, Verdict.FAILED}


def test_more_answers_than_one_poll_gives(frozen_port):
    """All of them are heard before any deadline counts."""
    clock = Clock()
    count = 1500
    with closing(Prober(clock)) as prober:
        for i in range(count):
            prober.start(target("tcp", frozen_port, timeout_s=1.0, interval_s=float(i + 2)))
        prober._left_s = clock() + 5  # no grace
        clock.ahead_s += 5
        assert {item.verdict for _, item in collect(prober, count)} == {Verdict.OK}


def test_the_loop_of_a_program_can_wait_for_it(frozen_port):
    with closing(Prober()) as prober, closing(select.epoll()) as outer:
        outer.register(prober.fileno(), select.EPOLLIN)
        prober.start(target("tcp", frozen_port))
        if not prober._results:
            assert outer.poll(PATIENCE_S)
        assert len(collect(prober, 1)) == 1


def test_an_answer_that_a_check_stumbles_over_ends_only_this_check(monkeypatch, frozen_port):
    def stumbling(target, way):
        yield from ()
        raise KeyError("a mistake")

    monkeypatch.setattr("reconciler.health.prober.CHECKS", {**checks.CHECKS, CheckType.DNS: stumbling})
    found = outcomes([target("dns", 1), target("tcp", frozen_port)])
    assert sorted((item.verdict.name, item.error) for _, item in found) == [
        ("FAILED", "its answer can't be understood (KeyError)"), ("OK", "")
    ]  # fmt: skip


def test_a_check_that_waits_beyond_its_deadline_is_over(monkeypatch, frozen_port):
    def stubborn(target, way):
        with socket.socket() as sock:
            while True:
                try:
                    yield sock, select.EPOLLPRI
                except Late:
                    continue

    monkeypatch.setattr("reconciler.health.prober.CHECKS", {CheckType.TCP: stubborn})
    ((_, found),) = outcomes([target("tcp", 1, timeout_s=0.1)])
    assert found.error == "no answer within 100 ms"


def test_closing_ends_what_is_under_way(frozen_port):
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    prober = Prober()
    for i in range(20):
        prober.start(target("http", frozen_port, interval_s=float(i + 2)))
    prober.close()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(("text", "shown"), [
    ("plain", '"plain"'), (b"\xff\n\x1b[2J", '"�\\n\\x1b[2J"'), ("", '""'), ("x" * 60, f'"{"x" * 60}"'),
    ("x" * 61, f'"{"x" * 60}…"'), (b"y" * 100_000, f'"{"y" * 60}…"'), ("\u202e", '"\\u202e"'),
])  # fmt: skip
def test_texts_of_servers(text, shown):
    assert quoted(text) == shown
    assert len(shown) <= MAX_QUOTED + 3


def test_errors_that_nobody_thought_of_are_trouble_of_our_own():
    for number in (0, errno.EINVAL, errno.EBADF, errno.EIO, 9999):
        found = of_errno(number)
        assert found.error
        assert found.verdict is Verdict.NOT_CHECKED


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_descriptors_is_raised_to_what_is_needed(limits):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    assert descriptors.raise_limit(50) == 88
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600
    assert descriptors.raise_limit(1000) == 1000
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1512, hard)
    assert descriptors.raise_limit(1_000_000) == descriptors.MAX_IN_FLIGHT
    assert descriptors.raise_limit(10) == descriptors.MAX_IN_FLIGHT  # never lowered
