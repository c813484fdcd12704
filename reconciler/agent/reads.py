# SPDX-License-Identifier: Apache-2.0
"""What an agent reads for those who may ask it but may not open the maps and files themselves.

Each question about the node is answered by a process of its own, one at a time: however many ask, and however much the
node holds, the agent keeps its memory, its rounds go on, and a small share of a CPU is spent on them (`budget`). Those
who wait with the same question get the same answer (`shared`).
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from reconciler import children, safe
from reconciler.agent.budget import SHARE, Budget
from reconciler.agent.control import Answer, Command, Json, Peer
from reconciler.agent.forks import Forks
from reconciler.agent.shared import Shared
from reconciler.doctor.finding import FOUND
from reconciler.errors import LbctlError, UsageError
from reconciler.history import History, document
from reconciler.readings.rows import ROWS

PATIENCE_S = 20.0
"""How long somebody waits for others who ask."""
BUDGET_PATIENCE_S = 45.0
"""How long somebody waits until a share of a CPU has paid for the question before."""
EXPLAINED_S = 1.0
"""The most that an explanation counts: the first one compiles a program, and those after it don't."""
TIMEOUT_S = 50.0
_OF_PACKETS = ("proto", "flags", "bytes", "interface", "format")
MAX_ANSWER_BYTES = 16 << 20


def reads(
    where: Sequence[str], state_dir: Path, metrics: Callable[[], str], forks: Forks, manifests: Sequence[str] = ()
) -> Mapping[str, Command]:
    """The commands by name. `where` are the options by which lbctl finds this instance; `metrics` makes their text;
    `forks` runs verbs; `manifests` are the agent's directory, if it has one, and the options that say how it is
    read."""
    turns, budget = threading.Lock(), Budget()

    def ended(*words: str, good: Sequence[int] = (0,)) -> tuple[int, bytes]:
        return _ended(lambda out, err: forks.run([*where, *words], out, err, TIMEOUT_S), good)

    def run(*words: str) -> bytes:
        return ended(*words)[1]

    def spent_s() -> float:
        """CPU time of this thread and of the verbs."""
        return time.thread_time() + forks.spent_s

    def get(_peer: Peer, request: Json) -> Iterator[Answer]:
        what = str(request.get("what"))
        if what not in ROWS:
            raise UsageError(f"this agent doesn't know {what[:40]!r}", hint="if it is of another version, restart it")
        words = ("health", "--history") if what == "history" else (what,)
        yield on_a_line(run("get", *words, "-o", "json"))

    def history(_peer: Peer, request: Json) -> Iterator[Answer]:
        number, last = request.get("number"), request.get("last")
        is_number = isinstance(number, int)
        yield document(History(state_dir), number if is_number else None, last if isinstance(last, int) else 20)

    def text(_peer: Peer, _request: Json) -> Iterator[Answer]:
        yield {"text": metrics()}

    def explain(_peer: Peer, request: Json) -> Iterator[Answer]:
        packet = request.get("packet")
        if not isinstance(packet, list) or len(packet) != 2:
            raise UsageError("a packet has a source and a destination")
        words = list(map(_word, packet))
        for name in _OF_PACKETS:
            if request.get(name) is not None:
                words += [f"--{name}", _word(request[name])]
        yield {"text": run("explain", *words).decode()}

    def export(_peer: Peer, _request: Json) -> Iterator[Answer]:
        yield on_a_line(run("export", *manifests))

    def doctor(_peer: Peer, request: Json) -> Iterator[Answer]:
        if not manifests or request.get("directory") != manifests[0]:
            own = f"its own manifests, in {manifests[0]}" if manifests else "no files of manifests"
            raise UsageError(f"the agent has {own}", hint="ask as root about others")
        words = ["--format", _word(request.get("format", "text"))]
        if request.get("from") is not None:
            words += ["--from", _word(request["from"])]
        code, text = ended("doctor", *manifests, *words, good=(0, FOUND))
        yield {"text": text.decode(), "code": code}

    def in_turn(answer: Callable[[Peer, Json], Iterator[Answer]], most_s: float) -> Command:
        def made(peer: Peer, request: Json, begins: Callable[[], None]) -> list[Answer]:
            if not turns.acquire(timeout=PATIENCE_S):
                raise _too_many()
            try:
                if not (peer.may_change or budget.wait(BUDGET_PATIENCE_S)):
                    raise _spent(budget.missing_s())
                begins()
                began_s = spent_s()
                try:
                    return list(answer(peer, request))
                finally:
                    budget.spend(min(most_s, spent_s() - began_s))
            finally:
                turns.release()

        shared = Shared()

        def answered(peer: Peer, request: Json) -> Iterator[Answer]:
            question = json.dumps([peer.may_change, request], sort_keys=True)
            yield from shared.answer(question, lambda begins: made(peer, request, begins))

        return Command(answered)

    answers = {"get": get, "history": history, "metrics": text, "explain": explain, "export": export, "doctor": doctor}
    return {name: in_turn(answer, EXPLAINED_S if answer is explain else math.inf) for name, answer in answers.items()}


def _word(value: object) -> str:
    """A word for a command line that can be no option and no file. Raises UsageError."""
    text = str(value)
    if not re.fullmatch(r"[0-9A-Za-z\[][0-9A-Za-z.:\[\],_@-]{0,80}", text):
        raise UsageError(f"{safe.line(text[:80])} is no word that the agent takes", hint="ask as root")
    return text


def _too_many() -> LbctlError:
    return LbctlError("too many others are asking", hint="try again in a moment; root need not ask the agent")


def _spent(seconds: float) -> LbctlError:
    """Nobody else may be asking: on a slow machine, or of a large node, a single answer costs that much."""
    what = f"the agent spends a {1 / SHARE:.0f}th of a CPU on questions, and earlier answers have used that up"
    return LbctlError(what, hint=f"try again in {math.ceil(seconds)} s; root need not ask the agent")


def on_a_line(text: bytes) -> bytes:
    """JSON on a line of its own, without its being read and written anew."""
    return msgspec.json.format(text, indent=-1)


def said(command: Sequence[str]) -> bytes:
    """What a process writes. Raises LbctlError."""

    def run(out: int, err: int) -> int:
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False, timeout=TIMEOUT_S,
                cwd=children.DIRECTORY, env=children.ENVIRONMENT,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error

    return _ended(run, (0,))[1]


def _ended(run: Callable[[int, int], int], good: Sequence[int]) -> tuple[int, bytes]:
    """The exit code of a process, and what it writes; `run` runs it with these descriptors for output and complaints.
    Raises LbctlError if it fails, takes too long or writes too much."""
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaint:
        try:
            code = run(answer.fileno(), complaint.fileno())
        except TimeoutError as error:
            raise LbctlError(f"this was not read within {TIMEOUT_S:g} seconds", hint="ask as root") from error
        answer.seek(0)
        content = answer.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise LbctlError("there is too much to tell it over the socket", hint="ask as root")
        if code not in good:
            complaint.seek(0)
            why = complaint.read(1000).decode("utf-8", "replace").strip()
            raise LbctlError(f"this can't be read: {why.removeprefix('error: ')}")
    return code, content
