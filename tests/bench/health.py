# SPDX-License-Identifier: Apache-2.0
"""What health checks cost: checks for a second of CPU by type, beside asyncio's streams, and 10,000 targets that are
checked every two seconds.

All in a network namespace of its own, on loopback, against a server in another process: the server's share and the
kernel's on its side are not counted, but what the kernel does for the checker is.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from reconciler.health.descriptors import raise_limit
from reconciler.health.monitor import Monitor
from reconciler.health.outcome import Verdict
from reconciler.health.prober import Prober
from reconciler.health.schedule import Schedule
from reconciler.health.state import Health
from reconciler.health.target import Target, Use
from reconciler.lab import netns
from reconciler.model import CheckType, HealthCheck

TCP_PORT, HTTP_PORT, UDP_PORT, CLOSED_PORT = 8000, 8001, 8002, 8009
AT_ONCE = 64
BAR_A_SECOND, BAR_OF_BARE = 20_000, 20_000 / 52_800
"""The machine that the bar was set on did 52,800 by a bare loop; what a slower one does is compared with its own."""
BAR_SHARE, BAR_MB, BAR_LATE_S = 0.35, 120, 0.05
_RESET = struct.pack("ii", 1, 0)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    unit: str
    bar: str = ""
    is_met: bool = True

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "unit": self.unit, "bar": self.bar, "met": self.is_met}


def line(figure: Figure) -> str:
    bar = f"  {'met' if figure.is_met else 'MISSED'}: {figure.bar}" if figure.bar else ""
    return f"{figure.name:<58} {figure.value:>10,.4g} {figure.unit}{bar}"


def figures(checks: int = 20_000, targets: int = 10_000, for_s: float = 10.0) -> list[Figure]:
    """Measure in a namespace of its own. Needs root."""
    prefix = f"lbh-{os.getpid()}"
    name = netns.name(prefix, "bench")
    netns.ip([f"netns add {name}"])
    try:
        netns.ip(["link set lo up"], name)
        argv = [sys.executable, "-m", "tests.bench.health", str(checks), str(targets), str(for_s)]
        done = subprocess.run(
            netns.command(name, argv), check=True, stdout=subprocess.PIPE, encoding="utf-8", timeout=300
        )
        return [Figure(*row) for row in json.loads(done.stdout)]
    finally:
        netns.destroy(prefix)


def serve() -> None:
    """Accept and close; answer a request of HTTP; send datagrams back."""
    poll = select.epoll()
    listeners = {}
    for port in (TCP_PORT, HTTP_PORT):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(4096)
        sock.setblocking(False)
        listeners[sock.fileno()] = sock
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(("0.0.0.0", UDP_PORT))
    echo.setblocking(False)
    connections: dict[int, socket.socket] = {}
    for fd in (*listeners, echo.fileno()):
        poll.register(fd, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            try:
                if fd in listeners:
                    is_http = listeners[fd].getsockname()[1] == HTTP_PORT
                    while True:
                        connection, _ = listeners[fd].accept()
                        if is_http:
                            connections[connection.fileno()] = connection
                            poll.register(connection.fileno(), select.EPOLLIN)
                        else:
                            connection.close()
                elif fd == echo.fileno():
                    while True:
                        data, peer = echo.recvfrom(2048)
                        echo.sendto(data, peer)
                elif connection := connections.pop(fd):
                    with connection:
                        connection.recv(4096)
                        connection.send(_ANSWER)
            except OSError:  # nothing more to accept, or a reset
                continue


@contextmanager
def server() -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests.bench.health import serve; serve()"], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def address(number: int) -> IPv4Address:
    """Any of 127.1.0.0/16 and the like is this host."""
    return IPv4Address("127.1.0.0") + number


def a_second(check: HealthCheck, port: int, count: int, good: Verdict = Verdict.OK) -> float:
    """Checks for each second of CPU."""
    # Plenty of time: the server is slower than the checker, and then the kernel drops connections of its queue.
    patient = replace(check, timeout_s=30.0)
    hosts = 1 if check.type is CheckType.UDP else 500  # its answers come from the first address of the host
    targets = [Target(address(i) if hosts > 1 else IPv4Address("127.0.0.1"), port, patient) for i in range(hosts)]
    begun = ended = 0
    with closing(Prober()) as prober:
        cpu_s = time.process_time()
        while ended < count:
            while begun < count and prober.in_flight < AT_ONCE:
                prober.start(targets[begun % hosts])
                begun += 1
            for _, outcome in prober.poll(1.0):
                assert outcome.verdict is good, outcome
                ended += 1
        return count / (time.process_time() - cpu_s)


def bare_a_second(count: int) -> float:
    """TCP by the least code that can do it: what the kernel takes, and a loop around it."""
    poll = select.epoll()
    waiting: dict[int, socket.socket] = {}
    begun = 0
    cpu_s = time.process_time()
    while begun < count or waiting:
        while begun < count and len(waiting) < AT_ONCE:
            sock = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.connect_ex(("127.0.0.1", TCP_PORT))
            waiting[sock.fileno()] = sock
            poll.register(sock.fileno(), select.EPOLLOUT | select.EPOLLONESHOT)
            begun += 1
        for fd, _ in poll.poll(1.0):
            with waiting.pop(fd) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    poll.close()
    return count / (time.process_time() - cpu_s)


def streams_a_second(count: int) -> float:
    """The same with asyncio's streams, for TCP."""

    async def one() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", TCP_PORT)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.close()

    async def worker() -> None:
        for _ in range(count // AT_ONCE):
            await asyncio.wait_for(one(), 1.0)

    async def all_of_them() -> None:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    cpu_s = time.process_time()
    asyncio.run(all_of_them())
    return count // AT_ONCE * AT_ONCE / (time.process_time() - cpu_s)


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def fleet(targets: int, for_s: float, check: HealthCheck, port: int) -> tuple[float, ...]:
    """Share of a CPU, resident MB, lateness of 99 % and of the latest in seconds, and the share of the checks that
    were begun of those that were due; after a warm-up of two intervals."""
    schedule = Schedule(b"bench")
    with closing(Prober()) as prober:
        monitor = Monitor(prober, schedule)
        monitor.want({
            Use("web", address(i), port): Target(address(i), port, check) for i in range(targets)
        }, raise_limit(targets))  # fmt: skip

        def run(seconds: float) -> None:
            end_s = time.monotonic() + seconds
            while (left_s := end_s - time.monotonic()) > 0:
                monitor.run(min(left_s, 0.1))

        run(2 * check.interval_s)
        schedule.lateness.clear()
        began_s, cpu_s = time.monotonic(), time.process_time()
        run(for_s)
        assert all(state.health is Health.UP for state in monitor.states.values())
        share = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
        late = schedule.lateness
        begun = late.total * check.interval_s / targets / for_s
        return share, resident_mb(), late.quantile_s(0.99), late.max_s, begun


def measure(checks: int, targets: int, for_s: float) -> Iterator[Figure]:
    raise_limit(targets)
    usual = HealthCheck(CheckType.TCP)
    kinds: tuple[tuple[str, HealthCheck, int, Verdict, bool], ...] = (
        ("TCP", usual, TCP_PORT, Verdict.OK, True),
        ("TCP, refused", usual, CLOSED_PORT, Verdict.FAILED, True),
        ("HTTP", HealthCheck(CheckType.HTTP), HTTP_PORT, Verdict.OK, True),
        ("UDP, with an answer", HealthCheck(CheckType.UDP, send="PING", expect="PING"), UDP_PORT, Verdict.OK, False),
        ("ping", HealthCheck(CheckType.PING), 0, Verdict.OK, False),
    )
    with server():
        base = streams_a_second(checks // 4)
        yield Figure("TCP by asyncio's streams", base, "checks/CPU-second")
        bare = bare_a_second(checks)
        yield Figure(f"TCP by a bare loop ({bare / base:.1f} of the streams)", bare, "checks/CPU-second")
        for name, check, port, good, has_bar in kinds:
            found = a_second(check, port, checks, good)
            bar = f"≥ {BAR_A_SECOND:,}, or {BAR_OF_BARE:.2f} of the bare loop" if has_bar else ""
            is_met = not has_bar or found >= min(BAR_A_SECOND, BAR_OF_BARE * bare)
            yield Figure(f"{name} ({found / bare:.2f} of the bare loop)", found, "checks/CPU-second", bar, is_met)
        for name, check, port in (("TCP", usual, TCP_PORT), ("HTTP", HealthCheck(CheckType.HTTP), HTTP_PORT)):
            share, mb, late_s, latest_s, begun = fleet(targets, for_s, check, port)
            what = f"{targets:,} targets every 2 s, {name}"
            yield Figure(f"{what}: share of a CPU", share, "CPU", f"≤ {BAR_SHARE}", share <= BAR_SHARE)
            yield Figure(f"{what}: begun of what was due", 100 * begun, "%", "≥ 97", begun >= 0.97)
            yield Figure(f"{what}: memory", mb, "MB", f"≤ {BAR_MB}", mb <= BAR_MB)
            bar = f"< {BAR_LATE_S * 1000:g}"
            yield Figure(f"{what}: lateness, 99 %", late_s * 1000, "ms", bar, late_s < BAR_LATE_S)
            yield Figure(f"{what}: lateness, the latest", latest_s * 1000, "ms")


def main(arguments: list[str], tell: Callable[[str], object] = print) -> None:
    checks, targets, for_s = int(arguments[0]), int(arguments[1]), float(arguments[2])
    rows = [[f.name, f.value, f.unit, f.bar, f.is_met] for f in measure(checks, targets, for_s)]
    tell(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
