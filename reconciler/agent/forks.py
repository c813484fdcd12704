# SPDX-License-Identifier: Apache-2.0
"""Runs verbs of lbctl for those who ask the agent, each in a process of its own that needs no time to start.

They are forked by another process, see `cli/forked`: one that has nothing of the agent's memory, no thread, and has
imported lbctl already. It is started by the first question, and goes when nobody has asked for a while.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Sequence
from typing import NamedTuple

from reconciler import children
from reconciler.errors import LbctlError

IDLE_S = 60.0
"""How long it is kept, with its 50 MB, for the next question."""
SLACK_S = 10.0
"""For an answer, beyond the time that a verb may take: it has to load first."""
_ENVIRONMENT = children.ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Who has threads can't fork."""


class Ended(NamedTuple):
    """What is told of a verb. `code` is None if it took too long."""

    code: int | None
    spent_s: float


class Forks:
    """Verbs that run one at a time. `spent_s` is the CPU time that they took, and what starts them."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self.spent_s = 0.0
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._timer: threading.Timer | None = None

    def run(self, words: Sequence[str], out: int, err: int, timeout_s: float) -> int:
        """The exit code of a verb that writes into these descriptors. Raises TimeoutError, LbctlError."""
        request = json.dumps({"words": list(words), "timeout_s": timeout_s}).encode()
        with self._lock:
            if self._timer:
                self._timer.cancel()
            try:
                told = self._asked(request, out, err, timeout_s) or self._asked(request, out, err, timeout_s)
            except BaseException:
                self._end()
                raise
            if told is None:
                self._end()
                raise LbctlError("the process that reads for others has ended", hint="see the log of the kernel")
            self._timer = threading.Timer(self._idle_s, self.stop)
            self._timer.daemon = True
            self._timer.start()
            self.spent_s += told.spent_s
        if told.code is None:
            raise TimeoutError
        return told.code

    def stop(self) -> None:
        """End it until somebody asks again."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the process that forks, if there is one now."""
        return self._process.pid if self._process else None

    def _asked(self, request: bytes, out: int, err: int, timeout_s: float) -> Ended | None:
        """What it tells of a verb; None if it has ended instead, as the kernel ends processes when memory is short."""
        if self._connection is None:
            self._connection = self._start()
        self._connection.settimeout(timeout_s + SLACK_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._connection, [request], [out, err])
            if content := self._connection.recv(4096):
                return Ended(**json.loads(content))
        self._end()
        return None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                children.module("reconciler.cli.forked", str(theirs.fileno())), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd=children.DIRECTORY, env=_ENVIRONMENT,
            )  # fmt: skip
        return ours

    def _end(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._connection:
            self._connection.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = self._timer = None
