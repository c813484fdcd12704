# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: commands in them, and taking everything away that a lab has made.

Processes enter a namespace by setns(2). `ip netns exec` would also give them a mount namespace with another
/sys, in which bpffs mounts are hidden.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from reconciler.kernel.netns import enter
from reconciler.kernel.real import RUN_DIR
from reconciler.lab import LabError

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
STATE_DIR = Path("/var/lib/lbctl")
"""As the command line has it."""
MARK = "LBCTL_LAB"
"""Environment variable that every process of a lab carries; its value is the lab's prefix."""

_MNT_DETACH = 2
_KILL_WAIT_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


def name(prefix: str, host: str) -> str:
    """The namespace of a host of a lab."""
    return f"{prefix}-{host}"


def command(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a namespace."""
    return ["nsenter", f"--net={NETNS_DIR / namespace}", "--", *argv]


def ip(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run lines of `ip` as one batch, in a namespace or in the caller's. Raises LabError at the first that fails."""
    argv = ["ip", "-batch", "-"]
    text = "\n".join(lines) + "\n"
    done = subprocess.run(
        command(namespace, argv) if namespace else argv, input=text, capture_output=True, encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise LabError(f"`ip` failed in {namespace or 'the root namespace'}: {done.stderr.strip()}")


def inside(namespace: str, function: Callable[..., T], *args: object) -> T:
    """Call a function in a thread that has entered a namespace. Sockets that it makes stay in there."""

    def call() -> T:
        enter(namespace)
        return function(*args)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call).result()


def write_sysctls(namespace: str, settings: dict[str, str]) -> None:
    """Set e.g. {"net/ipv4/ip_forward": "1"} in a namespace."""

    def write() -> None:
        for name, value in settings.items():
            (Path("/proc/sys") / name).write_text(value, encoding="utf-8")

    inside(namespace, write)


def namespaces(prefix: str) -> list[str]:
    return sorted(path.name for path in NETNS_DIR.glob(f"{glob.escape(prefix)}-*"))


def processes(prefix: str) -> set[int]:
    """Processes that a lab started, and any other with a thread in one of its namespaces; never the caller."""
    inodes = {(NETNS_DIR / namespace).stat().st_ino for namespace in namespaces(prefix)}
    mark = f"{MARK}={prefix}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0") or inodes & set(_net_inodes(entry)):
                    found.add(int(entry.name))
            except OSError:  # The process has just ended, or is a zombie.
                continue
    return found


def _net_inodes(process: Path) -> Iterator[int]:
    for thread in (process / "task").iterdir():
        yield (thread / "ns/net").stat().st_ino


def mounts(prefix: str, run_dir: Path = RUN_DIR) -> list[Path]:
    """Mount points below the instance directories of a lab, innermost first."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    return [p for p in reversed(points) if any(p.is_relative_to(d) for d in instance_dirs(prefix, run_dir))]


def instance_dirs(prefix: str, run_dir: Path = RUN_DIR) -> list[Path]:
    """The instance directories of a lab's balancers: an instance has the name of its namespace."""
    return sorted(run_dir.glob(f"{glob.escape(prefix)}-*"))


def state_dirs(prefix: str, run_dir: Path = RUN_DIR) -> list[Path]:
    """Where the histories of these instances are, which outlive `lbctl delete`."""
    base = STATE_DIR if run_dir == RUN_DIR else run_dir / ".state"
    return sorted(base.glob(f"{glob.escape(prefix)}-*"))


def destroy(prefix: str, run_dir: Path = RUN_DIR) -> None:
    """Kill the processes and remove the namespaces, pins, mounts and histories of a lab, also of one that was killed.

    Everything named `<prefix>-…` is taken for the lab's. Doing it twice is no error. Raises LabError if a
    process survives.
    """
    _kill(prefix)
    ip(f"netns del {namespace}" for namespace in namespaces(prefix))
    for point in mounts(prefix, run_dir):
        _libc.umount2(os.fsencode(point), _MNT_DETACH)
    for directory in (*instance_dirs(prefix, run_dir), *state_dirs(prefix, run_dir)):
        shutil.rmtree(directory)


def _kill(prefix: str) -> None:
    deadline = time.monotonic() + _KILL_WAIT_S
    while pids := processes(prefix):
        if time.monotonic() > deadline:
            raise LabError(f"these processes of the lab don't end: {', '.join(map(str, sorted(pids)))}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def leftovers(prefix: str, run_dir: Path = RUN_DIR) -> list[str]:
    """Descriptions of everything that a lab has left behind; empty after `destroy`."""
    return [
        *(f"process {pid}" for pid in sorted(processes(prefix))),
        *(f"namespace {namespace}" for namespace in namespaces(prefix)),
        *(f"mount {path}" for path in mounts(prefix, run_dir)),
        *(f"directory {path}" for path in (*instance_dirs(prefix, run_dir), *state_dirs(prefix, run_dir))),
    ]
