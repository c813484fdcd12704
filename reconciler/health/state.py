# SPDX-License-Identifier: Apache-2.0
"""What the answers of a target mean: a pure function from a state and an outcome to the next state.

The first answer is believed, whichever it is; from then on `rise` or `fall` answers in a row are needed. A target that
goes down again within ten minutes has to be well for longer before it comes back, twice as long each time, up to five
minutes. A state belongs to a target, and its successor takes it over when somebody edits the check (`inherited`).

Times are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from reconciler.health.outcome import Outcome, Verdict
from reconciler.health.target import Target

FLAP_WINDOW_S = 600.0
MAX_PENANCE_S = 300.0
MIN_BASE_S = 3.0
MAX_FALLS = 8
LONG_DOWN_S = 60.0
SMOOTHING = 0.3
SHARE_STEP = 5.0


class Health(IntEnum):
    UNKNOWN = 0    # never checked; `since_s` is when it came
    UP = 1
    DOWN = 2


class State(NamedTuple):
    """`streak` counts the answers in a row, since `streak_since_s`, that contradict `health`. `falls` are the latest
    times at which it went down. `has_returned`: it is up again after it was down, so it starts slowly. `share` is the
    percentage of its weight that its agent asks for, smoothed, and `shown_share` the one that rings are built by.
    `error` is that of the last failure, also when it is up again. `is_held`: it would be down if the node didn't
    suspect itself."""

    health: Health = Health.UNKNOWN
    since_s: float = 0.0
    streak: int = 0
    streak_since_s: float = 0.0
    checked_s: float | None = None
    latency_s: float = 0.0
    error: str = ""
    falls: tuple[float, ...] = ()
    has_returned: bool = False
    share: float = 100.0
    shown_share: int = 100
    is_held: bool = False

    @property
    def is_undecided(self) -> bool:
        """Whether the next answers may change something: then they are asked for at a faster rate."""
        return self.health is Health.UNKNOWN or self.streak > 0


def new(now_s: float) -> State:
    """Of a target that comes."""
    return State(since_s=now_s)


def after(state: State, target: Target, outcome: Outcome, now_s: float, is_suspect: bool = False) -> State:
    """The state after an outcome. While the node suspects itself, nobody goes down."""
    if outcome.verdict is Verdict.NOT_CHECKED:
        return state._replace(error=outcome.error)
    is_well = outcome.verdict is Verdict.OK
    if is_well and outcome.share is not None:
        state = _with_share(state, outcome.share)
    seen = state._replace(
        checked_s=now_s, latency_s=outcome.latency_s, error=state.error if is_well else outcome.error, is_held=False,
    )  # fmt: skip
    if is_well == (state.health is Health.UP) and state.health is not Health.UNKNOWN:
        return seen._replace(streak=0, streak_since_s=0.0) if seen.streak else seen
    streak = state.streak + 1
    since_s = state.streak_since_s if state.streak else now_s
    undecided = seen._replace(streak=streak, streak_since_s=since_s)
    if is_well:
        return _risen(undecided, target, now_s)
    return _fallen(undecided, target, now_s, is_suspect)


def penance_s(state: State, rise_s: float, now_s: float) -> float:
    """How long a target that is down has to answer well before it counts as up, on top of `rise` answers, which take
    `rise_s` at its usual interval."""
    recent = sum(now_s - fall_s < FLAP_WINDOW_S for fall_s in state.falls)
    if recent < 2:
        return 0.0
    return min(MAX_PENANCE_S, max(MIN_BASE_S, rise_s) * float(2 ** (recent - 1)))


def returns_s(state: State, rise_s: float, now_s: float) -> float | None:
    """For how long a target that flaps has to go on answering well before it is up; None: it is not down, or it
    doesn't flap."""
    needed_s = penance_s(state, rise_s, now_s) if state.health is Health.DOWN else 0.0
    if not needed_s:
        return None
    return max(0.0, needed_s - (now_s - state.streak_since_s)) if state.streak else needed_s


def pace_s(state: State, target: Target, now_s: float) -> float:
    """The time from one check to the next."""
    if state.is_undecided:
        return target.fast_s
    if state.health is Health.DOWN and now_s - state.since_s >= LONG_DOWN_S:
        return target.slow_s
    return target.interval_s


def would_fall(state: State, target: Target, outcome: Outcome) -> bool:
    """Whether a target that isn't down goes down by this outcome, unless the node suspects itself."""
    if not outcome.verdict.is_failure or state.health is Health.DOWN:
        return False
    return state.health is Health.UNKNOWN or state.streak + 1 >= target.check.fall


def inherited(state: State) -> State:
    """The state of a target whose check was edited, for the target that takes its place: nothing changes until new
    answers prove it. Good answers to the old check don't count for the new one. Failures do: else somebody who edits
    again and again would keep a dead server in."""
    if state.health is Health.UP:
        return state._replace(is_held=False)
    return state._replace(streak=0, streak_since_s=0.0, is_held=False)


def inherited_of(others: Iterable[State]) -> State:
    """Of several predecessors the best one counts: an endpoint that serves goes on until new answers say otherwise."""
    return inherited(max(others, key=_standing))


def _standing(state: State) -> tuple[bool, bool, float]:
    return state.health is Health.UP, state.health is Health.DOWN, -state.since_s


def _risen(state: State, target: Target, now_s: float) -> State:
    if state.health is Health.UNKNOWN:
        return state._replace(health=Health.UP, since_s=now_s, streak=0, streak_since_s=0.0)
    is_enough = state.streak >= target.check.rise
    if not is_enough or now_s - state.streak_since_s < penance_s(state, target.rise_s, now_s):
        return state
    return state._replace(health=Health.UP, since_s=now_s, streak=0, streak_since_s=0.0, has_returned=True)


def _fallen(state: State, target: Target, now_s: float, is_suspect: bool) -> State:
    if state.health is Health.UP and state.streak < target.check.fall:
        return state
    if is_suspect:
        return state._replace(is_held=True)
    down = state._replace(health=Health.DOWN, since_s=now_s, streak=0, streak_since_s=0.0, has_returned=False)
    if state.health is Health.UNKNOWN:
        return down
    return down._replace(falls=(*state.falls, now_s)[-MAX_FALLS:])


def _with_share(state: State, asked: float) -> State:
    """The share follows its agent smoothly, but none is none at once. What is shown moves in steps that are worth a
    change of rings."""
    share = state.share + SMOOTHING * (asked - state.share)
    if state.checked_s is None or asked == 0 or abs(share - asked) < 1:
        share = asked
    is_worth_it = abs(share - state.shown_share) >= SHARE_STEP or share in (0, 100)
    return state._replace(share=share, shown_share=round(share) if is_worth_it else state.shown_share)
