# SPDX-License-Identifier: Apache-2.0
"""What an agent reads for those who may ask it but may not open the maps and files themselves.

Each question about the node is answered by a process of its own, one at a time: however many ask, and however much the
node holds, the agent keeps its memory, its rounds go on, and a small share of a CPU is spent on them (`budget`).
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from reconciler import children
from reconciler.agent.budget import Budget
from reconciler.agent.control import Command, Json, Peer
from reconciler.errors import LbctlError, UsageError
from reconciler.history import History, document
from reconciler.readings.rows import ROWS

PATIENCE_S = 20.0
"""How long somebody waits for others who ask."""
TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 16 << 20


def reads(where: Sequence[str], state_dir: Path, metrics: Callable[[], str]) -> Mapping[str, Command]:
    """The commands by name. `where` are the options by which lbctl finds this instance; `metrics` makes their text."""
    turns, budget = threading.Lock(), Budget()

    def get(_peer: Peer, request: Json) -> Iterator[Json]:
        what = str(request.get("what"))
        if what not in ROWS:
            raise UsageError(f"this agent doesn't know {what[:40]!r}", hint="if it is of another version, restart it")
        words = ("health", "--history") if what == "history" else (what,)
        yield _told(children.module("reconciler.cli.main", *where, "get", *words, "-o", "json"))

    def history(_peer: Peer, request: Json) -> Iterator[Json]:
        number, last = request.get("number"), request.get("last")
        is_number = isinstance(number, int)
        yield document(History(state_dir), number if is_number else None, last if isinstance(last, int) else 20)

    def text(_peer: Peer, _request: Json) -> Iterator[Json]:
        yield {"text": metrics()}

    def in_turn(answer: Callable[[Peer, Json], Iterator[Json]]) -> Command:
        def answered(peer: Peer, request: Json) -> Iterator[Json]:
            if not turns.acquire(timeout=PATIENCE_S):
                raise _too_many()
            try:
                if not (peer.may_change or budget.wait(PATIENCE_S)):
                    raise _too_many()
                began_s = _spent_s()
                try:
                    made = list(answer(peer, request))
                finally:
                    budget.spend(_spent_s() - began_s)
            finally:
                turns.release()
            yield from made

        return Command(answered)

    return {"get": in_turn(get), "history": in_turn(history), "metrics": in_turn(text)}


def _spent_s() -> float:
    """CPU time of this thread, and of children that have ended; whoever else starts some meanwhile is rare."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


def _too_many() -> LbctlError:
    return LbctlError("too many others are asking", hint="try again in a moment; root need not ask the agent")


def _told(command: Sequence[str]) -> Json:
    """The JSON that a process writes. Raises LbctlError."""
    told: Json = json.loads(said(command))
    return told


def said(command: Sequence[str]) -> bytes:
    """What a process writes. Raises LbctlError if it fails, takes too long or writes too much."""
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaint:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=answer, stderr=complaint, check=False, timeout=TIMEOUT_S,
                cwd=children.DIRECTORY, env=children.ENVIRONMENT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LbctlError(f"this was not read within {TIMEOUT_S:g} seconds", hint="ask as root") from error
        answer.seek(0)
        content = answer.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise LbctlError("there is too much to tell it over the socket", hint="ask as root")
        if done.returncode:
            complaint.seek(0)
            why = complaint.read(1000).decode("utf-8", "replace").strip()
            raise LbctlError(f"this can't be read: {why.removeprefix('error: ')}")
    return content
