# SPDX-License-Identifier: Apache-2.0
"""Who of a pool gets new connections, and with which weight. Pure.

The best there are serve: those that are up, and those of which nothing is known yet, unless somebody was up already
when they came: so a new server has to prove itself, while a restart of everything changes nothing. If these are fewer
than `minHealthy`, newcomers are taken as well; and if even then they are too few, `whenNoneHealthy` says what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from reconciler.health.state import Health, State
from reconciler.model import EndpointState, Pool, WhenNoneHealthy

SLOW_STEPS = 4


class Why(StrEnum):
    """Why an endpoint has the weight that it has."""

    SERVES = "serves"
    CONFIGURED = "not asked to serve"            # draining, disabled, or of weight 0
    DOWN = "down"
    UNPROVED = "never checked"
    RESTING = "its agent asks for no connections"
    SLOW_START = "back again: slow start"
    SHARE = "its agent asks for less"
    LAST_RESORT = "nobody is healthy: all serve"
    DROPPED = "nobody is healthy: nobody serves"
    FALLBACK = "nobody is healthy: the fallback serves"


class Condition(StrEnum):
    """What is wrong with a pool; loudly said, since it serves in a way that nobody wants."""

    ALL_UNHEALTHY = "AllUnhealthy"      # nobody is healthy
    BELOW_MINIMUM = "BelowMinHealthy"   # too few are


@dataclass(frozen=True, slots=True)
class Members:
    """`weights` and `reasons` are in the order of the pool's endpoints; their ratios are what counts. `healthy` are
    how many serve of themselves. `fallback` is the pool that serves instead. `changes_s` is when somebody's slow start
    goes on; None: not by itself."""

    weights: tuple[int, ...]
    reasons: tuple[Why, ...]
    healthy: int
    condition: Condition | None = None
    fallback: str | None = None
    changes_s: float | None = None


def members(pool: Pool, states: Sequence[Sequence[State]], now_s: float) -> Members:
    """`states` has for each endpoint of the pool those of its targets; none if it isn't checked."""
    wanted = [endpoint.state is EndpointState.ACTIVE and endpoint.weight > 0 for endpoint in pool.endpoints]
    merged = [_worst(of_targets) for of_targets in states]
    first_up_s = min(
        (state.since_s for state, asked in zip(merged, wanted, strict=True) if asked and state.health is Health.UP),
        default=float("inf"),
    )
    reasons = [
        _reason(state, first_up_s) if asked else Why.CONFIGURED for state, asked in zip(merged, wanted, strict=True)
    ]
    healthy = sum(reason is Why.SERVES for reason in reasons)
    if healthy < pool.min_healthy:
        reasons = [Why.SERVES if reason is Why.UNPROVED else reason for reason in reasons]
        healthy = sum(reason is Why.SERVES for reason in reasons)
    if healthy < pool.min_healthy and any(wanted):
        return _without_healthy(pool, wanted, healthy)
    weights, changes_s = [], None
    for place, (endpoint, state) in enumerate(zip(pool.endpoints, merged, strict=True)):
        if reasons[place] is not Why.SERVES:
            weights.append(0)
            continue
        step, until_s = _slow_start(pool, state, now_s)
        if until_s is not None:
            reasons[place] = Why.SLOW_START
            changes_s = until_s if changes_s is None else min(changes_s, until_s)
        elif state.shown_share < 100:
            reasons[place] = Why.SHARE
        weights.append(endpoint.weight * max(1, state.shown_share * step // 100))
    if not changes_s and Why.SHARE not in reasons:
        weights = [weight // 100 for weight in weights]
    return Members(tuple(weights), tuple(reasons), healthy, changes_s=changes_s)


def _worst(states: Sequence[State]) -> State:
    """An endpoint serves if all of its targets are up; one without targets is up."""
    if not states:
        return _UNCHECKED
    if len(states) == 1:
        return states[0]
    worst = max(states, key=lambda state: (_BADNESS[state.health], state.since_s))
    return worst._replace(shown_share=min(state.shown_share for state in states))


def _reason(state: State, first_up_s: float) -> Why:
    if state.health is Health.DOWN:
        return Why.DOWN
    if state.health is Health.UNKNOWN and first_up_s < state.since_s:
        return Why.UNPROVED
    return Why.SERVES if state.shown_share else Why.RESTING


def _without_healthy(pool: Pool, wanted: Sequence[bool], healthy: int) -> Members:
    condition = Condition.BELOW_MINIMUM if healthy else Condition.ALL_UNHEALTHY
    why = _LAST[pool.when_none_healthy]
    weights = tuple(
        endpoint.weight if asked and why is Why.LAST_RESORT else 0
        for endpoint, asked in zip(pool.endpoints, wanted, strict=True)
    )
    fallback = pool.fallback_pool if why is Why.FALLBACK else None
    return Members(weights, tuple(why if asked else Why.CONFIGURED for asked in wanted), healthy, condition, fallback)


def _slow_start(pool: Pool, state: State, now_s: float) -> tuple[int, float | None]:
    """The percentage that one who is back gets, and until when."""
    if not state.has_returned or not pool.slow_start_s:
        return 100, None
    step_s = pool.slow_start_s / SLOW_STEPS
    step = max(0, int((now_s - state.since_s) / step_s))
    if step >= SLOW_STEPS:
        return 100, None
    return 100 * (step + 1) // SLOW_STEPS, state.since_s + (step + 1) * step_s


_BADNESS = {Health.UP: 0, Health.UNKNOWN: 1, Health.DOWN: 2}
_UNCHECKED = State(Health.UP, since_s=float("-inf"))
_LAST = {
    WhenNoneHealthy.ALL: Why.LAST_RESORT, WhenNoneHealthy.DROP: Why.DROPPED, WhenNoneHealthy.FALLBACK: Why.FALLBACK,
}  # fmt: skip
