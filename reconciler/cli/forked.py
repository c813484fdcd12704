# SPDX-License-Identifier: Apache-2.0
"""A process that has loaded what verbs need, and forks one for each that it is asked to run.

The agent starts it and asks at a socket, see `agent/forks`. To start an interpreter and import lbctl takes several
times as long as most questions; a fork takes a millisecond. Each verb still has a process of its own, so nothing that
one leaves in memory is seen by the next, and none of them runs with the agent's memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence

from reconciler.cli.main import INTERNAL_ERROR, main

MAX_REQUEST_BYTES = 1 << 16
LOADED = (
    "encodings.ascii", "numpy.ma", "reconciler.agent.control", "reconciler.cli.explain", "reconciler.cli.export",
    "reconciler.cli.get", "reconciler.kernel.netns", "reconciler.kernel.real", "reconciler.live", "reconciler.ports",
    "reconciler.readings.announcements", "reconciler.readings.flows", "reconciler.readings.health",
    "reconciler.readings.tables", "reconciler.readings.transitions", "reconciler.render.flows",
    "reconciler.snapshot",
)  # fmt: skip
"""What verbs import when they need it."""


def load() -> None:
    """Import what verbs need, and keep the garbage collector off it: it would write to every page of it in a fork."""
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def serve(asked: socket.socket) -> None:
    """Run what is asked for, one after the other, until nobody can ask any more."""
    load()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's, and this ends with it
    told_s = 0.0
    while True:
        content, files, _flags, _address = socket.recv_fds(asked, MAX_REQUEST_BYTES, 2)
        if not content:
            return
        request = json.loads(content)
        try:
            code = _forked(asked, request["words"], files, request["timeout_s"])
        finally:
            for each in files:
                os.close(each)
        spent_s = _spent_s()
        asked.send(json.dumps({"code": code, "spent_s": spent_s - told_s}).encode())
        told_s = spent_s


def _spent_s() -> float:
    """CPU time of this process, and of those that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _forked(asked: socket.socket, words: Sequence[str], files: Sequence[int], timeout_s: float) -> int | None:
    """The exit code of a verb in a process of its own, which writes into these files; None if it took too long, or
    nobody waits for it any more."""
    process = os.fork()
    if not process:
        code = INTERNAL_ERROR
        try:
            asked.close()
            for ours, theirs in zip(files, (1, 2), strict=True):
                os.dup2(ours, theirs)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = main(words)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
        finally:
            os._exit(code)
    ended = os.pidfd_open(process)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(asked, 0)  # only that the other end is closed
        is_done = (ended, select.POLLIN) in poll.poll(timeout_s * 1000)
        if not is_done:
            os.kill(process, signal.SIGKILL)
    finally:
        os.close(ended)
    status = os.waitpid(process, 0)[1]
    return os.waitstatus_to_exitcode(status) if is_done else None


if __name__ == "__main__":
    # An agent that was killed while a verb ran is no news here.
    with socket.socket(fileno=int(sys.argv[1])) as connection, contextlib.suppress(ConnectionError):
        serve(connection)
