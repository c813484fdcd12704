# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole data plane, and what else direct server return asks of a balancer."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

import pytest

from reconciler import plan as planning
from reconciler.apply import apply
from reconciler.cli import get
from reconciler.cli.main import main
from reconciler.compile import compile_node
from reconciler.dataplane import rows as row_types
from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6, SETTINGS, ConnectionState, TooBigCode
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.endpoint import numbered_rows
from reconciler.kinds.service import indexed_rows
from reconciler.kinds.service_row import ServiceRow
from reconciler.kinds.settings import SETTINGS_KEY, Settings
from reconciler.kinds.sysctl import Sysctl
from reconciler.live import read_live, with_connections
from reconciler.model import Algorithm, Endpoint, Interface, Mode, PacketTooBig, Protocol, TunnelSource
from reconciler.readings import rows
from reconciler.render.table import table
from reconciler.resource import Change, Context, Key, Live
from reconciler.snapshot import live_from_json, live_to_json
from reconciler.view import view
from tests.config.manifests import node, pool, service
from tests.connections import connection, put
from tests.strategies import fake_source

OWN = tuple(map(ip_interface, ("fe80::1/64", "10.1.0.1/24", "2001:db8:1::1/64")))


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


@pytest.fixture
def fleet_of(web_fleet):
    """The fleet in a mode, on a node with addresses and these wishes."""

    def make(mode, **wishes):
        service = replace(web_fleet.services[0], mode=mode, algorithm=Algorithm.MAGLEV)
        node = replace(web_fleet.nodes[0], interfaces=(Interface("front", addresses=OWN), Interface("back")), **wishes)
        return replace(web_fleet, services=(service,), nodes=(node,))

    return make


def desired_of(fleet):
    return compile_node(view(fleet, None, "host"))


def plan_for(kernel, desired):
    return planning.plan(desired, read_live(kernel, desired.resources))


def settings_of(fleet):
    return desired_of(fleet).resources.get(SETTINGS_KEY)


def test_tunnels_come_from_the_first_address_of_each_family_that_others_can_know(fleet_of):
    assert settings_of(fleet_of(Mode.DSR_L3)) == Settings("10.1.0.1", "2001:db8:1::1")


def test_a_declared_source_comes_before_the_address_of_an_interface(fleet_of):
    source = TunnelSource(ipv6=ip_network("2001:db8:f::/64"))
    assert settings_of(fleet_of(Mode.DSR_L3, tunnel_source=source)) == Settings("10.1.0.1", "2001:db8:f::/64")


def test_what_nobody_uses_is_not_there(fleet_of):
    assert settings_of(fleet_of(Mode.NAT)) is None
    assert settings_of(fleet_of(Mode.NAT, packet_too_big=PacketTooBig.DROP)) == Settings(packet_too_big="drop")
    assert settings_of(fleet_of(Mode.DSR_L2, tunnel_source=TunnelSource(ip_network("10.200.0.0/24")))) is None
    assert settings_of(fleet_of(Mode.DSR_L2, packet_too_big=PacketTooBig.DROP)) == Settings(packet_too_big="drop")


def test_the_row_holds_source_and_spread(fleet_of):
    kernel = FakeKernel()
    source = TunnelSource(ip_network("10.200.0.0/23"), ip_network("2001:db8:f::/64"))
    desired = desired_of(fleet_of(Mode.DSR_L3, tunnel_source=source, packet_too_big=PacketTooBig.DROP))
    apply(plan_for(kernel, desired), kernel).raise_if_failed()
    assert SETTINGS.value.unpack(kernel.maps[SETTINGS.name][bytes(4)]) == row_types.Settings(
        bytes((10, 200, 0, 0)), bytes((0, 0, 1, 255)),
        bytes.fromhex("20010db8000f0000") + bytes(8), bytes(8) + b"\xff" * 8, TooBigCode.DROP,
    )  # fmt: skip
    assert plan_for(kernel, desired).changes == ()


def test_a_row_that_no_manifest_can_ask_for_is_shown_as_it_is_and_mended(fleet_of):
    kernel = FakeKernel()
    desired = desired_of(fleet_of(Mode.DSR_L3))
    apply(plan_for(kernel, desired), kernel).raise_if_failed()
    damage = (bytes((10, 9, 9, 9)), bytes((0, 255, 0, 255)), b"\xff" * 16, bytes(16), 7)
    kernel.maps[SETTINGS.name][bytes(4)] = SETTINGS.value.pack(row_types.Settings(*damage))
    (change,) = plan_for(kernel, desired).changes
    assert change.before.describe()["tunnels from"] == "10.9.9.9 spread 0.255.0.255"
    assert change.before.packet_too_big == "unknown 7"
    apply(plan_for(kernel, desired), kernel).raise_if_failed()
    assert plan_for(kernel, desired).changes == ()


def test_settings_are_there_before_the_service_that_needs_them_and_go_after_it(fleet_of):
    order = [change.key.kind for change in planning.plan(desired_of(fleet_of(Mode.DSR_L3)), Live()).changes]
    assert order.index("settings") < order.index("service")
    kernel = FakeKernel()
    apply(plan_for(kernel, desired_of(fleet_of(Mode.DSR_L3))), kernel).raise_if_failed()
    gone = plan_for(kernel, desired_of(replace(fleet_of(Mode.DSR_L3), services=())))
    order = [change.key.kind for change in gone.changes]
    assert order.index("service") < order.index("settings")
    apply(gone, kernel).raise_if_failed()
    assert kernel.maps[SETTINGS.name] == {}


def test_a_service_with_tunnels_is_not_published_without_their_source(fleet_of):
    kernel = FakeKernel()
    update = kernel.update
    kernel.update = lambda name, rows: (
        [OSError("no")] * len(rows) if name == SETTINGS.name else update(name, rows)
    )  # fmt: skip
    result = apply(plan_for(kernel, desired_of(fleet_of(Mode.DSR_L3))), kernel)
    assert set(result.failed) == {SETTINGS_KEY}
    assert not any(isinstance(found, ServiceRow) for found in read_live(kernel).resources.values())


def test_another_source_is_said_to_reach_endpoints():
    before, after = Settings("10.1.0.1"), Settings("10.200.0.0/24")
    assert "another address" in before.effect(after, Context())
    assert Settings(packet_too_big="drop").effect(after, Context()) == ""


def test_settings_read_back_equal_from_a_snapshot():
    held = Settings("10.200.0.0/24", "2001:db8::1", "drop")
    live = Live({held.key: held})
    assert live_from_json(live_to_json(live)) == live


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.DSR_L2, Mode.DSR_L3])
def test_the_kernel_forwards_vips_as_sources_in_every_mode(fleet_of, mode):
    names = {r.name for r in desired_of(fleet_of(mode)).resources.values() if isinstance(r, Sysctl)}
    of_front = {f"net/ipv4/conf/front/{name}" for name in ("forwarding", "rp_filter", "accept_local")}
    assert {*of_front, "net/ipv4/conf/all/send_redirects"} <= names


@pytest.mark.parametrize(("mode", "shown"), [(Mode.NAT, 0), (Mode.DSR_L3, None)])
def test_get_does_not_count_what_nobody_knows(fleet_of, mode, shown, tmp_path):
    kernel = FakeKernel()
    apply(plan_for(kernel, desired_of(fleet_of(mode))), kernel).raise_if_failed()
    for what in ("services", "endpoints"):
        columns, _ = get._TABLES[what]
        assert "open" in columns
        found = rows.ROWS[what](rows.Node(lambda: kernel, tmp_path))
        assert found
        assert {row["open"] for row in found} == {shown}
        assert set(table(found, ["open"], "").split()[1:]) == {"-" if shown is None else "0"}


def test_syns_that_nothing_followed_are_counted_apart_from_open_connections(fleet_of, tmp_path):
    kernel = FakeKernel()
    apply(plan_for(kernel, desired_of(fleet_of(Mode.NAT))), kernel).raise_if_failed()
    (service, *_), (endpoint, *_) = indexed_rows(kernel), numbered_rows(kernel)
    opening = ConnectionState.OPENING
    states = (opening, opening, ConnectionState.OPEN, ConnectionState.CLIENT_CLOSED, ConnectionState.OVER)
    put(kernel, [
        connection(number, state, endpoint=endpoint.number, service=service.index)
        for number, state in enumerate(states)
    ])  # fmt: skip
    for what, name in (("services", service.row.id), ("endpoints", endpoint.row.id)):
        found = {row[what.removesuffix("s")]: row for row in rows.ROWS[what](rows.Node(lambda: kernel, tmp_path))}
        assert (found[name]["open"], found[name]["half_open"]) == (1, 2)
    assert with_connections(Live(), kernel).connections == {(service.row.id, endpoint.row.id): 1}


def test_markdown_is_headed_by_the_node_that_was_found(tmp_path, capsys):
    (tmp_path / "all.yaml").write_text(service() + pool() + node("lb7"))
    assert main(["plan", str(tmp_path), "--live", "empty", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("**lb7**: Plan: ")


def test_ipv6_is_forwarded_only_where_it_is_needed_and_the_plan_says_what_that_means(fleet_of):
    name = Key(Sysctl.kind, "net/ipv6/conf/all/forwarding")
    fleet = fleet_of(Mode.DSR_L3)
    assert name not in desired_of(fleet).resources
    assert "IPV6" not in view(fleet, None, "").features
    pool = replace(fleet.pools[0], endpoints=(Endpoint(IPv6Address("2001:db8:2::11")),))
    six = replace(fleet, pools=(pool,))
    assert "IPV6" in view(six, None, "").features
    (change,) = (c for c in plan_for(FakeKernel(), desired_of(six)).changes if c.key == name)
    assert "accept_ra" in change.before.effect(change.after, Context())
    kernel = FakeKernel(sysctls={name.id: "1"})
    assert name not in {c.key for c in plan_for(kernel, desired_of(six)).changes}


def test_rows_of_both_families_read_back_from_a_snapshot(fleet_of):
    fleet = fleet_of(Mode.DSR_L3)
    vips = (IPv4Address("20.20.20.1"), IPv6Address("2001:db8:20::1"))
    endpoints = (Endpoint(IPv6Address("2001:db8:2::11")), Endpoint(IPv6Address("2001:db8:2::12"), 80))
    fleet = replace(
        fleet, services=(replace(fleet.services[0], vips=vips),), pools=(replace(fleet.pools[0], endpoints=endpoints),)
    )
    desired = desired_of(fleet)
    assert {"[2001:db8:20::1]:80/tcp", "2001:db8:20::1", "[2001:db8:2::12]:80", "2001:db8:2::11"} <= {
        key.id for key in desired.resources
    }
    live = Live(desired.resources)
    assert live_from_json(json.loads(json.dumps(live_to_json(live)))) == live


def test_a_row_that_lost_its_ipv6_address_is_nobodys_and_is_mended(fleet_of):
    fleet = fleet_of(Mode.DSR_L3)
    endpoints = tuple(Endpoint(IPv6Address(f"2001:db8:2::1{i}")) for i in (1, 2))
    desired = desired_of(replace(fleet, pools=(replace(fleet.pools[0], endpoints=endpoints),)))
    kernel = FakeKernel()
    apply(plan_for(kernel, desired), kernel).raise_if_failed()
    kernel.maps[ENDPOINTS6.name].clear()
    changed = {c.key.kind for c in plan_for(kernel, desired).changes}
    assert changed == {"endpoint", "ring"}
    apply(plan_for(kernel, desired), kernel).raise_if_failed()
    assert plan_for(kernel, desired).changes == ()


def test_an_address_that_can_not_be_written_makes_no_row(fleet_of):
    fleet = fleet_of(Mode.DSR_L3)
    endpoints = (Endpoint(IPv6Address("2001:db8:2::11")), Endpoint(IPv4Address("10.2.0.11")))
    desired = desired_of(replace(fleet, pools=(replace(fleet.pools[0], endpoints=endpoints),)))
    kernel = FakeKernel()
    update = kernel.update
    kernel.update = lambda name, rows: (
        [OSError("no")] * len(rows) if name == ENDPOINTS6.name else update(name, rows)
    )  # fmt: skip
    seen = []
    kernel.on_write = lambda: seen.append(len(kernel.maps.get(ENDPOINTS.name, {})))
    result = apply(plan_for(kernel, desired), kernel)
    assert set(result.failed) == {Key("endpoint", "2001:db8:2::11")}
    assert max(seen) == 1  # that of the IPv4 endpoint


def test_the_program_has_the_modes_and_protocols_of_its_services(fleet_of):
    fleet = fleet_of(Mode.DSR_L2)
    (service,) = fleet.services
    both = (replace(service, protocol=Protocol.UDP), replace(service, mode=Mode.DSR_L3, protocol=Protocol.SCTP))
    assert view(fleet, None, "").features == ("DSR_L2", "ECHO", "FRAGMENTS", "MAGLEV")
    both_have = ("DSR_L2", "DSR_L3", "ECHO", "FRAGMENTS", "MAGLEV", "SCTP", "UDP")
    assert view(replace(fleet, services=both), None, "").features == both_have


def test_slots_are_as_many_as_the_pool_asks_for(fleet_of):
    fleet = fleet_of(Mode.DSR_L2)
    fleet = replace(fleet, pools=(replace(fleet.pools[0], ring_size=65_537),))
    ring = desired_of(fleet).resources[Key("ring", "web/maglev")]
    assert ring.array.size == 65_537
    assert Change(ring.key, None, ring).after.describe()["slots"] == "65,537"
