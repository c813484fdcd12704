# SPDX-License-Identifier: Apache-2.0
"""What counts as an edit, and what it is called."""

from dataclasses import dataclass, fields, is_dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.diff.manifests import _between, _duration, compare_manifests, ranges
from reconciler.model import (
    NOWHERE,
    Algorithm,
    CheckType,
    Endpoint,
    EndpointState,
    Fleet,
    HealthCheck,
    Interface,
    Node,
    Pool,
    Protocol,
    Service,
    XdpMode,
)
from reconciler.resource import Span
from tests.strategies import any_nodes, any_pools, any_services, fleets


def endpoint(last, port=8080, **more):
    return Endpoint(IPv4Address(f"10.2.0.{last}"), port, **more)


def service(name, last, pool, **more):
    return Service(name, (IPv4Address(f"20.20.20.{last}"),), Protocol.TCP, (80,), pool, **more)


FLEET = Fleet(
    (service("api", 1, "red"), service("web", 2, "blue")),
    (Pool("blue", (endpoint(1), endpoint(2), endpoint(2, None))), Pool("red", (endpoint(3),))),
    (Node("lb1", (Interface("front"), Interface("back"))),),
)


def edits(fleet, old=FLEET):
    """Each edit as `sign kind name (former)`, with its values and items."""
    return [flat(edit) for edit in compare_manifests(old, fleet)]


def flat(edit):
    name = f"{edit.former} -> {edit.key.id}" if edit.former else edit.key.id
    return (f"{edit.action.value} {edit.key.kind} {name}", *edit.values, *map(flat, edit.items))


def with_pool(name, *endpoints):
    return replace(FLEET, pools=tuple(Pool(name, endpoints) if p.name == name else p for p in FLEET.pools))


@given(fleets())
@settings(max_examples=50, deadline=None)
def test_order_and_places_are_no_difference(fleet):
    random = Random(1)

    def shuffled(items):
        return tuple(random.sample(items, len(items)))

    pools = tuple(replace(p, endpoints=shuffled(p.endpoints), span=Span("other.yaml", 9)) for p in fleet.pools)
    nodes = tuple(replace(n, interfaces=shuffled(n.interfaces)) for n in fleet.nodes)
    services = tuple(replace(s, ports=shuffled(s.ports)) for s in fleet.services)
    assert edits(replace(fleet, services=shuffled(services), pools=shuffled(pools), nodes=nodes), fleet) == []


def named(parts):
    names = [part.name if isinstance(part, Interface) else (part.address, part.port) for part in parts]
    return len(set(names)) == len(names)


any_fleets = st.builds(
    lambda service, pool, node: Fleet((service,), (pool,), (node,)),
    any_services(),
    any_pools.filter(lambda pool: named(pool.endpoints)),
    any_nodes().filter(lambda node: named(node.interfaces)),
)  # fmt: skip
"""One service, one pool and one node with all that the language can say of them."""


@given(any_fleets, any_fleets, st.sets(st.sampled_from(("services", "pools", "nodes"))))
@settings(max_examples=100, deadline=None)
def test_fleets_without_an_edit_between_them_are_equal_but_for_order(one, other, same):
    other = replace(other, **{kind: getattr(one, kind) for kind in same})
    assert (edits(other, one) == []) == (content(one) == content(other))


def content(value):
    """A value of the model without places and order."""
    if isinstance(value, tuple):
        return sorted(map(content, value), key=repr)
    if is_dataclass(value):
        return {f.name: content(getattr(value, f.name)) for f in fields(value) if f.compare}
    return value


def test_endpoints_are_known_by_address_and_port():
    drained = endpoint(2, None, state=EndpointState.DRAINING)
    assert edits(with_pool("blue", endpoint(1, weight=5), drained, endpoint(4, weight=3))) == [(
        "update pool blue",
        ("update endpoint 10.2.0.1:8080", ("weight", "1", "5")),
        ("update endpoint 10.2.0.2", ("state", "active", "draining")),
        ("create endpoint 10.2.0.4:8080", ("weight", None, "3")),
        ("delete endpoint 10.2.0.2:8080",),
    )]  # fmt: skip


def test_a_pool_that_gets_its_first_endpoint_or_loses_its_last_one_has_one_edit():
    empty = with_pool("red")
    assert edits(empty) == [("update pool red", ("delete endpoint 10.2.0.3:8080",))]
    assert edits(FLEET, empty) == [("update pool red", ("create endpoint 10.2.0.3:8080",))]


def test_fields_are_named_and_written_as_in_manifests():
    changed = replace(FLEET.services[0], target_port=8080, ports=(80, 81, 82, 443), algorithm=Algorithm.SOURCE_HASH)
    assert edits(replace(FLEET, services=(changed, FLEET.services[1]))) == [(
        "update service api",
        ("ports", "80", "80-82, 443"), ("algorithm", "round-robin", "source-hash"), ("targetPort", "none", "8080"),
    )]  # fmt: skip


def test_interfaces_are_items_of_a_node():
    node = Node("lb1", (Interface("back", XdpMode.GENERIC), Interface("side")))
    assert edits(replace(FLEET, nodes=(node,))) == [(
        "update node lb1",
        ("update interface back", ("xdp", "auto", "generic")),
        ("create interface side",),
        ("delete interface front",),
    )]  # fmt: skip


def test_a_new_manifest_shows_what_is_not_the_default():
    new = service("new", 9, "red", algorithm=Algorithm.SOURCE_HASH)
    assert edits(replace(FLEET, services=(*FLEET.services, new))) == [(
        "create service new",
        ("vips", None, "20.20.20.9"), ("protocol", None, "tcp"), ("ports", None, "80"), ("pool", None, "red"),
        ("algorithm", None, "source-hash"),
    )]  # fmt: skip


def test_a_renamed_pool_is_one_edit_and_none_of_its_services():
    blue, red = FLEET.pools
    pools = (replace(blue, name="azure", endpoints=blue.endpoints[::-1]), red)
    services = (FLEET.services[0], replace(FLEET.services[1], pool="azure"))
    assert edits(replace(FLEET, pools=pools, services=services)) == [("update pool blue -> azure",)]


def test_renamed_services_and_nodes_are_one_edit_each():
    renamed = replace(FLEET, services=(replace(FLEET.services[0], name="zeta"), FLEET.services[1]),
                      nodes=(replace(FLEET.nodes[0], name="lb9"),))  # fmt: skip
    assert edits(renamed) == [("update service api -> zeta",), ("update node lb1 -> lb9",)]


def test_another_content_under_another_name_is_no_rename():
    pools = (Pool("azure", FLEET.pools[0].endpoints[:2]), FLEET.pools[1])
    services = (FLEET.services[0], replace(FLEET.services[1], pool="azure"))
    found = edits(replace(FLEET, pools=pools, services=services))
    assert [edit[0] for edit in found] == ["update service web", "create pool azure", "delete pool blue"]
    assert found[0][1:] == (("pool", "blue", "azure"),)


def test_of_pools_alike_each_is_renamed_to_the_one_that_its_service_uses_now():
    same = (endpoint(1),)
    old = replace(FLEET, pools=(Pool("blue", same), Pool("red", same)))
    services = (replace(FLEET.services[0], pool="a"), replace(FLEET.services[1], pool="b"))
    new = replace(old, pools=(Pool("a", same), Pool("b", same)), services=services)
    assert edits(new, old) == [("update pool red -> a",), ("update pool blue -> b",)]


def test_what_the_model_may_learn_is_compared_as_well():
    """Nested values, labels, lists, times and ranges: of fields that no code here names."""

    @dataclass(frozen=True)
    class Check:
        type: CheckType = CheckType.NONE
        status_codes: tuple[int, ...] = (200,)
        interval_s: float = 2.0

    @dataclass(frozen=True)
    class Thing:
        name: str
        labels: tuple[tuple[str, str], ...]
        check: Check
        maybe: Check | None = None
        allowed: tuple[str, ...] = ()
        snat_ports: range = range(1, 10)
        mtu_bytes: int = 1500
        span: Span = NOWHERE

    before = Thing("x", (("a", "1"),), Check())
    labels = (("a", "1"), ("b", "2"))
    after = Thing("x", labels, Check(CheckType.HTTP, (204, 200), 0.5), Check(), ("b", "a"), range(5, 9), 9000)
    edit = _between(before, after, "x")
    assert edit.values == (
        ("labels", "a=1", "a=1, b=2"),
        ("check.type", "none", "http"),
        ("check.statusCodes", "200", "200, 204"),
        ("check.interval", "2s", "500ms"),
        ("maybe.type", None, "none"),
        ("maybe.statusCodes", None, "200"),
        ("maybe.interval", None, "2s"),
        ("allowed", "none", "a, b"),
        ("snatPorts", "1-9", "5-8"),
        ("mtu", "1500", "9000"),
    )
    assert _between(after, replace(after, allowed=("a", "b")), "x") is None


def test_what_can_not_be_printed_is_escaped():
    """A text with line breaks could end a block of Markdown, one with control characters repaint a terminal."""
    pool = replace(FLEET.pools[0], health_check=HealthCheck(CheckType.UDP, send="a\n```\x1b[31m", expect="é"))
    [(_, *values)] = edits(replace(FLEET, pools=(pool, FLEET.pools[1])))
    assert ("healthCheck.send", "none", r"a\n```\x1b[31m") in values
    assert ("healthCheck.expect", "none", "é") in values


def test_a_text_that_looks_like_something_else_is_told_from_it():
    def checked(send):
        blue, red = FLEET.pools
        return replace(FLEET, pools=(replace(blue, health_check=HealthCheck(CheckType.UDP, send=send)), red))

    alike = (None, "none", "'none'", "\n", "\\n")
    assert all(bool(edits(checked(a), checked(b))) == (a != b) for a in alike for b in alike)


def test_addresses_of_version_6_are_told_from_their_ports():
    address = IPv6Address("2001:db8::1")
    fleet = with_pool("red", Endpoint(address, 80), Endpoint(address))
    assert [item[0] for item in edits(fleet)[0][1:]] == [
        "create endpoint [2001:db8::1]:80", "create endpoint 2001:db8::1", "delete endpoint 10.2.0.3:8080"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "500ms"), (1.5, "1500ms"), (2, "2s"), (90, "90s"), (900, "15m"), (10_800, "3h"), (86_400, "1d")],
)
def test_times_are_written_as_in_manifests(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((80,), "80"), ((81, 80), "80, 81"), ((1, 2, 3, 5, 7, 8, 9), "1-3, 5, 7-9")],
)
def test_ports_are_written_as_ranges(numbers, text):
    assert ranges(numbers) == text
