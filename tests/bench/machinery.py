# SPDX-License-Identifier: Apache-2.0
"""A balancer of its own for a fleet: namespace, instance, cache, manifests; commands on it, and an agent."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests import big_fleet

CHECKOUT = Path(__file__).resolve().parents[2]
LBCTL = (sys.executable, "-I", str(CHECKOUT / "lbctl"))
LIMIT_S = 400.0
"""What takes longer is given up, and not measured."""

_MNT_DETACH = 2


class NotMeasuredError(Exception):
    """A command failed or took too long; says which one and why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended well: how long it took, the most memory that it had, and what it said."""

    seconds: float
    peak_mb: float
    said: str


@dataclass(frozen=True, slots=True)
class Site:
    """The node of a fleet of so many services, with nothing on it yet. Its name is also the instance's."""

    name: str
    services: int
    manifests: Path
    run_dir: Path
    environment: Mapping[str, str]

    def lbctl(self, *words: str | Path) -> Ran:
        """Run lbctl on the node, as a process. Raises NotMeasuredError."""
        at = ("--netns", self.name, "--run-dir", self.run_dir)
        return command(*LBCTL, *at, *words, environment=self.environment)

    def agent(self, *options: str) -> Agent:
        words = (*LBCTL, "--netns", self.name, "--run-dir", str(self.run_dir), "run", str(self.manifests), *options)
        return Agent(subprocess.Popen(
            words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ))  # fmt: skip


@contextmanager
def site(name: str, services: int, cache: Path) -> Iterator[Site]:
    """A node, gone at the end with all that lbctl put there, however that ends. Needs root."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as directory, big_fleet.namespace(name):
        place = Path(directory)
        big_fleet.write(place / "manifests", services)
        environment = os.environ | {"LBCTL_CACHE_DIR": str(cache)}
        try:
            yield Site(name, services, place / "manifests", place / "run", environment)
        finally:
            # Not by `lbctl delete`: that may be what doesn't work. The rest goes with the namespace.
            for pins in place.glob("run/*/bpf"):
                ctypes.CDLL(None).umount2(os.fsencode(pins), _MNT_DETACH)


def command(*words: str | Path, environment: Mapping[str, str] | None = None) -> Ran:
    """Run a command and wait for it. Raises NotMeasuredError if it fails, or takes longer than LIMIT_S."""
    shown = " ".join(map(str, words[-3:]))
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            limit.cancel()
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if seconds >= LIMIT_S:
        raise NotMeasuredError(f"{shown}: not done after {LIMIT_S:.0f} s")
    if process.returncode:
        raise NotMeasuredError(f"{shown}: exit code {process.returncode}: {said[-500:]}")
    return Ran(seconds, usage.ru_maxrss / 1000, said)


@dataclass
class Agent:
    """A running agent. `lines` are those of its log, each with the time (of time.monotonic) when it came."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __enter__(self) -> Agent:
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._came:
                self.lines.append((time.monotonic(), line.rstrip("\n")))
                self._came.notify_all()

    def line(self, pattern: str, first: int = 0, limit_s: float = LIMIT_S) -> tuple[float, str]:
        """The first line from number `first` on that a pattern is found in, when it comes. Raises NotMeasuredError."""
        deadline = time.monotonic() + limit_s
        with self._came:
            while True:
                for came, text in self.lines[first:]:
                    if re.search(pattern, text):
                        return came, text
                first = len(self.lines)
                left_s = min(1.0, deadline - time.monotonic())
                if left_s <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    last = "\n".join(text for _, text in self.lines[-5:])
                    raise NotMeasuredError(f"the agent did not say {pattern!r}; its last lines:\n{last}")
                self._came.wait(left_s)

    def memory_mb(self) -> float:
        """What it holds in memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1000
