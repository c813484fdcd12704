# SPDX-License-Identifier: Apache-2.0
"""Whether the node itself is the culprit: when nearly all that it checks falls silent at once, it is more probable
that the node has lost its uplink than that all others died.

Then nobody goes down for two intervals. If they are still silent after that, they do go down, and the pools decide
what happens if nobody is left. Only silence is suspicious: a refusal or a wrong answer proves that there is a way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

MIN_HOSTS, MIN_HOSTS_CUT_OFF = 10, 1
"""So many hosts are enough to tell; and where the node itself has no way to a silent one: no route, or no carrier."""
SILENT_PERCENT = 80
SAMPLE = 1000
HOLD_INTERVALS = 2
MIN_WINDOW_S = 0.5


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One episode: from `began_s`, nobody goes down until `until_s`; `seen_s` is when it was last the case. `why` says
    what of the node is the matter, as far as that is known."""

    began_s: float
    until_s: float
    seen_s: float
    why: str = ""

    def holds(self, now_s: float) -> bool:
        return now_s < self.until_s


def looks_suspect(
    latest: Iterable[tuple[float, bool]], since_s: float, now_s: float, min_hosts: int = MIN_HOSTS
) -> bool:
    """Whether most hosts have been silent since then.

    `latest` has for each host when it last answered, or should have, and whether it was silent; the newest first. A
    thousand are enough to tell.
    """
    begin_s = min(since_s, now_s - MIN_WINDOW_S)
    hosts = silent = 0
    for time_s, is_silent in latest:
        if time_s < begin_s or hosts == SAMPLE:
            break
        hosts += 1
        silent += is_silent
    return hosts >= min_hosts and 100 * silent >= SILENT_PERCENT * hosts


def after(
    suspicion: Suspicion | None, is_suspect: bool, now_s: float, interval_s: float, why: str = ""
) -> Suspicion | None:
    """The suspicion after somebody would have gone down. An episode holds once, however long it lasts; it is over when
    it wasn't seen for two intervals."""
    if suspicion is not None and (suspicion.holds(now_s) or now_s - suspicion.seen_s < HOLD_INTERVALS * interval_s):
        return replace(suspicion, seen_s=now_s) if is_suspect else suspicion
    return Suspicion(now_s, now_s + HOLD_INTERVALS * interval_s, now_s, why) if is_suspect else None
