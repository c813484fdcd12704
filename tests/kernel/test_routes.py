# SPDX-License-Identifier: Apache-2.0
"""Routes of ours beside those of other people, and the routers that these lead by."""

from __future__ import annotations

import pytest
from pyroute2 import IPRoute

from reconciler.errors import ForeignError, KernelError
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import Neighbour, Route
from reconciler.kernel.real import RealKernel

from .conftest import ip

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("device")]

HOLE, HOLE6 = Route("10.200.0.0/24"), Route("2001:db8:f::/64")
WAY = Route("100::6c62:6374:0:5/128", "fe80::1", "side")
OURS = protocol_of("lbk")


@pytest.fixture
def device(inside: str) -> None:
    ip("link", "add", "side", "type", "veth", "peer", "name", "far")
    for name in ("side", "far"):
        ip("link", "set", name, "up")
    ip("addr", "add", "10.4.0.1/24", "dev", "side")
    ip("addr", "add", "2001:db8:4::1/64", "dev", "side", "nodad")


def main_routes(protocol: int | None = None) -> set[tuple[str, str]]:
    """Network and kind of each route in the table `main`, read by somebody else's code."""
    with IPRoute() as route:
        found = [message for family in (2, 10) for message in route.get_routes(family=family, table=254)]
    types = {1: "unicast", 6: "blackhole"}
    return {
        (f"{message.get_attr('RTA_DST') or 'default'}/{message['dst_len']}", types[message["type"]])
        for message in found if protocol in (None, message["proto"])
    }  # fmt: skip


def test_routes_come_change_and_go(kernel: RealKernel) -> None:
    before = main_routes()
    wanted = [HOLE, HOLE6, WAY]
    assert kernel.add_routes(wanted) == [None] * 3
    assert kernel.add_routes(wanted) == [None] * 3
    assert sorted(kernel.routes()) == sorted(wanted)
    assert main_routes(OURS) == {
        ("10.200.0.0/24", "blackhole"), ("2001:db8:f::/64", "blackhole"), ("100::6c62:6374:0:5/128", "unicast"),
    }  # fmt: skip
    assert main_routes() == before | main_routes(OURS)
    other = Route(WAY.to, "fe80::2", "side")
    assert kernel.add_routes([other]) == [None]
    assert sorted(kernel.routes()) == sorted([HOLE, HOLE6, other])
    assert kernel.remove_routes([HOLE, HOLE6, other, HOLE]) == [None] * 4
    assert kernel.routes() == []
    assert main_routes() == before


def test_routes_of_others_stay_and_go_first(kernel: RealKernel) -> None:
    ip("route", "add", "10.200.0.0/24", "via", "10.4.0.9")
    ip("route", "add", "2001:db8:f::/64", "via", "2001:db8:4::9")
    before = main_routes()
    assert kernel.add_routes([HOLE, HOLE6]) == [None, None]
    assert "via 10.4.0.9" in ip("route", "get", "10.200.0.7")
    assert "via 2001:db8:4::9" in ip("-6", "route", "get", "2001:db8:f::7")
    assert kernel.remove_routes([HOLE, HOLE6]) == [None, None]
    assert kernel.remove_routes([HOLE, HOLE6]) == [None, None]
    assert main_routes() == before


def test_a_route_that_is_not_ours_is_never_replaced(kernel: RealKernel) -> None:
    ip("-6", "route", "add", WAY.to, "via", "fe80::7", "dev", "side", "metric", str(0x7FFFFFFF), "proto", "static")
    (outcome,) = kernel.add_routes([WAY])
    assert isinstance(outcome, ForeignError)
    assert "via fe80::7" in ip("-6", "route", "show", WAY.to)
    assert kernel.routes() == []


def test_one_that_fails_does_not_stop_the_others(kernel: RealKernel) -> None:
    outcomes = kernel.add_routes([Route(WAY.to, "fe80::1", "nowhere"), HOLE])
    assert isinstance(outcomes[0], KernelError)
    assert "no interface nowhere" in str(outcomes[0])
    assert outcomes[1] is None


def test_the_routers_of_all_routes_are_found_but_for_ours(kernel: RealKernel) -> None:
    assert kernel.next_hops() == []
    ip("route", "add", "default", "via", "10.4.0.254")
    for i in range(4):
        ip("route", "add", f"10.{50 + i}.0.0/16", "via", "10.4.0.253")
    ip("route", "add", "10.60.0.0/16", "nexthop", "via", "10.4.0.11", "nexthop", "via", "10.4.0.12", "weight", "2")
    ip("route", "add", "10.61.0.0/16", "via", "inet6", "fe80::61", "dev", "side")
    ip("route", "add", "10.62.0.0/16", "via", "10.4.0.62", "table", "77")
    ip("route", "add", "10.63.0.0/16", "dev", "side")
    ip("route", "add", "unreachable", "10.64.0.0/16")
    ip("-6", "route", "add", "default", "via", "fe80::fe", "dev", "side")
    both = ("nexthop", "via", "2001:db8:4::11", "nexthop", "via", "2001:db8:4::12")
    ip("-6", "route", "add", "2001:db8:60::/64", *both)
    assert kernel.add_routes([WAY]) == [None]
    assert {hop.address for hop in kernel.next_hops()} == {
        "10.4.0.254", "10.4.0.253", "10.4.0.11", "10.4.0.12", "fe80::61", "10.4.0.62", "fe80::fe", "2001:db8:4::11",
        "2001:db8:4::12",
    }  # fmt: skip
    assert {hop.interface for hop in kernel.next_hops()} == {"side"}
    ip("link", "set", "side", "arp", "off")
    assert kernel.next_hops() == []


def test_networks_are_those_of_addresses(kernel: RealKernel) -> None:
    assert {"10.4.0.0/24", "2001:db8:4::/64", "127.0.0.0/8", "::1/128"} <= set(kernel.networks())
    ip("addr", "add", "192.0.2.7", "peer", "192.0.2.8", "dev", "side")
    assert "192.0.2.7/32" in kernel.networks()
    assert Neighbour("10.4.0.254", "side") not in kernel.next_hops()


def test_the_kernel_tells_by_which_interface_and_where_it_has_no_way(kernel: RealKernel) -> None:
    assert kernel.add_routes([HOLE]) == [None]
    ways = {"10.4.0.9": "side", "10.4.0.1": "lo", "10.78.0.9": "", "10.200.0.9": "", "2001:db8:4::9": "side"}
    assert kernel.ways(list(ways)) == ways


def test_announcements_come_and_go_in_their_own_table_and_leave_those_of_others(kernel: RealKernel) -> None:
    wanted = [
        Route("10.99.0.1/32", "", "lo", 251, 100), Route("10.99.0.2/32", "", "lo", 251, 100),
        Route("2001:db8:99::1/128", "", "lo", 251, 100), Route("10.99.0.1/32", "", "lo", 100, 500),
    ]  # fmt: skip
    ip("route", "add", "10.99.0.3/32", "dev", "lo", "table", "251", "proto", "static")
    ip("route", "add", "10.99.0.2/32", "via", "10.4.0.9", "table", "251", "proto", "static", "metric", "7")
    others, main = ip("route", "show", "table", "251"), main_routes()
    assert kernel.add_routes(wanted) == [None] * 4
    assert kernel.add_routes(wanted) == [None] * 4
    assert sorted(kernel.announced_routes()) == sorted(wanted)
    assert kernel.routes() == []
    assert main_routes() == main
    assert f"10.99.0.1 dev lo proto {OURS} scope link metric 100" in ip("route", "show", "table", "251")
    assert kernel.remove_routes(wanted) == [None] * 4
    assert kernel.remove_routes(wanted) == [None] * 4
    assert kernel.announced_routes() == []
    assert ip("route", "show", "table", "251") == others


def test_an_announcement_in_the_place_of_somebody_elses_route_is_refused(kernel: RealKernel) -> None:
    ip("route", "add", "10.99.0.1/32", "dev", "side", "table", "251", "proto", "static", "metric", "100")
    (outcome,) = kernel.add_routes([Route("10.99.0.1/32", "", "lo", 251, 100)])
    assert isinstance(outcome, ForeignError)
    assert outcome.hint == "ip route show table 251 10.99.0.1/32"
    assert "dev side" in ip("route", "show", "table", "251")


def test_the_next_hops_of_a_route_are_told_all_of_them(kernel: RealKernel) -> None:
    ip("route", "add", "20.20.20.1/32", "nexthop", "via", "10.4.0.8", "nexthop", "via", "10.4.0.9")
    ip("nexthop", "add", "id", "7", "via", "10.4.0.7", "dev", "side")
    ip("nexthop", "add", "id", "8", "via", "10.4.0.8", "dev", "side")
    ip("nexthop", "add", "id", "9", "group", "7/8")  # as routing daemons make them
    ip("route", "add", "20.20.20.2/32", "nhid", "9")
    assert kernel.hops_to(["20.20.20.1", "20.20.20.2", "10.4.0.5", "203.0.113.1"]) == {
        "20.20.20.1": ["10.4.0.8", "10.4.0.9"], "20.20.20.2": ["10.4.0.7", "10.4.0.8"], "10.4.0.5": [],
        "203.0.113.1": [],
    }  # fmt: skip


def test_of_very_many_announcements_single_ones_are_found(kernel):
    told = [Route(f"10.{100 + n // 250}.0.{n % 250 + 1}/32", "", "lo", 251, 100) for n in range(3_000)]
    told.append(Route("2001:db8:99::1/128", "", "lo", 251, 100))
    assert not any(kernel.add_routes(told))
    for route in (told[0], told[1_234], told[2_999], told[3_000]):
        assert kernel.announced_routes({route.to.partition("/")[0]}) == [route]
    assert kernel.announced_routes({"10.9.9.9"}) == []
    assert len(kernel.announced_routes()) == 3_001
