# SPDX-License-Identifier: Apache-2.0
"""What a pool is to be, and why: the manifests' pool, what is known of its endpoints, and who was drained. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from reconciler.health.pool import Members, Why, members
from reconciler.health.state import Health, State
from reconciler.model import DeadEndpoint, Endpoint, EndpointState, OnUnhealthy, Pool, place_of
from reconciler.resource import Cause, Reason
from reconciler.wish.drains import Drain
from reconciler.wish.drains import changes_s as drains_change_s


@dataclass(frozen=True, slots=True)
class Moment:
    """One time by two clocks, in seconds: the monotonic one, and since 1970."""

    now_s: float
    epoch_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """`pool` is as the manifests say, `wanted` as it is to be: the same object if nothing speaks against that. In the
    order of the pool's endpoints: the states of their targets, and their latest drain, which may be over. `changes_s`
    is when it has to be judged again though nobody has told anything; infinite: never. `ends`: connections of an
    endpoint that is down end."""

    pool: Pool
    wanted: Pool
    members: Members
    states: tuple[tuple[State, ...], ...]
    drains: tuple[Drain | None, ...]
    changes_s: float = inf
    ends: bool = False


def judged(
    pool: Pool, states: Sequence[tuple[State, ...]], drains: Sequence[Drain | None], at: Moment,
    fallback: Judged | None = None, *, only_datagrams: bool = False, sends_on: bool = False,
) -> Judged:  # fmt: skip
    """The judgement of a pool. The endpoints of its fallback are part of what is wanted also while they are not
    needed, with no share of new connections: so all that they need is there when their time comes.

    `only_datagrams`: nobody but services of UDP uses the pool. A client of UDP doesn't notice that its endpoint is
    dead, and would send there for ever if that were a connection worth keeping. `sends_on`: a service of UDP or SCTP
    with mode nat is among those that use it; the program then tells datagrams, and INITs, from what goes on.
    """
    ends = only_datagrams or pool.on_unhealthy is OnUnhealthy.RESET
    asked = tuple([_drained(endpoint, drain, at) for endpoint, drain in zip(pool.endpoints, drains, strict=True)])
    found = members(pool if asked == pool.endpoints else replace(pool, endpoints=asked), states, at.now_s)
    serving = [
        _dead(e, ends=ends, sends_on=sends_on) if _is_dead(e, why, of_endpoint) else _weighed(e, weight)
        for e, weight, why, of_endpoint in zip(asked, found.weights, found.reasons, states, strict=True)
    ]
    if fallback is not None:
        serving = _with_fallback(serving, fallback, serves=found.fallback is not None)
    same = len(serving) == len(pool.endpoints) and all(a is b for a, b in zip(serving, pool.endpoints, strict=True))
    wanted = pool if same else replace(pool, endpoints=tuple(serving))
    times = [drains_change_s(filter(None, drains), at.epoch_s) + at.now_s - at.epoch_s]
    times += [] if found.changes_s is None else [found.changes_s]
    times += [] if fallback is None else [fallback.changes_s]
    return Judged(pool, wanted, found, tuple(states), tuple(drains), min(times), ends)


@dataclass(frozen=True, slots=True)
class Heeded:
    """What the node is already as it should be for: who came back by then is no cause of later changes. `judged` are
    pools by their names, as they were judged at `epoch_s`; of others, and of an agent that starts, nobody knows more
    than that the node was changed at `since_s`, by the monotonic clock."""

    since_s: float = inf
    judged: Mapping[str, Judged] = field(default_factory=dict)
    epoch_s: float = 0.0

    def returns(self, pool: str) -> dict[str, _Return]:
        """Since when the endpoints of a pool are as they are, by their ids; and their drains that are over."""
        of = self.judged.get(pool)
        return {} if of is None else {
            place_of(endpoint.address, endpoint.port or 0):
                (_newest_s(states), None if drain is None or drain.is_on(self.epoch_s) else drain)
            for endpoint, states, drain in zip(of.pool.endpoints, of.states, of.drains, strict=True)
        }  # fmt: skip


_Return = tuple[float, Drain | None]


def _newest_s(states: Sequence[State]) -> float:
    return max((state.since_s for state in states), default=-inf)


def causes(of: Judged, heeded: Heeded, at: Moment) -> dict[str, Cause]:
    """Why endpoints get connections, or none, other than by the manifests alone; by the ids of endpoints."""
    found: dict[str, Cause] = {}
    returns = heeded.returns(of.pool.name)
    for endpoint, why, states, drain in zip(of.pool.endpoints, of.members.reasons, of.states, of.drains, strict=True):
        name = place_of(endpoint.address, endpoint.port or 0)
        cause = _cause(name, of.pool, why, states, drain, at, ends=of.ends)
        if cause is None and why is Why.SERVES:
            cause = _return(name, states, drain, returns.get(name), heeded.since_s, at)
        if cause is not None:
            found[name] = cause
    if of.members.condition:
        for endpoint in of.wanted.endpoints:
            name = place_of(endpoint.address, endpoint.port or 0)
            found.setdefault(name, Cause(Reason.HEALTH, f"{Why.FALLBACK.value}: {name}"))
    return found


def words_of(pool: Pool, state: State) -> str:
    """The last error of a check, e.g. `tcp check: refused`."""
    return f"{pool.health_check.type.value} check: {state.error or 'no answer yet'}"


def _drained(endpoint: Endpoint, drain: Drain | None, at: Moment) -> Endpoint:
    if drain is None or not drain.is_on(at.epoch_s) or endpoint.state is EndpointState.DISABLED:
        return endpoint
    state = EndpointState.DISABLED if drain.ends(at.epoch_s) else EndpointState.DRAINING
    return endpoint if endpoint.state is state else replace(endpoint, state=state)


def _weighed(endpoint: Endpoint, weight: int) -> Endpoint:
    is_asked = endpoint.state is EndpointState.ACTIVE and endpoint.weight != weight
    return replace(endpoint, weight=weight) if is_asked else endpoint


def _is_dead(endpoint: Endpoint, why: Why, states: Sequence[State]) -> bool:
    """Whether checks found it dead; not if it serves all the same, as nobody of the pool is healthy."""
    if why is Why.LAST_RESORT or endpoint.state is EndpointState.DISABLED:
        return False
    return any(state.health is Health.DOWN for state in states)


def _dead(endpoint: Endpoint, *, ends: bool, sends_on: bool) -> Endpoint:
    state = EndpointState.DISABLED if ends else endpoint.state
    return DeadEndpoint(endpoint.address, endpoint.port, 0, state, endpoint.span, sends_on)


def _with_fallback(serving: Sequence[Endpoint], fallback: Judged, *, serves: bool) -> list[Endpoint]:
    others = {(e.address, e.port): e if serves else _weighed(e, 0) for e in fallback.wanted.endpoints}
    own = {(e.address, e.port) for e in serving}
    found = [others.get((e.address, e.port), e) if serves else e for e in serving]
    return found + [endpoint for key, endpoint in others.items() if key not in own]


def _cause(
    name: str, pool: Pool, why: Why, states: Sequence[State], drain: Drain | None, at: Moment, *, ends: bool,
) -> Cause | None:  # fmt: skip
    worst = next((state for state in states if state.health is Health.DOWN), None)
    if drain is not None and drain.is_on(at.epoch_s) and not (ends and worst):
        return Cause(Reason.DRAIN, f"{name} is drained" + _by(drain))
    if worst is not None and (why is Why.DOWN or (ends and why is not Why.LAST_RESORT)):
        return Cause(Reason.HEALTH, f"{name} is down: {words_of(pool, worst)}")
    return None if why in (Why.CONFIGURED, Why.SERVES) else Cause(Reason.HEALTH, f"{name}: {why.value}")


def _return(
    name: str, states: Sequence[State], drain: Drain | None, heeded: _Return | None, since_s: float, at: Moment
) -> Cause | None:
    """Who serves, and is a cause since it did not when the node was last as it should be."""
    is_up = bool(states) and all(state.health is Health.UP for state in states)
    if is_up and (_newest_s(states) > heeded[0] if heeded else _newest_s(states) >= since_s):
        is_back = any(state.has_returned for state in states)
        return Cause(Reason.HEALTH, f"{name} is up{' again' if is_back else ''}")
    if drain is None or drain.until_s is None:
        return None
    is_new = drain != heeded[1] if heeded else at.epoch_s - drain.until_s <= at.now_s - since_s
    return Cause(Reason.DRAIN, f"the drain of {name} is over") if is_new else None


def _by(drain: Drain) -> str:
    said = f" by {drain.by}" if drain.by else ""
    return f"{said}: {drain.reason}" if drain.reason else said
