# SPDX-License-Identifier: Apache-2.0
"""What a difference does to nodes and to traffic."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from reconciler import compile as compile_module
from reconciler.compile import compile_node
from reconciler.diff.fleet import compare
from reconciler.errors import UsageError
from reconciler.kinds import ring as ring_module
from reconciler.kinds.ring import build
from reconciler.model import Algorithm, Endpoint, EndpointState, Interface, Node, Pool, Protocol, Undefined, XdpMode
from reconciler.resource import Span
from reconciler.view import view

LB2 = Node("lb2", (Interface("front"),))


@pytest.fixture
def fleet(two_services):
    """Two services with a pool of two endpoints each, on two nodes, and the places where they are written."""
    pools = tuple(
        replace(pool, endpoints=(*pool.endpoints, Endpoint(IPv4Address(f"10.2.0.{i + 10}"), 8080)))
        for i, pool in enumerate(two_services.pools, 1)
    )
    services = tuple(replace(s, span=Span("services.yaml", i)) for i, s in enumerate(two_services.services, 1))
    return replace(two_services, pools=pools, services=services, nodes=(*two_services.nodes, LB2))


def with_endpoints(fleet, change):
    """The fleet with other endpoints in its first pool."""
    pool = fleet.pools[0]
    return replace(fleet, pools=(replace(pool, endpoints=change(pool.endpoints)), *fleet.pools[1:]))


def with_service(fleet, **fields):
    return replace(fleet, services=(replace(fleet.services[0], **fields), *fleet.services[1:]))


def told(diff):
    return {(t.service, t.at): (t.text, t.moved, t.ends, nodes) for t, nodes in diff.traffic.items()}


def test_the_plan_of_a_node_leads_from_all_of_the_old_to_all_of_the_new(fleet):
    edited = with_endpoints(fleet, lambda e: (*e, replace(e[0], address=IPv4Address("10.2.0.99"))))
    for node in compare(fleet, edited).nodes:
        held = dict(compile_node(view(fleet, node.name, "")).resources)
        for change in node.plan.changes:
            assert held.pop(change.key, None) == change.before
            if change.after:
                held[change.key] = change.after
        assert held == compile_node(view(edited, node.name, "")).resources
        assert len(node.plan.changes) == 2


def test_a_weight_moves_its_share_of_new_connections_of_its_service_alone(fleet):
    diff = compare(fleet, with_endpoints(fleet, lambda e: (replace(e[0], weight=3), e[1])))
    [(place, (text, moved, ends, nodes))] = told(diff).items()
    assert place == ("red", "20.20.20.1:80/tcp")
    assert moved == pytest.approx(0.25)
    assert text == "25.0% of new connections move; open connections stay"
    assert (ends, nodes) == (False, ("lb1", "lb2"))
    assert [(str(k), [t.service for t in v]) for k, v in diff.caused.items()] == [("pool red", ["red"])]


def test_of_hashed_clients_the_share_of_slots_moves(fleet):
    hashed = with_service(fleet, algorithm=Algorithm.SOURCE_HASH)
    edited = with_endpoints(hashed, lambda e: (replace(e[0], weight=3), e[1]))
    before, after = (build(f.pools[0], Algorithm.SOURCE_HASH) for f in (hashed, edited))
    slots = zip(before.array, after.array, strict=True)
    share = sum(before.members[a] != after.members[b] for a, b in slots) / before.array.size
    [(text, moved, _, _)] = told(compare(hashed, edited)).values()
    assert 0.25 <= moved < 0.5
    assert moved == share
    assert text == f"{share:.1%} of clients move with their next connection"


def test_a_removed_service_ends_its_connections_without_a_number(fleet):
    diff = compare(fleet, replace(fleet, services=fleet.services[1:]))
    assert told(diff) == {("red", "20.20.20.1:80/tcp"): ("connections on it end", None, True, ("lb1", "lb2"))}
    assert all(node.ends for node in diff.nodes)
    others = {str(key): text for key, text in diff.nodes[0].others.items()}
    assert others == {"loopback 20.20.20.1": "the node no longer answers for this VIP"}


def test_ports_of_a_service_that_fare_alike_are_told_together(fleet):
    many = with_service(fleet, ports=(80, 443, *range(8000, 8011)))
    assert list(told(compare(many, with_service(fleet, ports=(443,))))) == [("red", "20.20.20.1:80, 8000-8010/tcp")]


@pytest.mark.parametrize(
    ("state", "text", "ends"),
    [(EndpointState.DISABLED, "connections on it end", True), (EndpointState.DRAINING, None, False)],
)
def test_only_disabled_endpoints_lose_connections(fleet, state, text, ends):
    diff = compare(fleet, with_endpoints(fleet, lambda e: (replace(e[0], state=state), e[1])))
    assert diff.endpoints.get("10.2.0.1:8080") == text
    assert diff.nodes[0].ends is ends
    assert [moved for _, moved, _, _ in told(diff).values()] == [pytest.approx(0.5)]


def test_a_service_loses_connections_where_an_idle_endpoint_is_disabled(fleet):
    drained = with_endpoints(fleet, lambda e: (replace(e[0], state=EndpointState.DRAINING), e[1]))
    edited = with_endpoints(fleet, lambda e: (replace(e[0], state=EndpointState.DISABLED), e[1]))
    assert told(compare(drained, edited)) == {
        ("red", "20.20.20.1:80/tcp"): ("connections on 10.2.0.1:8080 end", None, True, ("lb1", "lb2"))
    }
    [(text, *_)] = told(compare(fleet, edited)).values()
    assert text == "50.0% of new connections move; connections on 10.2.0.1:8080 end"


def test_a_removed_endpoint_keeps_its_connections(fleet):
    diff = compare(fleet, with_endpoints(fleet, lambda e: e[1:]))
    assert diff.endpoints == {"10.2.0.1:8080": "connections on it go on until they end by themselves"}
    assert not diff.nodes[0].ends


def test_a_pool_without_active_endpoints_accepts_nothing_and_later_something(fleet):
    idle = with_endpoints(fleet, lambda e: tuple(replace(x, weight=0) for x in e))
    assert [t[0] for t in told(compare(fleet, idle)).values()] == [
        "no new connection is accepted: the pool has no active endpoint; open connections stay"
    ]
    assert [t[0] for t in told(compare(idle, fleet)).values()] == ["new connections are accepted again"]


def test_a_renamed_pool_changes_nodes_and_moves_nothing(fleet):
    pool = replace(fleet.pools[0], name="crimson")
    diff = compare(fleet, replace(with_service(fleet, pool="crimson"), pools=(pool, *fleet.pools[1:])))
    assert [(str(e.key), e.former) for e in diff.edits] == [("pool crimson", "red")]
    assert [str(c.key) for c in diff.nodes[0].plan.changes] == [
        "ring crimson/round-robin", "service 20.20.20.1:80/tcp", "ring red/round-robin"
    ]  # fmt: skip
    assert diff.traffic == {}


def test_a_renamed_node_holds_what_it_held(fleet):
    diff = compare(fleet, replace(fleet, nodes=(replace(fleet.nodes[0], name="lb9"), LB2)))
    assert [(node.name, node.plan.changes) for node in diff.nodes] == [("lb2", ()), ("lb9", ())]


def test_another_pool_moves_what_its_endpoints_do_not_share(fleet):
    diff = compare(fleet, with_service(fleet, pool="blue"))
    assert [moved for _, moved, _, _ in told(diff).values()] == [pytest.approx(1.0)]
    assert list(diff.caused) == [diff.edits[0].key]
    assert str(diff.edits[0].key) == "service red"


def test_another_algorithm_has_no_share(fleet):
    [(text, moved, ends, _)] = told(compare(fleet, with_service(fleet, algorithm=Algorithm.SOURCE_HASH))).values()
    assert (text, moved, ends) == ("open connections stay, new ones follow the new row", None, False)


def test_nodes_come_and_go(fleet):
    less = replace(fleet, nodes=fleet.nodes[:1])
    came, gone = compare(less, fleet).nodes[1], compare(fleet, less).nodes[1]
    assert (came.name, came.is_new) == ("lb2", True)
    assert {c.key for c in came.plan.changes} == {
        key for key, resource in compile_node(view(fleet, "lb2", "")).resources.items() if not resource.is_given
    }
    assert (gone.name, gone.is_gone, gone.plan) == ("lb2", True, None)
    assert "until `lbctl delete` runs" in gone.problem


def test_settings_of_a_node_are_told_for_that_node(fleet):
    node = replace(fleet.nodes[0], undefined_traffic=Undefined.PASS, interfaces=(Interface("front", XdpMode.GENERIC),))
    lb1, lb2 = compare(fleet, replace(fleet, nodes=(node, LB2))).nodes
    assert lb2.plan.changes == ()
    assert {str(key): text for key, text in lb1.others.items()} == {
        "xdp front": "packets are lost for some milliseconds; open connections stay",
        "xdp back": "packets are no longer handled here",
    }


def test_a_plan_that_apply_refuses_says_so(fleet):
    assert "no service at all" in compare(fleet, replace(fleet, services=())).nodes[0].problem


def test_one_node_shows_what_concerns_it_and_an_unknown_one_is_an_error(fleet):
    unused = Pool("unused", (Endpoint(IPv4Address("10.2.0.77")),))
    edited = with_endpoints(fleet, lambda e: e[:1])
    nodes = (fleet.nodes[0], replace(LB2, undefined_traffic=Undefined.PASS))
    edited = replace(edited, pools=(*edited.pools, unused), nodes=nodes)
    assert [str(e.key) for e in compare(fleet, edited).edits] == ["pool red", "pool unused", "node lb2"]
    one = compare(fleet, edited, "lb1")
    assert [str(e.key) for e in one.edits] == ["pool red"]
    assert [node.name for node in one.nodes] == ["lb1"]
    assert list(one.traffic.values()) == [("lb1",)]
    with pytest.raises(UsageError) as caught:
        compare(fleet, edited, "lb11")
    assert "did you mean" in caught.value.hint


def test_a_node_that_can_not_be_planned_says_why_and_hides_no_other(fleet):
    """Manifests may ask for more than the data plane can do yet: of one node, before or after."""
    labelled = replace(LB2, labels=(("site", "b"),))
    ahead = replace(fleet.services[1], name="ahead", protocol=Protocol.ICMP, node_selector=labelled.labels)
    old = replace(fleet, nodes=(fleet.nodes[0], labelled))
    new = with_endpoints(replace(old, services=(*old.services, ahead)), lambda e: e[:1])
    for before, after, words in ((old, new, "protocol icmp is not supported"), (new, old, "the old manifests: ")):
        lb1, lb2 = compare(before, after).nodes
        assert len(lb1.plan.changes) == 2
        assert lb2.plan is None
        assert words in lb2.problem
    assert [node.problem for node in compare(new, new).nodes] == ["", ""]


def test_no_ring_is_built_twice(fleet, monkeypatch):
    built = []
    ring_module._kept.clear()
    build_slots = ring_module._slots_of
    monkeypatch.setattr(ring_module, "_slots_of", lambda recipes: built.extend(recipes) or build_slots(recipes))
    nodes = tuple(Node(f"lb{i}", (Interface("front"),)) for i in range(5))
    old = replace(fleet, nodes=nodes)
    compare(old, with_endpoints(old, lambda e: (replace(e[0], weight=7), e[1])))
    assert len(built) == len(set(built)) == 2


def test_a_node_that_stays_as_it_is_is_not_compiled(fleet, monkeypatch):
    monkeypatch.setattr(compile_module, "KINDS", None)
    assert [node.plan.changes for node in compare(fleet, fleet).nodes] == [(), ()]
