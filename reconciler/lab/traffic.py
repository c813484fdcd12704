# SPDX-License-Identifier: Apache-2.0
"""A client: real HTTP requests, and the outcome of each. Run as a script, with nothing but the standard library.

Prints one JSON object a request, an `Outcome`. Ends after --count requests or --seconds, else at SIGTERM, when
it completes the requests that are under way. Never repeats a request: a repetition would hide a fault.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """One request. `started_s` is of CLOCK_MONOTONIC, which all processes share."""

    started_s: float
    duration_s: float
    source: str
    endpoint: str
    """`address:port` of the server that answered, empty if none did."""
    new_connection: bool
    error: str
    """Empty if the answer was complete and right."""


def request(connection: http.client.HTTPConnection, payload: bytes) -> tuple[str, str]:
    """Send a request; returns the endpoint that answered, and the fault of the answer, empty if it has none."""
    try:
        connection.request("POST" if payload else "GET", "/", body=payload or None)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return "", f"{type(error).__name__}: {error}"
    endpoint = response.headers.get("X-Endpoint", "")
    if response.status != 200:
        return endpoint, f"status {response.status}"
    if not endpoint or body != endpoint.encode() + payload:
        return endpoint, f"the body is not what the server was to send ({len(body)} bytes)"
    return endpoint, ""


class Schedule:
    """Tells all workers the number of the next request and when it is due."""

    def __init__(self, count: int, seconds: float, rate: float) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._issued = 0
        self._count, self._seconds, self._rate = count, seconds, rate

    def next(self) -> bool:
        """Wait until the next request is due. False if there is none."""
        with self._lock:
            number = self._issued
            self._issued += 1
        if self._count and number >= self._count:
            return False
        if self._rate:
            self.stopped.wait(self._started + number / self._rate - time.monotonic())
        over = self._seconds and time.monotonic() - self._started >= self._seconds
        return not (over or self.stopped.is_set())


def work(args: argparse.Namespace, schedule: Schedule, sources: Callable[[], str], payload: bytes) -> None:
    """One worker: one connection at a time."""
    connection, source, used = None, "", 0
    while schedule.next():
        if connection is None:
            source, used = sources(), 0
            connection = http.client.HTTPConnection(
                args.host, args.port, timeout=args.timeout, source_address=(source, 0) if source else None
            )
        new = connection.sock is None
        started = time.monotonic()
        endpoint, error = request(connection, payload)
        outcome = Outcome(started, time.monotonic() - started, source, endpoint, new, error)
        os.write(1, (json.dumps(outcome._asdict()) + "\n").encode())
        used += 1
        if used == args.requests_per_connection:
            connection.close()
            connection = None


def fail(failure: threading.ExceptHookArgs) -> None:
    """If a worker dies of a bug in this file, end the whole client: else its part of the load would be missing."""
    traceback.print_exception(failure.exc_value)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=0, help="requests in all (0: no limit)")
    parser.add_argument("--seconds", type=float, default=0, help="time in all (0: no limit)")
    parser.add_argument("--rate", type=float, default=0, help="requests a second in all (0: as fast as can be)")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--requests-per-connection", type=int, default=1, help="0: never close")
    parser.add_argument("--payload-bytes", type=int, default=0, help="size of what is posted and comes back")
    parser.add_argument("--timeout", type=float, default=3, help="seconds")
    parser.add_argument("--source", action="append", default=[], help="an address for connections, in turn")
    args = parser.parse_args()

    threading.excepthook = fail
    schedule = Schedule(args.count, args.seconds, args.rate)
    signal.signal(signal.SIGTERM, lambda *_: schedule.stopped.set())
    turn = iter(range(1 << 62))
    lock = threading.Lock()

    def source() -> str:
        with lock:
            return args.source[next(turn) % len(args.source)] if args.source else ""

    payload = os.urandom(args.payload_bytes)
    workers = [
        threading.Thread(target=work, args=(args, schedule, source, payload)) for _ in range(args.concurrency)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
