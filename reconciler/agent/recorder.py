# SPDX-License-Identifier: Apache-2.0
"""Writes down in the history what an agent has applied. It hears the agent's events, and writes after a round: no
change waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler.agent.event import Event, What
from reconciler.agent.loop import NODE, Agent
from reconciler.errors import LbctlError
from reconciler.history import APPLIED, FAILED, MAX_LINES, PARTLY, Counts, Entry, History, Manifests

WHO = "agent"
HISTORY = "history"


@dataclass(slots=True)
class _Round:
    """What is known about the changes of a round."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    problem: str = ""


class Recorder:
    """A listener of the report. `env` is the environment of the manifests."""

    def __init__(self, history: History, env: str | None) -> None:
        self._history = history
        self._env = env
        self._round: _Round | None = None
        self._recorded: str | None = None

    def hear(self, event: Event) -> None:
        if event.what is What.BEGINS:
            self._round = _Round()
        if self._round is None:
            return
        if event.what is What.CHANGE and len(self._round.lines) < MAX_LINES:
            self._round.lines.append(event.text)
        elif event.what is What.APPLIED:
            self._round.counts = {name: int(event.facts[name]) for name in Counts._fields}
        elif event.what is What.PROBLEM and event.about == NODE:
            self._round.problem = event.text

    def record(self, agent: Agent) -> None:
        """Write down the round that is over, if it changed the node or put another revision in force."""
        done, self._round = self._round, None
        revision = agent.upkeep.revision
        try:
            if self._recorded is None:
                self._recorded = self._history.current() or ""
            is_new = bool(revision) and revision != self._recorded
            if not is_new and (done is None or not (done.counts or done.problem)):
                return
            entry = self._entry(done or _Round(), revision, agent.commits.get(revision, ""))
            self._history.add(entry, self._manifests(agent) if is_new else None)
            self._recorded = revision
        except LbctlError as error:
            agent.report.problem(
                HISTORY, str(error), "what is applied is not written down, and nothing else depends on it"
            )  # fmt: skip
        else:
            agent.report.recovered(HISTORY)

    def in_force(self, agent: Agent) -> str | None:
        """The revision that somebody else has put in force while the agent leaves the node as it is; None: nobody
        has, or nobody knows."""
        if not agent.held_by:
            return None
        try:
            return self._history.current()
        except LbctlError:
            return None

    def _entry(self, done: _Round, revision: str, commit: str) -> Entry:
        counts = Counts(*(done.counts.get(name, 0) for name in Counts._fields))
        result = APPLIED if not done.problem else PARTLY if any(counts) else FAILED
        return Entry(revision, WHO, counts, result, done.problem, done.lines, commit=commit)

    def _manifests(self, agent: Agent) -> Manifests | None:
        return Manifests(agent.texts, self._env, agent.node) if agent.seen == agent.upkeep.revision else None
