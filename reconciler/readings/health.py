# SPDX-License-Identifier: Apache-2.0
"""What checks found, joined with who is checked, for people; straight from the files of an instance."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from reconciler import private
from reconciler.health import roster, store
from reconciler.health.roster import Listed
from reconciler.health.state import Health, State, returns_s
from reconciler.health.store import Entry
from reconciler.model import place_of
from reconciler.wish import drains

HISTORY = "health.jsonl"
MAX_HISTORY_BYTES = 256 * 1024
NEVER = "never checked"
STATES = ("up", NEVER, "held up", "down")
"""What checks say of an endpoint, the worst last."""
STALE_S = 10.0
"""After so long without a word of the process that checks, nobody is checking."""


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """An endpoint of a pool. Times are in seconds; None: not known, or not now. `streak` counts the answers in a row
    that contradict the state. `returns_s`: for how long one that flaps has to be well yet before it is up. `vip` is
    the one that was asked for; None: the endpoint's own address was."""

    endpoint: str
    pool: str
    state: str
    since_s: int | None
    streak: int
    latency_ms: float | None
    error: str
    next_s: float | None
    check: str
    checked_s: float | None
    share: int
    falls: int
    vip: str | None
    services: tuple[str, ...]
    returns_s: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """An endpoint that went up or down, `ago_s` ago."""

    ago_s: int
    endpoint: str
    pool: str
    state: str
    error: str


def is_checked(instance_dir: Path) -> bool:
    """Whether somebody is checking now."""
    return time.monotonic() - store.read(instance_dir / store.FILE).progress.written_s < STALE_S


def health(instance_dir: Path) -> list[EndpointHealth]:
    """Every endpoint that is checked, by pool, in the order of the manifests. Raises FilesError."""
    return _health(instance_dir, roster.read(instance_dir / roster.FILE))


def _health(instance_dir: Path, pools: Mapping[str, Listed]) -> list[EndpointHealth]:
    stored = store.read(instance_dir / store.FILE)
    now_s = time.monotonic()
    is_on = now_s - stored.progress.written_s < STALE_S
    found = []
    for pool in sorted(pools.values(), key=lambda pool: pool.pool):
        for endpoint in pool.endpoints:
            for use, digest in endpoint.targets:
                entry = stored.entries.get(digest, Entry(State()))
                state = entry.state
                found.append(
                    EndpointHealth(
                        _place(endpoint.address, endpoint.port), pool.pool, _word(state),
                        None if state.checked_s is None else max(0, int(now_s - state.since_s)), state.streak,
                        None if state.checked_s is None else round(1000 * state.latency_s, 1),
                        state.error if state.health is not Health.UP or state.streak else "",
                        _next_s(entry, now_s) if is_on else None,
                        pool.check, None if state.checked_s is None else round(now_s - state.checked_s, 1),
                        state.shown_share, len(state.falls), str(use.vip) if use.vip else None, pool.services,
                        _rounded(returns_s(state, pool.rise_s, now_s)),
                    )
                )  # fmt: skip
    return found


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _next_s(entry: Entry, now_s: float) -> float | None:
    """None while a check is under way; of many targets not all is written down at once."""
    if entry.next_s is None or entry.next_s < now_s - 1:
        return None
    return round(max(0.0, entry.next_s - now_s), 1)


@dataclass(frozen=True, slots=True)
class Wished:
    """What is known of an endpoint besides the maps. `health`: the worst word of all pools that have it checked; None:
    none has. `weights`: those that the manifests say, by the pools that have checks."""

    health: str | None
    weights: Mapping[str, int]


def wished_of_endpoints(instance_dir: Path) -> Mapping[str, Wished]:
    """The endpoints of pools that have checks, by their ids. Raises FilesError."""
    pools = roster.read(instance_dir / roster.FILE)
    words: dict[str, str] = {}
    for each in _health(instance_dir, pools):
        words[each.endpoint] = max(each.state, words.get(each.endpoint, each.state), key=STATES.index)
    weights: dict[str, dict[str, int]] = {}
    for pool in pools.values():
        for endpoint in pool.endpoints:
            weights.setdefault(_place(endpoint.address, endpoint.port), {})[pool.pool] = endpoint.weight
    return {id: Wished(words.get(id), of_pools) for id, of_pools in weights.items()}


def history(instance_dir: Path, most: int = 50) -> list[Transition]:
    """The latest transitions, the oldest first. Raises FilesError."""
    found, now_s = [], time.time()
    for line in (private.read(instance_dir / HISTORY) or b"").splitlines()[-most:]:
        try:
            item = json.loads(line)
            ago_s = max(0, int(now_s - float(item["at_s"])))
            found.append(Transition(ago_s, *(str(item[key]) for key in ("endpoint", "pool", "state", "error"))))
        except (ValueError, KeyError, TypeError):
            continue
    return found


@dataclass(frozen=True, slots=True)
class Checker:
    """The process that checks. `late_p99_ms`: ninety-nine of a hundred checks of the last ten seconds began less late.
    `suspects_s`: for how many seconds it still suspects this node, and lets nobody go down; None: it doesn't."""

    pid: str
    targets: int
    in_flight: int
    late_p99_ms: float
    checks: int
    suspects_s: float | None


def checker(instance_dir: Path) -> list[Checker]:
    """The process that checks now; none if there is none. Raises FilesError."""
    if not is_checked(instance_dir):
        return []
    progress = store.read(instance_dir / store.FILE).progress
    left_s = progress.suspect_until_s - time.monotonic()
    return [
        Checker(
            str(progress.pid), progress.targets, progress.in_flight, round(1000 * progress.late_p99_s, 1),
            progress.checks, round(left_s, 1) if left_s > 0 else None,
        )
    ]


@dataclass(frozen=True, slots=True)
class Drained:
    """A drain that is on. `ends_s`: in how many seconds it ends by itself, `deadline_s`: open connections."""

    endpoint: str
    pool: str
    since_s: int
    ends_s: int | None
    deadline_s: int | None
    by: str
    reason: str


def drained(instance_dir: Path) -> list[Drained]:
    """The drains that are on, the oldest first. Raises FilesError."""
    now_s = time.time()

    def left(time_s: float | None) -> int | None:
        return None if time_s is None else max(0, round(time_s - now_s))

    return [
        Drained(
            place_of(drain.address, drain.port or 0), drain.pool or "all", max(0, int(now_s - drain.began_s)),
            left(drain.until_s), left(drain.deadline_s), drain.by, drain.reason,
        )
        for drain in sorted(drains.read(instance_dir / drains.FILE), key=lambda drain: drain.began_s)
        if drain.is_on(now_s)
    ]  # fmt: skip


def _word(state: State) -> str:
    if state.health is Health.UNKNOWN:
        return NEVER
    if state.is_held:
        return "held up"
    return state.health.name.lower()




def _place(address: str, port: int | None) -> str:
    return place_of(ip_address(address), port or 0)
