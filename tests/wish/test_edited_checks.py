# SPDX-License-Identifier: Apache-2.0
"""What is known of an endpoint outlives edits of its check, whatever else is edited with it: nobody who is dead gets a
connection by an edit, and nobody who is well loses one."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.health.state import Health, State
from reconciler.model import Endpoint, Mode, Pool, Through
from reconciler.wish.known import Known
from reconciler.wish.wish import Wish

from .test_wish import CHECK, DOWN, Clock, address, digests, down, pool, service, view, weights


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wish(clock):
    return Wish(Known(changed_s=clock.now_s), clock, clock)


def test_a_check_that_is_edited_back_brings_no_endpoint_back(wish, clock):
    """What its successor found is newer than what was known when it was edited."""
    lenient, strict = view(pool(count=2)), view(pool(count=2, health_check=replace(CHECK, fall=7)))
    wish.of(lenient)
    down(wish, 1, 2, state=State(Health.UP, clock.now_s))
    wish.of(strict)
    down(wish, 1)
    clock.now_s += 10
    assert weights(wish.of(lenient)) == {1: 0, 2: 1}
    down(wish, 1, state=State(Health.UP, clock.now_s))
    clock.now_s += 10
    assert weights(wish.of(strict)) == {1: 1, 2: 1}  # nor does it take out one that is well again


def test_one_port_more_and_an_edited_check_at_once_make_nobody_forget_who_is_dead(wish, clock):
    both = Pool("web", (Endpoint(address(1)), Endpoint(address(2))), health_check=CHECK)
    wish.of(view(both))
    down(wish, 2, state=State(Health.UP, clock.now_s))
    down(wish, 1)
    edited = view(replace(both, health_check=replace(CHECK, fall=7)), services=[replace(service(), ports=(80, 8080))])
    assert weights(wish.of(edited)) == {1: 0, 2: 1}


def test_what_a_check_finds_while_its_target_is_gone_for_a_moment_counts_when_it_is_back(wish, clock):
    wish.of(view(pool(count=2)))
    down(wish, 1, 2, state=State(Health.UP, clock.now_s))
    digest = digests(wish)[address(1)]
    wish.of(view(pool(count=0)))
    wish.learn({digest: DOWN})
    assert weights(wish.of(view(pool(count=2)))) == {1: 0, 2: 1}


def test_a_check_that_is_edited_back_while_its_endpoint_is_away_does_not_bring_it_back_either(wish, clock):
    def asked(count, fall):
        return view(pool(count=count, health_check=replace(CHECK, fall=fall)))

    wish.of(asked(2, 3))
    down(wish, 1, 2, state=State(Health.UP, clock.now_s))
    wish.of(asked(2, 2))
    down(wish, 2)
    for count, fall in ((1, 2), (1, 3), (2, 3)):
        clock.now_s += 5
        found = wish.of(asked(count, fall))
    assert weights(found) == {1: 1, 2: 0}


KEPT = tuple(Endpoint(address(number)) for number in range(1, 4))
VIPS = ip_address("20.20.20.1"), ip_address("20.20.20.2")


BY_VIP = replace(CHECK, through=Through.VIP)


def direct(**more):
    return replace(service(), mode=Mode.DSR_L2, **more)


@pytest.mark.parametrize(
    ("before", "then"),
    [
        ((direct(), CHECK), (direct(), BY_VIP)),
        ((direct(), BY_VIP), (direct(), CHECK)),
        ((direct(), BY_VIP), (direct(vips=VIPS[1:]), BY_VIP)),
        ((direct(), BY_VIP), (direct(vips=VIPS), BY_VIP)),
        ((service(), CHECK), (replace(service(), ports=(79, 80)), replace(CHECK, port=80, fall=7))),
        ((service(), CHECK), (replace(service(), target_port=8080), CHECK)),
    ],
    ids=["through the VIP", "no longer so", "another VIP", "one VIP more", "a lower port", "another port"],
)  # fmt: skip
@pytest.mark.parametrize("restarts", [False, True])
def test_who_is_dead_stays_out_when_it_is_checked_elsewhere(wish, clock, before, then, restarts):
    def asked(service_, check):
        return view(Pool("web", KEPT, check), services=[service_])

    wish.of(asked(*before))
    down(wish, 1, 3, state=State(Health.UP, clock.now_s))
    down(wish, 2, state=DOWN._replace(since_s=clock.now_s, falls=(clock.now_s,) * 5))
    if restarts:
        former = {use: target.digest for use, target in wish.targets.items()}
        wish = Wish(Known(dict(wish.states), former), clock, clock)
    clock.now_s += 10
    assert weights(wish.of(asked(*then))) == {1: 1, 2: 0, 3: 1}
    new = {t.digest: wish.states[t.digest] for use, t in wish.targets.items() if use.address == address(2)}
    wish.learn({digest: state._replace(health=Health.UP) for digest, state in new.items()})
    assert weights(wish.of(asked(*then)))[2] == 1


def test_another_port_of_the_same_address_is_another_endpoint(wish, clock):
    first, second = Endpoint(address(1), 8080), Endpoint(address(1), 8081)
    wish.of(view(Pool("web", (first,), CHECK)))
    down(wish, 1)
    wish.of(view(Pool("web", (first, second), CHECK)))
    assert {state.health for state in wish.states.values()} == {Health.DOWN, Health.UNKNOWN}
