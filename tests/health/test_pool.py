# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.dataplane.ring import hash_ring
from reconciler.health.pool import Condition, Why, members
from reconciler.health.state import Health, State
from reconciler.model import Endpoint, EndpointState, Pool, WhenNoneHealthy

NOW = 1000.0
_STATES = (EndpointState.ACTIVE, EndpointState.DRAINING)
UP, DOWN, UNKNOWN = (State(health, since_s=500.0) for health in (Health.UP, Health.DOWN, Health.UNKNOWN))
NEWCOMER = UNKNOWN._replace(since_s=900.0)
BACK = UP._replace(since_s=990.0, has_returned=True)


def pool(*weights, **more):
    """A negative weight is that of one which drains."""
    endpoints = tuple(
        Endpoint(ip_address(f"10.2.0.{i}"), 80, abs(weight), _STATES[weight < 0])
        for i, weight in enumerate(weights)
    )
    return Pool("web", endpoints, **more)


def found(states, *weights, now_s=NOW, **more):
    of_targets = [(state,) if isinstance(state, State) else state for state in states]
    return members(pool(*(weights or [1] * len(states)), **more), of_targets, now_s)


@pytest.mark.parametrize(("states", "weights"), [
    ((UP, UP), (1, 1)), ((UP, DOWN), (1, 0)), ((), ()), (((), ()), (1, 1)),  # not checked at all
    ((UNKNOWN, UNKNOWN), (1, 1)),         # at the start everybody serves
    ((UNKNOWN, DOWN), (1, 0)),
    ((UP, UNKNOWN), (1, 1)),              # they came together: nothing is known, nothing changes
    ((UP, NEWCOMER), (1, 0)),             # a newcomer has to prove itself
    ((DOWN, NEWCOMER), (0, 1)),           # unless there is nobody better
    ((UP._replace(since_s=950.0), NEWCOMER), (1, 1)),
    (((UP, UP), (UP, DOWN), (UP, NEWCOMER)), (1, 0, 0)),  # an endpoint with several targets
])  # fmt: skip
def test_who_serves(states, weights):
    result = found(states)
    assert result.weights == weights
    assert result.condition is None
    assert result.healthy == sum(weights)


def test_weights_are_those_of_the_manifests():
    result = found((UP, UP, DOWN, UP, UP), 3, 1, 5, 0, -2)
    assert result.weights == (3, 1, 0, 0, 0)
    assert result.reasons == (Why.SERVES, Why.SERVES, Why.DOWN, Why.CONFIGURED, Why.CONFIGURED)


@pytest.mark.parametrize(("choice", "weights", "why", "fallback"), [
    (WhenNoneHealthy.ALL, (3, 1, 0), Why.LAST_RESORT, None), (WhenNoneHealthy.DROP, (0, 0, 0), Why.DROPPED, None),
    (WhenNoneHealthy.FALLBACK, (0, 0, 0), Why.FALLBACK, "sorry"),
])  # fmt: skip
def test_nobody_is_healthy(choice, weights, why, fallback):
    result = found((DOWN, DOWN, UP), 3, 1, -1, when_none_healthy=choice, fallback_pool="sorry")
    assert (result.weights, result.fallback, result.healthy) == (weights, fallback, 0)
    assert result.condition is Condition.ALL_UNHEALTHY
    assert result.reasons == (why, why, Why.CONFIGURED)


def test_too_few_are_as_good_as_none():
    assert found((UP, UP, DOWN), min_healthy=2).weights == (1, 1, 0)
    result = found((UP, DOWN, DOWN), min_healthy=2, when_none_healthy=WhenNoneHealthy.DROP)
    assert (result.weights, result.healthy, result.condition) == ((0, 0, 0), 1, Condition.BELOW_MINIMUM)
    assert found((UP, DOWN, NEWCOMER), min_healthy=2).weights == (1, 0, 1)


def test_a_pool_that_nobody_is_asked_to_serve_is_not_unhealthy():
    for result in (found((DOWN, DOWN), -1, 0), found(())):
        assert result.condition is None
        assert not any(result.weights)


def test_slow_start_goes_in_steps():
    def share(now_s):
        result = found((UP, BACK), 2, 2, now_s=now_s, slow_start_s=40.0)
        return result.weights[1] / result.weights[0], result.changes_s, result.reasons[1]

    assert share(990.0) == (0.25, 1000.0, Why.SLOW_START)
    assert share(999.9) == (0.25, 1000.0, Why.SLOW_START)
    assert share(1000.0) == (0.5, 1010.0, Why.SLOW_START)
    assert share(1019.0) == (0.75, 1020.0, Why.SLOW_START)
    assert share(1020.0) == (1.0, 1030.0, Why.SLOW_START)
    assert share(1030.0) == (1.0, None, Why.SERVES)


def test_nobody_starts_slowly_at_the_start_of_the_agent():
    assert found((BACK._replace(has_returned=False), UP), slow_start_s=40.0).weights == (1, 1)
    assert found((BACK, UP)).weights == (1, 1)


def test_shares_of_agents():
    result = found((UP._replace(shown_share=50), UP, UP._replace(shown_share=0)), 2, 3, 1)
    assert result.weights == (100, 300, 0)
    assert result.reasons == (Why.SHARE, Why.SERVES, Why.RESTING)
    assert found(((UP._replace(shown_share=30), UP._replace(shown_share=60)), (UP,))).weights == (30, 100)


def test_if_all_agents_ask_for_nothing_nobody_is_healthy():
    result = found((UP._replace(shown_share=0), UP._replace(shown_share=0)))
    assert (result.weights, result.condition) == ((1, 1), Condition.ALL_UNHEALTHY)


def test_rings_are_the_same_when_all_weights_have_the_same_factor():
    """So a slow start moves the slots of its endpoint only, as a change of its weight in the manifests would."""
    names = [f"10.2.0.{i}" for i in range(5)]
    plain, scaled = hash_ring(names, [1, 2, 3, 1, 4], 4096), hash_ring(names, [100, 200, 300, 100, 400], 4096)
    assert (plain == scaled).all()


states = st.builds(
    State, st.sampled_from(Health), since_s=st.floats(0, 1000), has_returned=st.booleans(),
    shown_share=st.integers(0, 100),
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(-3, 5), st.lists(states, max_size=3)), max_size=8), st.integers(1, 3),
       st.sampled_from(WhenNoneHealthy), st.none() | st.floats(1, 100))  # fmt: skip
def test_any_pool(parts, min_healthy, choice, slow_start_s):
    config = pool(*(weight for weight, _ in parts), min_healthy=min_healthy, when_none_healthy=choice,
                  fallback_pool="sorry", slow_start_s=slow_start_s)  # fmt: skip
    result = members(config, [of_targets for _, of_targets in parts], NOW)
    asked = [e.state is EndpointState.ACTIVE and e.weight > 0 for e in config.endpoints]
    assert len(result.weights) == len(result.reasons) == len(parts)
    for (_, of_targets), weight, why, is_asked in zip(parts, result.weights, result.reasons, asked, strict=True):
        assert weight == 0 or is_asked
        assert (why is Why.CONFIGURED) == (not is_asked)
        assert (weight > 0) == (why in (Why.SERVES, Why.SLOW_START, Why.SHARE, Why.LAST_RESORT))
        if weight and result.condition is None:
            assert all(state.health is not Health.DOWN and state.shown_share for state in of_targets)
        assert weight == 0 or result.condition is None or choice is WhenNoneHealthy.ALL
    served = sum(weight > 0 for weight in result.weights)
    if result.condition is None:
        assert served == result.healthy
        assert served >= min_healthy or not any(asked)
    else:
        assert result.healthy < min_healthy
        assert served == (sum(asked) if choice is WhenNoneHealthy.ALL else 0)
    if all(len(of_targets) == 0 for _, of_targets in parts) and sum(asked) >= min_healthy:
        assert [weight > 0 for weight in result.weights] == asked
        assert [weight for weight in result.weights if weight] == [
            endpoint.weight for endpoint, is_asked in zip(config.endpoints, asked, strict=True) if is_asked
        ]
    assert result.changes_s is None or NOW < result.changes_s <= NOW + (slow_start_s or 0)
