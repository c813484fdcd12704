# SPDX-License-Identifier: Apache-2.0
"""Runs checks: thousands at once on one epoll, without threads.

An event loop made for tasks spends most of its time on switching between them: checks of TCP cost 19 µs this way and
133 µs in asyncio's streams, of which the kernel takes 12.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from heapq import heappop, heappush

from reconciler.health.checks import CHECKS
from reconciler.health.checks.wait import Check, Late, in_words
from reconciler.health.outcome import Outcome, failed, not_checked, of_errno, unreached
from reconciler.health.place import HERE, Lent
from reconciler.health.target import Target
from reconciler.health.way import DIRECT, Way

Result = tuple[Target, Outcome]
_MAX_EVENTS = 1024
_AWAY_S = 0.05
_OWN_TROUBLE = (errno.ENETUNREACH, errno.ENETDOWN)
"""In the prober's namespace there is but one way, which lbctl makes; these say nothing about an endpoint."""


class _Run:
    """A check under way. `fd` is the descriptor that it waits for, -1 if there is none, or none any more."""

    __slots__ = ("began_s", "check", "fd", "is_over", "target")

    def __init__(self, target: Target, check: Check, began_s: float) -> None:
        self.target = target
        self.check = check
        self.began_s = began_s
        self.fd = -1
        self.is_over = False


class Prober:
    """One epoll and the checks that wait on it. `poll` gives what came of those that ended since the last time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._waiting: dict[int, _Run] = {}
        self._deadlines: list[tuple[float, int, _Run]] = []
        self._number = 0
        self._results: list[Result] = []
        self._left_s = clock()

    def fileno(self) -> int:
        """Readable when a check can go on: so the loop of a whole program can wait for this too. Deadlines don't show
        there: see `next_deadline_s`."""
        return self._epoll.fileno()

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def next_deadline_s(self) -> float | None:
        """The time at which `poll` has to be called at the latest; None while nothing is under way."""
        while self._deadlines and self._deadlines[0][2].is_over:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def start(self, target: Target, way: Way = DIRECT) -> None:
        """Begin a check. What comes of it, `poll` tells; also if that is known at once."""
        began_s = self._clock()
        if way.lack:
            self._results.append((target, not_checked(way.lack)))
            return
        run = _Run(target, CHECKS[target.check.type](target, way), began_s)
        self._step(run, began_s)
        if not run.is_over:
            self._number += 1
            heappush(self._deadlines, (began_s + target.check.timeout_s, self._number, run))

    def poll(self, timeout_s: float = 0.0) -> list[Result]:
        """Wait for answers, until the next deadline and for `timeout_s` at most, and give what came of the checks that
        have ended."""
        if self._results:
            timeout_s = 0.0
        elif timeout_s > 0 and (deadline_s := self.next_deadline_s) is not None:
            timeout_s = max(0.0, min(timeout_s, deadline_s - self._clock()))
        self._forgive()
        while True:
            events = self._epoll.poll(timeout_s, _MAX_EVENTS)
            now_s = self._clock()
            for fd, happened in events:
                if run := self._waiting.get(fd):
                    self._step(run, now_s, happened)
            if len(events) < _MAX_EVENTS:
                break
            timeout_s = 0.0
        while self._deadlines and (self._deadlines[0][2].is_over or self._deadlines[0][0] <= now_s):
            run = heappop(self._deadlines)[2]
            if not run.is_over:
                self._step(run, now_s, is_late=True)
        self._left_s = now_s
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """End all checks without a result."""
        for run in self._waiting.values():
            run.check.close()
        self._waiting.clear()
        self._deadlines.clear()
        self._epoll.close()
        HERE.close()

    def _forgive(self) -> None:
        """Put all deadlines off by the time for which nobody was here: a server can't answer what it wasn't asked."""
        away_s = self._clock() - self._left_s
        if away_s > _AWAY_S and self._deadlines:
            self._deadlines = [(deadline_s + away_s, number, run) for deadline_s, number, run in self._deadlines]

    def _step(self, run: _Run, now_s: float, happened: int | None = None, is_late: bool = False) -> None:
        try:
            sock, events = run.check.throw(Late()) if is_late else run.check.send(happened)
        except StopIteration as end:
            outcome: Outcome = end.value
        except Late:
            outcome = unreached(f"no answer within {in_words(run.target.check.timeout_s)}")
        except OSError as error:
            outcome = of_errno(error.errno or 0)
            if run.target.vip is not None and error.errno in _OWN_TROUBLE:
                outcome = not_checked(f"the place that checks through VIPs come from is damaged: {outcome.error}")
        except Exception as error:  # noqa: BLE001 - an answer that a check stumbles over must not end all the others
            outcome = failed(f"its answer can't be understood ({type(error).__name__})")
        else:
            if not is_late:
                self._await(run, sock, events)
                return
            run.check.close()  # It waits on beyond its deadline.
            outcome = unreached(f"no answer within {in_words(run.target.check.timeout_s)}")
        run.is_over = True
        self._waiting.pop(run.fd, None)
        self._results.append((run.target, outcome._replace(latency_s=max(0.0, now_s - run.began_s))))

    def _await(self, run: _Run, sock: socket.socket, events: int) -> None:
        fd = sock.fileno()
        if type(sock) is Lent:
            self._watch(sock, events)
            run.fd = fd
            self._waiting[fd] = run
            return
        if fd == run.fd:
            try:
                self._epoll.modify(fd, events | select.EPOLLONESHOT)
            except FileNotFoundError:  # The same number, but another socket.
                self._epoll.register(fd, events | select.EPOLLONESHOT)
            return
        self._waiting.pop(run.fd, None)  # A closed socket has left the epoll by itself.
        run.fd = fd
        self._waiting[fd] = run
        self._epoll.register(fd, events | select.EPOLLONESHOT)

    def _watch(self, sock: Lent, events: int) -> None:
        """Be told once of these events, also if they have happened already; that a socket can be written to is never
        the case before it is connected, or has room again, so of that the epoll tells without being asked again."""
        if sock.watcher is not self._epoll:
            self._epoll.register(sock.fileno(), events | select.EPOLLET)
            sock.watcher = self._epoll
        elif events != sock.events or events != select.EPOLLOUT:
            self._epoll.modify(sock.fileno(), events | select.EPOLLET)
        sock.events = events
