# SPDX-License-Identifier: Apache-2.0
"""What was compiled before is made anew only where its manifests changed, and nobody can tell the difference."""

import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.compile import compile_node, compiled
from reconciler.model import Algorithm, EndpointState, Fleet
from reconciler.resource import Span
from reconciler.view import view
from tests.strategies import fake_source, fleets


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def everything(desired):
    """All fields of all resources, with those that don't count when resources are compared, and all origins."""
    rows = {key: [getattr(r, f.name) for f in fields(r)] for key, r in desired.resources.items()}
    return rows, {key: r.origin for key, r in desired.resources.items()}, desired.node


def mixed(fleet, other, chance):
    """The fleet with some objects of another one in place of its own; the rest are the same objects."""

    def some(own, others):
        found = {item.name: item for item in own}
        found |= {item.name: item for item in others if chance.random() < 0.4}
        return found

    pools = some(fleet.pools, other.pools)
    services = some(fleet.services, other.services)
    for name in [name for name in services if chance.random() < 0.2]:
        del services[name]
    if services and chance.random() < 0.3:  # the same value, but moved down in its file
        name = chance.choice(sorted(services))
        services[name] = replace(services[name], span=Span("moved.yaml", 7))
    used = {service.pool for service in services.values()}
    if used and chance.random() < 0.5:
        pool = pools[chance.choice(sorted(used))]
        ends = [replace(e, state=chance.choice(list(EndpointState))) for e in pool.endpoints]
        pools[pool.name] = replace(pool, endpoints=tuple(ends))
    nodes = other.nodes if chance.random() < 0.1 else fleet.nodes
    if chance.random() < 0.1:
        nodes = tuple(replace(node, span=Span("node.yaml", 9)) for node in nodes)
    return Fleet(tuple(services[n] for n in sorted(services)), tuple(pools[n] for n in sorted(pools)), nodes)


@given(st.lists(fleets(), min_size=2, max_size=4), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_compiling_what_changed_gives_what_compiling_everything_gives(several, seed):
    chance = random.Random(seed)
    fleet = several[0]
    states = [compiled(view(fleet, None, "host"))]
    for _ in range(8):
        fleet = mixed(fleet, chance.choice(several), chance)
        states.append(compiled(view(fleet, None, "host"), states[-1]))
        whole = compile_node(view(fleet, None, "host"))
        assert everything(states[-1].desired) == everything(whole)
        former = chance.choice(states)
        before, after = former.desired.resources, whole.resources
        differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        found = former.differing(states[-1])
        assert found >= differing
        assert {key.kind for key in found - differing} <= {"ring"}  # of other weights or sizes, with the same slots


def test_the_same_manifests_are_no_work(two_services, monkeypatch):
    before = compiled(view(two_services, None, "host"))
    for kind in ("endpoint", "rings", "service", "vip", "loopback"):
        monkeypatch.setattr(f"reconciler.kinds.{kind}.KIND.of_service", None)
        monkeypatch.setattr(f"reconciler.kinds.{kind}.KIND.of_pool", None)
        monkeypatch.setattr(f"reconciler.kinds.{kind}.KIND.desired", None)
    after = compiled(view(two_services, None, "host"), before)
    assert after.services is before.services
    assert after.whole is before.whole
    assert not before.differing(after)


def test_a_service_that_becomes_stateless_asks_for_what_it_would_ask_for_from_the_beginning(web_fleet):
    (service,) = web_fleet.services
    service = replace(service, algorithm=Algorithm.MAGLEV)
    fleet = replace(web_fleet, services=(service,))
    former = compiled(view(fleet, None, "host"))
    for ports, is_stateless in ((service.ports, True), ((81,), True), ((81,), False)):
        fleet = replace(fleet, services=(replace(service, ports=ports, stateless=is_stateless),))
        former = compiled(view(fleet, None, "host"), former)
        assert everything(former.desired) == everything(compile_node(view(fleet, None, "host")))
        assert any(key.kind == "source" for key in former.desired.resources) is is_stateless


def test_an_edited_weight_is_one_ring(two_services):
    pool, *others = two_services.pools
    first = pool.endpoints[0]
    weights = [
        replace(pool, endpoints=(replace(first, weight=weight), replace(first, port=81))) for weight in (1, 2)
    ]
    fleets = [replace(two_services, pools=(pool, *others)) for pool in weights]
    before = compiled(view(fleets[0], None, "host"))
    after = compiled(view(fleets[1], None, "host"), before)
    (key,) = before.differing(after)
    assert key.kind == "ring"
    assert key.id.startswith(pool.name)


@given(fleets())
@settings(max_examples=50, deadline=None)
def test_resources_need_what_their_kind_may_need(fleet):
    for resource in compile_node(view(fleet, None, "host")).resources.values():
        if resource.may_need is not None:
            assert {need.kind for need in resource.needs} <= resource.may_need
