# SPDX-License-Identifier: Apache-2.0
"""What an agent reads for those who may ask it but may not open the maps and files themselves.

One question is answered at a time: however many ask, the agent spends no more than one CPU on them, and its rounds go
on meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from reconciler.agent.control import Command, Json, Peer
from reconciler.errors import LbctlError, UsageError
from reconciler.history import History, document
from reconciler.kernel.port import Kernel
from reconciler.readings import rows

PATIENCE_S = 20.0


def reads(
    kernel: Callable[[], Kernel], instance_dir: Path, state_dir: Path, metrics: Callable[[], str]
) -> Mapping[str, Command]:
    """The commands by name. `kernel` opens one for a thread of its own; `metrics` makes their text."""
    turns = threading.Lock()

    def get(_peer: Peer, request: Json) -> Iterator[Json]:
        what = str(request.get("what"))
        if what not in rows.ROWS:
            raise UsageError(f"this agent doesn't know {what[:40]!r}", hint="if it is of another version, restart it")
        yield rows.document(what, rows.ROWS[what](rows.Node(kernel, instance_dir)))

    def history(_peer: Peer, request: Json) -> Iterator[Json]:
        number, last = request.get("number"), request.get("last")
        is_number = isinstance(number, int)
        yield document(History(state_dir), number if is_number else None, last if isinstance(last, int) else 20)

    def text(_peer: Peer, _request: Json) -> Iterator[Json]:
        yield {"text": metrics()}

    def in_turn(answer: Callable[[Peer, Json], Iterator[Json]]) -> Command:
        def answered(peer: Peer, request: Json) -> Iterator[Json]:
            if not turns.acquire(timeout=PATIENCE_S):
                raise LbctlError("too many others are asking", hint="try again in a moment")
            try:
                made = list(answer(peer, request))
            finally:
                turns.release()
            yield from made

        return Command(answered)

    return {"get": in_turn(get), "history": in_turn(history), "metrics": in_turn(text)}
