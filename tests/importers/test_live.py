# SPDX-License-Identifier: Apache-2.0
"""Manifests made from a node's live state ask for exactly what it holds."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_interface

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reconciler import plan as planning
from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.config.load import load
from reconciler.dataplane.layout import SERVICES
from reconciler.importers import emit
from reconciler.importers.live import import_live, read_for_import
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.ring import Ring, build
from reconciler.kinds.service_row import ServiceRow
from reconciler.limits import MIN_HASH_SLOTS
from reconciler.live import read_live
from reconciler.model import (
    Algorithm,
    Endpoint,
    EndpointState,
    Fleet,
    IcmpRedirects,
    Interface,
    Node,
    Pool,
    Protocol,
    Service,
    XdpMode,
)
from reconciler.resource import Live
from reconciler.ring_names import RingNames
from reconciler.ring_store import Rings
from reconciler.view import view
from tests.strategies import fake_source, fleets

algorithms = st.sampled_from((Algorithm.ROUND_ROBIN, Algorithm.SOURCE_HASH))


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def node_with(fleet):
    kernel = FakeKernel()
    desired = compile_node(view(fleet, None, "host"))
    apply(planning.plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    return kernel


def load_emitted(imported, directory):
    for name, text in emit.files(imported.manifests, "a test").items():
        (directory / name).write_text(text)
    loaded = load(directory)
    assert loaded.fleet is not None, loaded.diagnostics
    return loaded.fleet


def changes_after_import(kernel, directory):
    fleet = load_emitted(import_live(read_for_import(kernel), "host"), directory)
    desired = compile_node(view(fleet, None, "host"))
    return planning.plan(desired, read_live(kernel, desired.resources)).changes


def service(name, port, pool, algorithm=Algorithm.ROUND_ROBIN, target_port=None, vip="20.20.20.1"):
    return Service(
        name, (IPv4Address(vip),), Protocol.TCP, (port,) if isinstance(port, int) else port, pool,
        algorithm=algorithm, target_port=target_port,
    )  # fmt: skip


def pool_of(name, weights, **more):
    return Pool(name, tuple(Endpoint(IPv4Address("10.2.0.0") + i, None, w, **more) for i, w in enumerate(weights, 1)))


def imported_from(*objects):
    services = tuple(o for o in objects if isinstance(o, Service))
    pools = tuple(o for o in objects if isinstance(o, Pool))
    kernel = node_with(Fleet(services, pools, (Node("lb1", (Interface("front"),)),)))
    return kernel, import_live(read_live(kernel), "Front.Example")


@given(fleets())
@settings(max_examples=150, deadline=None)
def test_a_plan_after_import_is_empty(tmp_path_factory, fleet):
    kernel = node_with(fleet)
    # A source of tunnels that was an interface's address is one that the manifests name now, and still the node's.
    kernel.own_networks = {str(own.network) for face in fleet.nodes[0].interfaces for own in face.addresses}
    directory = tmp_path_factory.mktemp("imported")
    # Addresses of interfaces are declared, not held: without them nobody is known to be a neighbour, or to ask for
    # sources of fullnat. How addresses are shared by VRRP is not imported: it is in a file of keepalived's.
    others = ("vrrp", "vrrp-state", "neighbour-proxy")
    changes = [
        c for c in changes_after_import(kernel, directory)
        if c.key.kind not in others and not c.key.id.endswith("/proxy_ndp")
    ]
    assert {change.key.id for change in changes} == {
        f"{neighbour.address} {neighbour.interface}" for neighbour in kernel.kept if neighbour.interface == "back"
    }
    warnings = [w.message for w in import_live(read_live(kernel), "host").warnings if "neighbours on" in w.message]
    assert len(warnings) == any(neighbour.interface == "back" for neighbour in kernel.kept)


def slots_after_import(weights, algorithm):
    """The ring of a pool with these weights, that of the pool which was imported, and the warnings."""
    _, imported = imported_from(pool_of("web", weights), service("web", 80, "web", algorithm))
    pool = next(m for m in imported.manifests if m["kind"] == "Pool")
    found = [e.get("weight", 1) for e in sorted(pool["spec"]["endpoints"], key=lambda e: IPv4Address(e["address"]))]
    return build(pool_of("web", weights), algorithm), build(pool_of("web", found), algorithm), imported.warnings


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), algorithms)
@settings(max_examples=60, deadline=None)
def test_small_weights_come_back_with_the_very_slots_of_their_ring(weights, algorithm):
    before, after, warnings = slots_after_import(weights, algorithm)
    assert after == before
    assert warnings == ()


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20), algorithms)
@settings(max_examples=25, deadline=None)
def test_any_weights_come_back_within_a_slot_and_a_ring_that_will_change_is_told(weights, algorithm):
    before, after, warnings = slots_after_import(weights, algorithm)
    assert after == before or warnings
    for member, share in before.shares.items():
        assert after.shares[member] == pytest.approx(share, abs=8 / len(before.slots))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), algorithms)
@settings(max_examples=60, deadline=None)
def test_weights_that_do_not_come_back_exactly_are_warned_of(weights, algorithm):
    assume(min(weights) * MIN_HASH_SLOTS >= sum(weights))  # each has a slot
    before, after, warnings = slots_after_import(weights, algorithm)
    assert (after == before) == (not warnings)


def test_both_rings_of_a_pool_give_one_set_of_weights(tmp_path):
    kernel, imported = imported_from(
        pool_of("web", (700, 200, 1)),
        service("a", 80, "web"),
        service("b", 81, "web", Algorithm.SOURCE_HASH),
    )
    assert imported.warnings == ()
    assert changes_after_import(kernel, tmp_path) == ()


def test_ports_that_are_treated_alike_are_one_service():
    _, imported = imported_from(pool_of("web", (1,)), service("a", (80, 443, 8000, 8001, 8002), "web"))
    found = [m["spec"]["ports"] for m in imported.manifests if m["kind"] == "Service"]
    assert found == [[80, 443, "8000-8002"]]


def test_a_target_port_keeps_its_service_apart():
    _, imported = imported_from(
        pool_of("web", (1,)), service("a", 80, "web", target_port=8080), service("b", 81, "web")
    )
    specs = {tuple(m["spec"]["ports"]): m["spec"] for m in imported.manifests if m["kind"] == "Service"}
    assert specs[(80,)]["targetPort"] == 8080
    assert "targetPort" not in specs[(81,)]


def test_how_long_connections_are_remembered_comes_back(tmp_path):
    def live_services(kernel):
        return {key: row for key, row in read_live(kernel).resources.items() if isinstance(row, ServiceRow)}

    kernel, imported = imported_from(
        pool_of("web", (2, 1)),
        replace(service("short", 80, "web"), idle_timeout_s=90.0),
        replace(service("long", (81, 82), "web"), idle_timeout_s=7_200.0),
        service("usual", 83, "web"),
        replace(service("none", 84, "web", Algorithm.MAGLEV), stateless=True),
        service("hashed", 85, "web", Algorithm.MAGLEV),
    )  # fmt: skip
    assert imported.warnings == ()
    specs = {tuple(m["spec"]["ports"]): m["spec"] for m in imported.manifests if m["kind"] == "Service"}
    assert {ports: (spec.get("idleTimeout"), spec.get("stateless")) for ports, spec in specs.items()} == {
        (80,): ("90s", None), ("81-82",): ("2h", None), (83,): (None, None), (84,): (None, True), (85,): (None, None),
    }  # fmt: skip
    assert changes_after_import(kernel, tmp_path) == ()
    again = node_with(load_emitted(imported, tmp_path))
    assert live_services(again) == live_services(kernel)


def test_an_idle_timeout_that_no_manifest_can_say_is_clipped_with_a_warning():
    kernel, _ = imported_from(pool_of("web", (1,)), replace(service("a", 80, "web"), idle_timeout_s=90.0))
    held = dict(read_live(kernel).resources)
    held |= {key: replace(row, idle_timeout_s=100_000) for key, row in held.items() if isinstance(row, ServiceRow)}
    imported = import_live(Live(held), "lb1")
    (spec,) = (m["spec"] for m in imported.manifests if m["kind"] == "Service")
    assert spec["idleTimeout"] == "4h"
    assert [notice.message for notice in imported.warnings] == [
        "20.20.20.1:80/tcp: idle timeout 100000 has no counterpart: 14400 is written"
    ]


def test_the_node_has_the_interfaces_that_run_the_program_and_the_name_of_the_host():
    kernel = node_with(Fleet(nodes=(Node("lb1", (Interface("front", XdpMode.GENERIC), Interface("back"))),)))
    imported = import_live(read_live(kernel), "Front.Example")
    (node,) = imported.manifests
    assert node["metadata"]["name"] == "front-example"
    assert node["spec"]["interfaces"] == [{"name": "back", "xdp": "native"}, {"name": "front", "xdp": "generic"}]


def test_a_vlan_that_was_made_is_asked_for_again(web_fleet, tmp_path):
    (node,) = web_fleet.nodes
    own = tuple(map(ip_interface, ("10.1.0.1/24", "2001:db8:1::1/64")))
    vlan = Interface("front.7", trunk="front", tag=7, addresses=own, mtu_bytes=1400)
    fleet = replace(web_fleet, nodes=(replace(node, interfaces=(Interface("front"), vlan)),))
    kernel = node_with(fleet)
    held = kernel.own_vlans["front.7"]
    kernel.own_vlans["front.7"] = replace(held, addresses=(*held.addresses, "fe80::1/64"))
    assert changes_after_import(kernel, tmp_path) == ()


def test_an_idle_endpoint_goes_to_the_pool_that_its_connections_belong_to():
    idle = Endpoint(IPv4Address("10.2.0.9"), state=EndpointState.DRAINING)
    red, blue = pool_of("red", (1,)), Pool("blue", (Endpoint(IPv4Address("10.9.0.1")), idle))
    kernel, imported = imported_from(red, blue, service("r", 80, "red"), service("b", 81, "blue"))
    assert "nothing says in which pool: red is written" in imported.warnings[0].message
    live = read_live(kernel)
    counted = Live(live.resources, live.foreign, {("20.20.20.1:81/tcp", "10.2.0.9"): 3})
    imported = import_live(counted, "lb1")
    pools = {m["metadata"]["name"]: m["spec"]["endpoints"] for m in imported.manifests if m["kind"] == "Pool"}
    assert {"address": "10.2.0.9", "state": "draining"} in pools["blue"]
    assert imported.warnings == ()


def test_a_disabled_endpoint_comes_back_as_disabled():
    off = Endpoint(IPv4Address("10.2.0.9"), state=EndpointState.DISABLED)
    _, imported = imported_from(Pool("web", (*pool_of("web", (1,)).endpoints, off)), service("a", 80, "web"))
    pool = next(m for m in imported.manifests if m["kind"] == "Pool")
    assert pool["spec"]["endpoints"] == [{"address": "10.2.0.1"}, {"address": "10.2.0.9", "state": "disabled"}]


def test_a_damaged_service_is_left_out_with_a_warning():
    kernel, _ = imported_from(pool_of("web", (1,)), service("a", 80, "web"), service("b", 81, "web"))
    key = next(iter(kernel.maps[SERVICES.name]))
    row = bytearray(kernel.maps[SERVICES.name][key])
    row[-1] = 99  # the algorithm
    kernel.maps[SERVICES.name][key] = bytes(row)
    imported = import_live(read_live(kernel), "lb1")
    assert [m["spec"]["ports"] for m in imported.manifests if m["kind"] == "Service"] == [[81]]
    assert "is damaged" in imported.warnings[0].message


def test_a_ring_without_slots_for_its_members_is_left_out_with_its_services():
    kernel, _ = imported_from(pool_of("web", (1, 1)), service("a", 80, "web", Algorithm.SOURCE_HASH))
    live = read_live(kernel)
    damaged = {key: Ring(r.name, r.members, b"") if isinstance(r, Ring) else r for key, r in live.resources.items()}
    imported = import_live(Live(damaged), "lb1")
    assert [m["kind"] for m in imported.manifests] == ["Node"]
    assert any("ring web/source-hash is damaged" in notice.message for notice in imported.warnings)


def test_a_ring_that_no_weights_give_is_said_to_change(tmp_path):
    kernel, _ = imported_from(pool_of("web", (1, 1, 1)), service("a", 80, "web", Algorithm.SOURCE_HASH))
    rings = Rings(kernel)
    (index,) = RingNames(kernel).numbers
    slots = rings.slots(rings.place(index)).copy()
    other = next(place for place, endpoint in enumerate(slots) if endpoint != slots[0])
    slots[[0, other]] = slots[[other, 0]]
    rings.write_slots(rings.place(index), slots)
    imported = import_live(read_live(kernel), "lb1")
    assert [n.message for n in imported.warnings] == [
        "no weights give the shares that pool web has now: a plan will show how they change"
    ]
    assert changes_after_import(kernel, tmp_path)


def test_a_node_that_holds_nothing_gives_nothing():
    imported = import_live(Live(), "lb1")
    assert imported.manifests == ()
    assert "add a Node" in imported.warnings[0].message


def test_redirects_that_were_left_on_stay_on():
    pool, web = pool_of("web", (1,)), service("a", 80, "web")
    for setting, expected in ((IcmpRedirects.ON, "on"), (IcmpRedirects.OFF, None)):
        kernel = node_with(Fleet((web,), (pool,), (Node("lb1", (Interface("front"),), icmp_redirects=setting),)))
        node = import_live(read_for_import(kernel), "lb1").manifests[0]
        assert node["spec"].get("icmpRedirects") == expected
