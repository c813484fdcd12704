# SPDX-License-Identifier: Apache-2.0
"""What an agent answers at its control socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

from reconciler.agent.control import Command, Json, Peer
from reconciler.agent.journal import Journal
from reconciler.agent.report import Report
from reconciler.agent.wake import Doorbell, Wake
from reconciler.errors import LbctlError

LOOK_S = 1.0
"""How often those who may only ask can have the files looked at."""
FOLLOW_S = 1.0
"""How often a listener without news is asked whether it is still there."""


def commands(
    journal: Journal, report: Report, bell: Doorbell, fetched: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep,
) -> Mapping[str, Command]:  # fmt: skip
    """The commands by name. Their answers have no `error`: errors are raised. `fetched` has what is elsewhere fetched,
    and says whether that has ended."""

    def status(_peer: Peer, _request: Json) -> Iterator[Json]:
        yield journal.status()

    turns, looked_s = threading.Lock(), -LOOK_S

    def look(peer: Peer, _request: Json) -> Iterator[Json]:
        """Have the files looked at; what `read_s` is after, is about files, or a repository, as they are now."""
        nonlocal looked_s
        if not peer.may_change:
            with turns:
                pause(max(0.0, looked_s + LOOK_S - clock()))
                looked_s = clock()
        if not fetched():
            raise LbctlError("the repository is still being fetched", hint="try again in a moment")
        now_s = clock()
        bell.ring(Wake.SETTLED)
        yield {"now_s": now_s}

    def events(_peer: Peer, request: Json) -> Iterator[Json | None]:
        number, known = journal.since(0, 0.0)
        last = request.get("last", 10)
        yield from (event.to_json() for event in known[-last:] if isinstance(last, int) and last > 0)
        while request.get("follow"):
            number, found = journal.since(number, FOLLOW_S)
            yield from (event.to_json() for event in found)
            yield None

    def reload(peer: Peer, _request: Json) -> Iterator[Json]:
        report.command(f"{peer} asks to look at everything again", user=str(peer))
        bell.ring(Wake.RELOAD)
        yield {}

    return {
        "status": Command(status),
        "look": Command(look),
        "events": Command(events),
        "reload": Command(reload, changes=True),
    }
