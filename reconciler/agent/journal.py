# SPDX-License-Identifier: Apache-2.0
"""What an agent can tell at any time: its state, the conditions that hold now, its last changes and events.

The agent's own thread writes, those that answer questions read, and nothing here grows without a bound.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from typing import Any

from reconciler.agent.event import Event, What

MAX_EVENTS = 1000
MAX_CHANGES = 20
MAX_CONDITIONS = 200

FORMAT_VERSION = 1
"""Of the status in JSON; it changes only if readers must change."""

UNKNOWN, SYNCED, OUT_OF_SYNC = "Unknown", "Synced", "OutOfSync"
HEALTHY, PROGRESSING, DEGRADED = "Healthy", "Progressing", "Degraded"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which agent this is; it stays the same as long as the process."""

    pid: int
    version: str
    node: str
    """The name that --node gave; empty: the manifests say it, see `State`."""
    host: str
    instance: str
    source: str


@dataclass(frozen=True, slots=True)
class State:
    """How far the agent is. Revisions are digests of manifests, empty if there is none yet: the `attempted` one was
    read last, valid or not; the `applied` one is in force. `next_look_s` is the time until the whole node is looked at
    again, from when this was said."""

    sync: str = UNKNOWN
    health: str = PROGRESSING
    attempted: str = ""
    applied: str = ""
    resources: int = 0
    open: int = 0
    """How many resources are not as they should be."""
    paused: str = ""
    """By whom and why the node is left as it is; empty if it is not."""
    read_s: float | None = None
    """When the manifests were read last, by the monotonic clock."""
    next_look_s: float | None = None
    attempted_commit: str = ""
    """The commit that was tried last, whatever came of it; empty if the manifests are files."""
    applied_commit: str = ""
    node: str = ""
    """The name of the node in the manifests; empty until some were understood."""


@dataclass(slots=True)
class Edits:
    """How long edits took: from when the agent heard that files had changed until the last row was written that they
    asked for."""

    count: int = 0
    seconds: float = 0.0
    last_s: float | None = None


class Journal:
    """A listener of the report."""

    def __init__(self, identity: Identity | None = None) -> None:
        """Whoever doesn't know the agent's `identity` yet sets it before anybody asks."""
        self.identity = identity
        self._state = State()
        self._conditions: dict[tuple[str, str], Event] = {}
        self._changes: deque[Event] = deque(maxlen=MAX_CHANGES)
        self._events: deque[tuple[int, Event]] = deque(maxlen=MAX_EVENTS)
        self._count = 0
        self._counts: Counter[str] = Counter()
        self._edits = Edits()
        self._news = threading.Condition()
        self._status: dict[str, Any] | None = None

    def hear(self, event: Event) -> None:
        """Take down an event."""
        with self._news:
            self._status = None
            self._count += 1
            self._events.append((self._count, event))
            match event.what:
                case What.CHANGE | What.COMMAND:
                    self._changes.append(event)
                case What.APPLIED:
                    self._counts.update(event.facts["reasons"])
                case What.BEGINS:
                    self._state = replace(self._state, sync=OUT_OF_SYNC, health=PROGRESSING)
                case What.PROBLEM:
                    self._conditions.pop((event.about, ""), None)
                    self._add(event.about, "", event)
                case What.WARNING:
                    self._add(event.about, event.text, event)
                case What.RECOVERED:
                    self._conditions.pop((event.about, ""), None)
                case What.OVER:
                    self._conditions.pop((event.about, event.text), None)
            self._news.notify_all()

    def _add(self, about: str, text: str, event: Event) -> None:
        if len(self._conditions) < MAX_CONDITIONS:
            self._conditions[about, text] = event

    def publish(self, state: State) -> None:
        with self._news:
            self._status, self._state = None, state
            self._news.notify_all()

    def edited(self, took_s: float) -> None:
        """An edit is in force."""
        with self._news:
            edits = self._edits
            self._status = None
            self._edits = Edits(edits.count + 1, edits.seconds + took_s, took_s)

    def status(self) -> dict[str, Any]:
        """The status, as JSON takes it. The same object until there is news: not to be changed."""
        assert self.identity is not None
        with self._news:
            if self._status is not None:
                return self._status
            state = asdict(self._state)
            revision = {"attempted": state.pop("attempted"), "applied": state.pop("applied")}
            commit = {"attempted": state.pop("attempted_commit"), "applied": state.pop("applied_commit")}
            node = state.pop("node")
            self._status = {
                "format_version": FORMAT_VERSION,
                "agent": asdict(self.identity) | ({"node": node} if node else {}),
                "revision": revision,
                "commit": commit,
                **state,
                "conditions": [event.to_json() for event in self._conditions.values()],
                "counts": dict(self._counts),
                "edits": asdict(self._edits),
                "changes": [event.to_json() for event in self._changes],
            }
            return self._status

    def since(self, number: int, timeout_s: float) -> tuple[int, list[Event]]:
        """The events after the one of this number that are still known, and the number of the last one; waits for one
        if there is none."""
        with self._news:
            self._news.wait_for(lambda: self._count > number, timeout_s)
            return self._count, [event for count, event in self._events if count > number]

    @property
    def count(self) -> int:
        """The number of the last event."""
        with self._news:
            return self._count
