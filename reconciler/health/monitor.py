# SPDX-License-Identifier: Apache-2.0
"""Checks all that is wanted, and knows the state of each target.

The set of targets may change at any time: what stays is not disturbed. A target that takes the place of another for
the same use, because its check was edited, takes over its state."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Protocol

from reconciler.health import state as states
from reconciler.health import suspicion as suspicions
from reconciler.health.outcome import Outcome, Verdict
from reconciler.health.schedule import Schedule
from reconciler.health.state import Health, State
from reconciler.health.suspicion import MIN_HOSTS, MIN_HOSTS_CUT_OFF, Suspicion
from reconciler.health.target import Target, Use, Wanted
from reconciler.health.way import DIRECT, Way
from reconciler.model import Address

BATCH_S = 0.005
"""Checks begin in batches, this far apart: one by one they cost half as much again."""
BATCH = 256
"""The most that begin before answers are heard again."""


class Checker(Protocol):
    """What runs checks: a Prober."""

    def start(self, target: Target, way: Way = ...) -> None: ...

    def poll(self, timeout_s: float = ...) -> list[tuple[Target, Outcome]]: ...


@dataclass(frozen=True, slots=True)
class Transition:
    """A target whose answers changed what its pools should do."""

    target: Target
    before: State
    after: State


class Monitor:
    """`known` are the states that an earlier process left, by target; `way_of` says how a target is reached, and
    `lack_of_way` what of the node keeps packets from it; empty: nothing."""

    def __init__(
        self,
        checker: Checker,
        schedule: Schedule,
        known: Mapping[Target, State] | None = None,
        way_of: Callable[[Target], Way] = lambda target: DIRECT,
        clock: Callable[[], float] = time.monotonic,
        lack_of_way: Callable[[Target], str] = lambda target: "",
    ) -> None:
        self.max_in_flight = 1
        self.suspicion: Suspicion | None = None
        self._batch_s = float("-inf")
        self._checker = checker
        self._schedule = schedule
        self._known = dict(known or {})
        self._way_of = way_of
        self._lack_of_way = lack_of_way
        self._clock = clock
        self._wanted: dict[Use, Target] = {}
        self._users: dict[Target, int] = {}
        self._states: dict[Target, State] = {}
        self._latest: dict[Address, tuple[float, bool]] = {}
        self._learned: list[Target] = []
        self._surprises: list[Transition] = []

    @property
    def states(self) -> Mapping[Target, State]:
        """Of all targets that are wanted."""
        return self._states

    def is_suspect(self) -> bool:
        """Whether the node suspects itself, so that nobody goes down."""
        return self.suspicion is not None and self.suspicion.holds(self._clock())

    def want(self, wanted: Wanted, max_in_flight: int) -> None:
        """Check these targets from now on, and no others."""
        self.max_in_flight = max_in_flight
        changes: dict[Use, Target | None] = {use: None for use in self._wanted if use not in wanted}
        changes |= {use: target for use, target in wanted.items() if self._wanted.get(use) != target}
        self.edit(changes)

    def edit(self, changes: Mapping[Use, Target | None], known: Mapping[Target, State] | None = None) -> None:
        """Give uses another target, or none. It takes as long as there are changes, however many targets there are.
        `known` are states of targets that come, as who asks knows them. What was learned here of the targets whose
        place they take is newer, and `run` tells of it where it makes a difference."""
        now_s = self._clock()
        asserted = known or {}
        before: dict[Use, Target] = {}
        for use, target in changes.items():
            if (former := self._wanted.pop(use, None)) is not None:
                before[use] = former
                self._users[former] -= 1
            if target is not None:
                self._wanted[use] = target
                self._users[target] = self._users.get(target, 0) + 1
        asked = {use: target for use, target in changes.items() if target is not None}
        coming = [target for target in dict.fromkeys(asked.values()) if target not in self._states]
        gone = [target for target in dict.fromkeys(before.values()) if not self._users[target]]
        found = {t: state for t in coming if (state := asserted.get(t) or self._known.pop(t, None)) is not None}
        for target, others in _predecessors(asked, before, set(coming)).items():
            heirlooms = [self._states[other] for other in others if other in self._states]
            if heirlooms and (target not in found or any(s.health is not Health.UNKNOWN for s in heirlooms)):
                found[target] = states.inherited_of(heirlooms)
        for target in gone:
            del self._users[target]
            del self._states[target]
            self._latest.pop(target.address, None)  # Another target of this host brings it back.
        for target in coming:
            self._states[target] = found.get(target) or states.new(now_s)
        self._schedule.remove(gone)
        calm = {target for target in coming if target in found and not self._states[target].is_undecided}
        self._schedule.add((target for target in coming if target in calm), now_s, is_known=True)
        self._schedule.add((target for target in coming if target not in calm), now_s)
        for target, told in asserted.items():
            state = self._states.get(target)
            if state is not None and (told.health, told.shown_share) != (state.health, state.shown_share):
                self._surprises.append(Transition(target, told, state))

    def take_learned(self) -> list[Target]:
        """The targets that something was learned of since this was last asked."""
        learned, self._learned = self._learned, []
        return learned

    def run(self, timeout_s: float) -> list[Transition]:
        """Begin what is due, wait for answers for `timeout_s` at most, and say what they changed."""
        now_s = self._clock()
        if now_s >= self._batch_s:
            batch = self._schedule.due(now_s, min(BATCH, self.max_in_flight - self._schedule.in_flight))
            for target in batch:
                self._checker.start(target, self._way_of(target))
            if len(batch) < BATCH:
                self._batch_s = now_s + BATCH_S
        next_s = self._schedule.next_s()
        if next_s is not None and self._schedule.in_flight < self.max_in_flight:
            timeout_s = min(timeout_s, max(0.0, max(next_s, self._batch_s) - now_s))
        results = self._checker.poll(timeout_s)
        now_s = self._clock()
        changed, self._surprises = self._surprises, []
        for target, outcome in results:
            if transition := self._learn(target, outcome, now_s):
                changed.append(transition)
        return changed

    def hurry(self, servers: Container[Address]) -> None:
        """Check these at once, unless they are down: somebody has seen them fail."""
        for target, state in self._states.items():
            if target.address in servers and state.health is not Health.DOWN:
                self._schedule.hurry(target, self._clock())

    def next_check_s(self, target: Target) -> float | None:
        """When a target is checked next; None while it is being checked."""
        return self._schedule.due_s(target)

    def _learn(self, target: Target, outcome: Outcome, now_s: float) -> Transition | None:
        before = self._states.get(target)
        if before is None:  # nobody wants it any more
            self._schedule.done(target, now_s, target.interval_s, False)
            return None
        if before.health is not Health.DOWN and outcome.verdict is not Verdict.NOT_CHECKED:
            self._latest.pop(target.address, None)
            self._latest[target.address] = (now_s, outcome.verdict is Verdict.UNREACHED)
        is_held = states.would_fall(before, target, outcome) and self._is_suspicious(before, target, outcome, now_s)
        after = self._states[target] = states.after(before, target, outcome, now_s, is_held)
        self._learned.append(target)
        is_urgent = after.is_undecided or after.health is Health.DOWN
        self._schedule.done(target, now_s, states.pace_s(after, target, now_s), is_urgent)
        if (before.health, before.shown_share) == (after.health, after.shown_share):
            return None
        return Transition(target, before, after)

    def _is_suspicious(self, state: State, target: Target, outcome: Outcome, now_s: float) -> bool:
        """Whether this one is not let down. What refuses or answers wrongly is surely there, and surely not well."""
        if outcome.verdict is not Verdict.UNREACHED:
            return False
        since_s = state.since_s if state.health is Health.UNKNOWN else state.streak_since_s if state.streak else now_s
        episode = self.suspicion
        is_on = episode is not None and (episode.holds(now_s) or now_s - episode.seen_s < target.interval_s)
        why = episode.why if episode is not None and is_on else self._lack_of_way(target)
        enough = MIN_HOSTS_CUT_OFF if why else MIN_HOSTS
        is_suspect = suspicions.looks_suspect(reversed(self._latest.values()), since_s, now_s, enough)
        self.suspicion = suspicions.after(self.suspicion, is_suspect, now_s, target.interval_s, why)
        return self.suspicion is not None and self.suspicion.holds(now_s)


def _predecessors(wanted: Wanted, before: Wanted, coming: set[Target]) -> dict[Target, list[Target]]:
    """For each new target, those that its uses had before."""
    found: dict[Target, list[Target]] = {}
    for use, target in wanted.items():
        if target in coming and (other := before.get(use)) is not None:
            found.setdefault(target, []).append(other)
    return found
