# SPDX-License-Identifier: Apache-2.0
"""What the agent knows of endpoints: it learns what checks found and what people drained, and tells what has changed
in words."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from reconciler import private, safe
from reconciler.agent.checks import UNCHANGED, Checks
from reconciler.agent.report import Report
from reconciler.errors import FilesError
from reconciler.health.state import Health, State
from reconciler.model import Endpoint, Fleet, Pool, Role, place_of
from reconciler.readings.draining import write_nodes
from reconciler.readings.health import HISTORY, MAX_HISTORY_BYTES
from reconciler.reconcile import RECORD, known_wish
from reconciler.view import NodeView
from reconciler.wish import announcing as announcing_
from reconciler.wish.announcing import Stored
from reconciler.wish.drains import FILE, Drain, damage
from reconciler.wish.judged import words_of
from reconciler.wish.known import changed_s
from reconciler.wish.wish import Wish

CHECKS = "checks"


class Endpoints:
    """Of one instance. `ring` is called from other threads when something has come. Raises FilesError."""

    def __init__(
        self, instance_dir: Path, report: Report, clock: Callable[[], float], ring: Callable[[], None]
    ) -> None:
        self._directory, self._report, self._clock = instance_dir, report, clock
        self.wish: Wish = known_wish(instance_dir)
        self._checks = Checks(instance_dir, ring)
        self._conditions: dict[str, str] = {}
        self._drained: set[Drain] = set()
        self._spoken: tuple[str, ...] = ()
        self._written = Stored(self.wish.announcing.conditions)
        self._is_pending = self._is_suspect = False

    def start(self) -> None:
        if trouble := damage(self._directory / FILE):
            self._report.alarm(trouble)
        self._checks.start()

    def stop(self) -> None:
        self._checks.stop()

    @property
    def changes_s(self) -> float:
        """When something changes by itself."""
        return self.wish.changes_s

    def have_changed(self) -> bool:
        """Whether the node may have to be other than it was last asked to be."""
        self._learn()
        return self._is_pending or self._clock() >= self.wish.changes_s

    def wanted(self, view: NodeView) -> NodeView:
        """The view as the node is to be by now."""
        self._learn()
        found = self.wish.of(view)
        self._is_pending = False
        self._tell_drains()
        self._tell_conditions()
        self._tell_announcing()
        return found

    def check(self) -> None:
        """From now on, check what the last view asks for."""
        try:
            self._checks.want(self.wish)
        except FilesError as error:
            self._report.problem(CHECKS, str(error), "a new agent will not know what was checked")
        else:
            self._report.recovered(CHECKS)

    def were_heeded(self) -> None:
        """The node is as it was asked to be: who came back until now is no cause of later changes."""
        self.wish.were_heeded()

    def write_down(self) -> None:
        """Write down what has failed lately of what VIPs need, for others and for the next agent."""
        if (stored := self.wish.announcing.stored) != self._written:
            with contextlib.suppress(FilesError):  # then a new agent damps flapping anew
                announcing_.write(self._directory / announcing_.FILE, stored)
            self._written = stored

    def heed_others(self) -> None:
        """Others may have changed the node while it was left alone: what they knew is no cause of later changes."""
        self.wish.was_changed_at(changed_s(self._directory / RECORD))

    def _learn(self) -> None:
        found = self._checks.take()
        if found is None:
            return
        for trouble in found.troubles:
            self._report.say(f"{self._report.style.bad(CHECKS)}: {trouble}")
        if found.suspect_until_s is not None:
            self._tell_suspicion(found.suspect_until_s, found.suspect_why)
            self.wish.announcing.suspect_until_s = found.suspect_until_s
            self._is_pending = True
        if found.states:
            self._tell_states(found.states)
            self.wish.learn(found.states)
            self._is_pending = True
        if found.leaving is not UNCHANGED:
            self.wish.announcing.leaving = found.leaving
            self._is_pending = True
        if found.drains is not None:
            self.wish.drain(found.drains)
            self._is_pending = True

    def _tell_states(self, found: dict[bytes, State]) -> None:
        before = self.wish.states
        news = {
            digest: state for digest, state in found.items() if digest in before
            and (before[digest].health, before[digest].shown_share) != (state.health, state.shown_share)
        }  # fmt: skip
        uses = list(self.wish.uses_of(news))
        if uses:
            for pool, endpoint, digest in uses[: safe.SHOWN]:
                self._tell_state(pool, endpoint, before[digest], news[digest])
            if (left := len(uses) - safe.SHOWN) > 0:
                self._report.say(f"and {left:,} more endpoints went up, down, or ask for another share")
            self._write_history([(pool, endpoint, news[digest]) for pool, endpoint, digest in uses])

    def _tell_state(self, pool: Pool, endpoint: Endpoint, before: State, state: State) -> None:
        about = f"endpoint {place_of(endpoint.address, endpoint.port or 0)}"
        text, style, cause = safe.line(f"{about} of pool {pool.name}"), self._report.style, ""
        if before.health is state.health:
            text += f": its agent asks for {state.shown_share} % of its share"
        elif state.health is Health.DOWN:
            cause = safe.line(words_of(pool, state))
            text += f" is {style.bad('down')}: {cause}"
        else:
            text += f" is {style.good('up')}"
        self._report.say(text, about, pool=pool.name, state=state.health.name.lower(), cause=cause)

    def _write_history(self, changes: Iterable[tuple[Pool, Endpoint, State]]) -> None:
        """For `get health --history`. Who can't write it loses nothing else."""
        offset_s = time.time() - self._clock()
        lines = b"".join(
            json.dumps({
                "at_s": round(state.since_s + offset_s, 3), "endpoint": place_of(endpoint.address, endpoint.port or 0),
                "pool": pool.name, "state": state.health.name.lower(), "error": state.error,
            }).encode() + b"\n"
            for pool, endpoint, state in changes
        )  # fmt: skip
        path = self._directory / HISTORY
        with contextlib.suppress(FilesError):
            if private.append(path, lines) > MAX_HISTORY_BYTES:
                rest = (private.read(path) or b"")[-MAX_HISTORY_BYTES // 2 :]
                private.write(path, rest[rest.find(b"\n") + 1 :])

    def _tell_drains(self) -> None:
        """Tell of drains that began or ended, also of those that ended by themselves."""
        now_s = time.time()
        drained = {drain for drain in self.wish.drains if drain.is_on(now_s)}
        before, self._drained = self._drained, drained
        for word, some in (("DrainStarted", drained - before), ("DrainEnded", before - drained)):
            for drain in sorted(some, key=str):
                about = f"endpoint {place_of(drain.address, drain.port or 0)}"
                self._report.say(f"{word}: {drain}", about, pool=drain.pool or "", cause=safe.line(drain.reason))

    def note_nodes(self, fleet: Fleet) -> None:
        """Write down which Nodes endpoints are, so that people can drain them by name."""
        nodes = {node.name: node.endpoint_addresses for node in fleet.nodes if node.role is Role.ENDPOINT}
        with contextlib.suppress(FilesError):  # then they can't
            write_nodes(self._directory, nodes)

    def _tell_conditions(self) -> None:
        """Tell of pools that serve in a way that nobody wants: when that begins, and when it is over."""
        now = {name: found.members.condition for name, found in self.wish.judgements.items()}
        for name, condition in now.items():
            if condition and self._conditions.get(name) != condition:
                found = self.wish.judgements[name].members
                why = next((reason.value for reason in found.reasons if "healthy" in reason.value), "")
                text = safe.line(f"{condition.value}: pool {name}, {found.healthy} healthy; {why}")
                self._report.alarm(text, f"pool {name}")
            elif not condition and name in self._conditions:
                self._report.say(safe.line(f"pool {name} has enough healthy endpoints again"), f"pool {name}")
        self._conditions = {name: condition.value for name, condition in now.items() if condition}

    def _tell_announcing(self) -> None:
        """Tell what speaks against VIPs, and when that is over."""
        now = {(t.form.value, *t.why) for t in self.wish.announcing.tellings.values()}
        spoken = tuple(sorted(safe.line(f"VIPs are {form}: {'; '.join(why)}") for form, *why in now))
        if spoken != self._spoken:
            self._report.say(safe.some(spoken, "\n") if spoken else "VIPs are announced as usual again.")
            self._spoken = spoken

    def _tell_suspicion(self, until_s: float, why: str) -> None:
        if until_s and not self._is_suspect:
            text = "CheckerSuspect: nearly all endpoints fell silent at once, so this node may be the culprit"
            text += f" ({safe.line(why)})" if why else ""
            self._report.alarm(f"{text}; none goes down for {max(0.0, until_s - self._clock()):.1f} s")
        elif not until_s and self._is_suspect:
            self._report.say("This node does not suspect itself any more.")
        self._is_suspect = bool(until_s)
