# SPDX-License-Identifier: Apache-2.0
"""The BGP part of FRR as a live object: what it is for balancers and routers, and how one becomes another."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.apply import apply
from reconciler.compile import compile_node
from reconciler.config.bgp import rendered
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.fake_frr import FakeDaemon
from reconciler.kernel.objects import MAIN_TABLE, Route
from reconciler.kinds.routing import ROUTING, edits, parsed
from reconciler.live import read_live
from reconciler.model import (
    LEAVING_METRIC,
    Announce,
    Bgp,
    CheckType,
    HealthCheck,
    Interface,
    Mode,
    Neighbor,
    Node,
    Role,
    Through,
)
from reconciler.plan import plan
from reconciler.resource import Desired, Key
from reconciler.support import unsupported
from reconciler.view import view
from tests.strategies import fake_source


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def face(name, *addresses):
    return Interface(name, addresses=tuple(map(ip_interface, addresses)))


OUTSIDE = Neighbor(ip_address("10.9.0.1"), 65099)


@pytest.fixture
def site(web_fleet):
    """Two balancers and a router in 10.1.0.0/24; the router has a neighbour of its own."""
    (node,) = web_fleet.nodes
    balancers = [
        replace(node, name=f"lb{n}", interfaces=(face("front", f"10.1.0.{n}/24"), face("back", f"10.2.0.{n}/24")),
                announce=Announce(), bgp=Bgp(65000 + n))
        for n in (1, 2)
    ]  # fmt: skip
    router = Node(
        "r1", (face("front", "10.1.0.254/24"), face("back", "10.9.0.254/24")), role=Role.ROUTER, multipath=2,
        bgp=Bgp(65000, bfd=False, hold_time_s=30.0, neighbors=(OUTSIDE,)),
    )  # fmt: skip
    return replace(web_fleet, nodes=(*balancers, router))


def desired(fleet, name):
    return compile_node(view(fleet, name, ""))


def bring(kernel, wanted):
    planned = plan(wanted, read_live(kernel, wanted.resources))
    apply(planned, kernel).raise_if_failed()
    left = plan(wanted, read_live(kernel, wanted.resources))
    assert not left.changes and not left.blocked
    return planned


def kernel():
    return FakeKernel(daemon=FakeDaemon())


def test_a_balancer_tells_its_own_vips_and_takes_nothing(site):
    text = rendered(view(site, "lb1", ""))
    assert "router bgp 65001\n bgp router-id 10.1.0.1\n" in text
    assert " neighbor 10.1.0.254 remote-as 65000\n neighbor 10.1.0.254 bfd\n" in text
    assert "  redistribute kernel route-map lbctl-own\n" in text
    assert "  neighbor 10.1.0.254 route-map lbctl-nothing in\n  neighbor 10.1.0.254 route-map lbctl-out out" in text
    assert text.count("remote-as") == 1  # balancers don't talk to each other


def test_a_router_takes_vips_from_balancers_by_several_paths_and_tells_others(site):
    text = rendered(view(site, "r1", ""))
    for number in (1, 2):
        assert f"  neighbor 10.1.0.{number} route-map lbctl-in in\n" in text
        assert f"  neighbor 10.1.0.{number} route-map lbctl-nothing out\n" in text
    assert "  neighbor 10.9.0.1 route-map lbctl-nothing in\n  neighbor 10.9.0.1 route-map lbctl-out out\n" in text
    assert "  maximum-paths 2" in text and " bgp always-compare-med\n" in text
    assert "redistribute" not in text and "import-table" not in text
    assert " bfd" not in text and " timers 10 30\n" in text


def test_who_leaves_says_so_in_the_way_of_rfc_8326_and_routers_heed_it(site):
    """Lines of a route map follow each other: by the metric of a drained balancer alone, before all else."""
    out, heard = (rendered(view(site, name, "")).split("route-map lbctl-")[1:] for name in ("lb1", "r1"))
    (leaving,) = [part for part in out if "match metric" in part]
    assert leaving.startswith("out permit 10\n") and f" match metric {LEAVING_METRIC}\n" in leaving
    assert " set community graceful-shutdown\n" in leaving
    (heeded,) = [part for part in heard if "match community lbctl-leaving" in part]
    assert heeded.startswith("in permit 10\n") and " set local-preference 0\n" in heeded
    text = rendered(view(site, "r1", ""))
    assert "bgp community-list standard lbctl-leaving seq 5 permit graceful-shutdown\n" in text


def test_settings_and_exactly_the_vips_reach_a_router(site):
    made = desired(site, "r1").resources
    assert Key("routing-prefix", "20.20.20.1") in made
    assert sum(key.kind == "routing-prefix" for key in made) == 1
    settings = {key.id: made[key].value for key in made if key.kind == "sysctl"}
    assert settings == {"net/ipv4/fib_multipath_hash_policy": "1", "net/ipv4/conf/all/send_redirects": "0"} | {
        f"net/ipv4/conf/{name}/{setting}": value
        for name in ("front", "back") for setting, value in (("forwarding", "1"), ("send_redirects", "0"))
    }  # fmt: skip


def test_what_it_takes_is_made_before_a_vip_is_announced_and_goes_after(site):
    node = kernel()
    bring(node, desired(site, "lb1"))
    writes = [name for name, _ in node.writes]
    assert writes[-1] == "add_route" and writes.count("load_routing") == 2
    node.writes.clear()
    bring(node, Desired())
    gone = [name for name, _ in node.writes if name in ("remove_route", "load_routing", "remove_vip")]
    assert gone[0] == "remove_route" and gone.count("load_routing") == 2
    assert node.daemon.paths == {}


def test_a_line_changed_by_hand_is_drift_and_set_back_alone(site):
    node, wanted = kernel(), desired(site, "r1")
    bring(node, wanted)
    node.daemon.type(["router bgp 65000", "address-family ipv4 unicast", "maximum-paths 1"])
    planned = bring(node, wanted)
    (change,) = planned.changes
    name = "router bgp 65000 / address-family ipv4 unicast / maximum-paths 2"
    assert name in change.after.describe() and name not in change.before.describe()
    typed = "router bgp 65000", "address-family ipv4 unicast", "maximum-paths 2", "exit-address-family", "exit"
    assert node.writes[-1] == ("load_routing", typed)


def test_a_router_is_asked_for_nothing_that_balancers_alone_do(site):
    (pool,) = site.pools
    checked = replace(pool, health_check=HealthCheck(CheckType.TCP, through=Through.VIP))
    assert unsupported(view(replace(site, pools=(checked,)), "r1", "")) == []


def test_every_line_is_one_that_a_saved_plan_may_ask_for(site):
    for name in ("lb1", "r1"):
        assert desired(site, name).resources[ROUTING].flaw == ""


def test_somebody_elses_bgp_and_all_else_is_left_alone(site):
    node = kernel()
    node.daemon.type(["router bgp 64999", "neighbor 10.1.0.9 remote-as 64998", "exit", "route-map mine permit 10"])
    wanted = desired(site, "r1")
    planned = plan(wanted, read_live(node, wanted.resources))
    assert planned.blocked[ROUTING] == "in the way: `router bgp 64999` in FRR, which is not lbctl's"
    apply(planned, node)
    assert node.daemon.text().count("64999") == 1
    node.daemon.type(["no router bgp 64999"])
    bring(node, wanted)
    bring(node, Desired())
    assert list(node.daemon.paths) == [("route-map mine permit 10",)]


def test_somebody_elses_bgp_is_taken_over_where_that_is_asked_for(site):
    node = kernel()
    node.daemon.type([
        "router bgp 65000", "neighbor 10.1.0.9 remote-as 64998", "exit", "route-map mine permit 10", "exit",
        "router bgp 64999 vrf red", "neighbor 10.7.0.9 remote-as 64998", "exit",
    ])  # fmt: skip
    node.adopts = True
    wanted = desired(site, "r1")
    planned = plan(wanted, read_live(node, wanted.resources))
    shown = planned.live.resources[ROUTING].describe()
    assert shown["router bgp 65000 / neighbor 10.1.0.9 remote-as 64998"] == "there"
    bring(node, wanted)
    assert "10.1.0.9" not in node.daemon.text()
    node.adopts = False
    assert not plan(wanted, read_live(node, wanted.resources)).changes
    bring(node, Desired())
    assert [path[0] for path in node.daemon.paths if len(path) == 1] == [
        "route-map mine permit 10", "router bgp 64999 vrf red",
    ]  # fmt: skip
    assert "10.7.0.9" in node.daemon.text()


def test_what_nobody_asks_for_is_not_taken_over(site):
    node = kernel()
    node.daemon.type(["router bgp 65000", "neighbor 10.1.0.9 remote-as 64998", "exit"])
    node.adopts = True
    before = node.daemon.text()
    without = replace(site, nodes=tuple(replace(each, bgp=None) for each in site.nodes))
    for wanted in (desired(without, "r1"), Desired()):
        bring(node, wanted)
        assert node.daemon.text() == before


def test_without_a_daemon_it_is_blocked_by_name(site):
    wanted = desired(site, "r1")
    planned = plan(wanted, read_live(FakeKernel(), wanted.resources))
    assert "no daemon bgpd of FRR runs here" in planned.blocked[ROUTING]


def test_a_daemon_that_may_not_be_asked_blocks_its_own_part_and_nothing_where_nobody_needs_it(site):
    closed = FakeKernel(daemon=FakeDaemon(is_closed=True))
    wanted = desired(site, "lb1")
    planned = plan(wanted, read_live(closed, wanted.resources))
    assert planned.blocked[ROUTING] == "FRR refuses: no right: frrvty"
    without = replace(site, nodes=tuple(replace(node, bgp=None) for node in site.nodes))
    wanted = desired(without, "lb1")
    apply(plan(wanted, read_live(closed, wanted.resources)), closed).raise_if_failed()
    assert not plan(wanted, read_live(closed, wanted.resources)).changes


def test_a_line_that_the_daemon_ignores_is_a_failure(site):
    node, wanted = kernel(), desired(site, "lb1")
    node.daemon.refuses = "redistribute"
    result = apply(plan(wanted, read_live(node, wanted.resources)), node)
    assert ROUTING in result.failed


configurations = st.builds(
    lambda asn, others, bfd, paths, hold_s: (asn, tuple(sorted(set(others))), bfd, paths, hold_s),
    st.sampled_from((65000, 65010)), st.lists(st.integers(1, 4), max_size=4), st.booleans(), st.integers(1, 3),
    st.sampled_from((9.0, 30.0)),
)  # fmt: skip


def text_of(configuration):
    asn, others, bfd, paths, hold_s = configuration
    neighbours = tuple(Neighbor(ip_address(f"10.9.0.{n}"), 65000 + n) for n in others)
    node = Node("r1", (face("back", "10.9.0.254/24"),), role=Role.ROUTER, multipath=paths,
                bgp=Bgp(asn, bfd=bfd, neighbors=neighbours, hold_time_s=hold_s))  # fmt: skip
    from reconciler.model import Fleet

    return rendered(view(Fleet(nodes=(node,)), None, ""))


@given(configurations, configurations)
def test_from_any_configuration_to_any_other(before, after):
    daemon = FakeDaemon()
    daemon.type(list(edits([], parsed(text_of(before)))))
    daemon.type(list(edits(set(daemon.paths), parsed(text_of(after)))))
    assert set(daemon.paths) == set(parsed(text_of(after)))


@pytest.fixture
def both(site):
    """The same site with IPv6 in the front network, and an IPv6 VIP besides."""
    (service,) = site.services
    nodes = [
        replace(n, interfaces=(replace(n.interfaces[0], addresses=(*n.interfaces[0].addresses, ip_interface(own))),
                               *n.interfaces[1:]))
        for n, own in zip(site.nodes, ("2001:db8:1::1/64", "2001:db8:1::2/64", "2001:db8:1::fe/64"), strict=True)
    ]  # fmt: skip
    service = replace(service, mode=Mode.DSR_L2, vips=(*service.vips, VIP6))
    return replace(site, nodes=tuple(nodes), services=(service,))


VIP6 = ip_address("2001:db8:20::1")


def multiprotocol(fleet):
    return replace(fleet, nodes=tuple(replace(n, bgp=replace(n.bgp, multiprotocol=True)) for n in fleet.nodes))


def test_ipv6_vips_have_sessions_of_their_own_over_ipv6(both):
    balancer, router = (rendered(view(both, name, "")) for name in ("lb1", "r1"))
    assert balancer.count("remote-as") == 2
    ipv4, ipv6 = balancer.partition(" address-family ipv6 unicast\n")[::2]
    assert "  redistribute kernel route-map lbctl-own6\n  neighbor 2001:db8:1::fe activate\n" in ipv6
    assert "  neighbor 2001:db8:1::fe route-map lbctl-out6 out" in ipv6
    assert "10.1.0.254" not in ipv6
    for way in ("in", "out"):  # nothing of IPv4 is told or taken there
        assert f"  neighbor 2001:db8:1::fe route-map lbctl-nothing {way}\n" in ipv4
    assert "  neighbor 2001:db8:1::2 route-map lbctl-in6 in\n" in router
    assert router.count("  maximum-paths 2") == 2 and " set ipv6 next-hop prefer-global\n" in router


def test_one_session_is_about_both_families_where_that_is_declared(both):
    text = rendered(view(multiprotocol(both), "lb1", ""))
    assert text.count("remote-as") == 1
    ipv6 = text.partition(" address-family ipv6 unicast\n")[2]
    assert "  neighbor 10.1.0.254 activate\n  neighbor 10.1.0.254 route-map lbctl-nothing in\n" in ipv6
    assert "  neighbor 10.1.0.254 route-map lbctl-out6 out" in ipv6


def test_where_frr_is_ours_vips_are_routes_of_main_which_come_last_and_go_first(both):
    node, wanted = kernel(), desired(both, "lb1")
    bring(node, wanted)
    assert node.announcements == {
        Route("20.20.20.1/32", "", "lo", MAIN_TABLE, 100), Route(f"{VIP6}/128", "", "lo", MAIN_TABLE, 100)
    }  # fmt: skip
    assert [name for name, _ in node.writes[-2:]] == ["add_route", "add_route"]
    assert "ipv6 prefix-list lbctl-vips seq" in node.daemon.text()
    for name in ("lb1", "r1"):
        for fleet in (both, multiprotocol(both)):
            assert desired(fleet, name).resources[ROUTING].flaw == ""
    bring(node, desired(multiprotocol(both), "lb1"))
    bring(node, desired(replace(both, services=()), "lb1"))
    assert node.announcements == set() and str(VIP6) not in node.daemon.text()
    bring(node, Desired())
    assert node.daemon.paths == {}
