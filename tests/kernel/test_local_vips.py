# SPDX-License-Identifier: Apache-2.0
"""VIPs on the loopback of a namespace, in both forms, beside addresses and routes of other people."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest
from pyroute2 import IPRoute

from reconciler.errors import ForeignError
from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import LocalVip
from reconciler.kernel.real import RealKernel

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("inside")]

ROUTE = LocalVip("20.20.20.1", "route")
ADDRESS = LocalVip("20.20.20.2", "address")
ROUTE6 = LocalVip("2001:db8:20::1", "route")
ADDRESS6 = LocalVip("2001:db8:20::2", "address")


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


def local_routes() -> dict[str, str]:
    """Destination → protocol."""
    shown = (ip("-N", family, "-j", "route", "show", "table", "255", "type", "local") for family in ("-4", "-6"))
    routes = [route for text in shown for route in json.loads(text or "[]")]
    return {route["dst"]: route.get("protocol", "boot") for route in routes}


def test_a_route_carries_our_protocol_and_makes_the_node_answer(kernel: RealKernel) -> None:
    assert kernel.add_local_vips([ROUTE]) == [None]
    assert local_routes()[ROUTE.address] == str(protocol_of("lbk"))
    with socket.create_server((ROUTE.address, 0)) as server:
        socket.create_connection(server.getsockname(), timeout=10).close()
    assert kernel.local_vips() == [ROUTE]
    assert kernel.remove_local_vips([ROUTE]) == [None]
    assert ROUTE.address not in local_routes()
    with pytest.raises(OSError, match="Cannot assign requested address"):
        socket.create_server((ROUTE.address, 0))


def test_an_address_is_on_the_loopback_and_ours(kernel: RealKernel) -> None:
    assert kernel.add_local_vips([ADDRESS]) == [None]
    (loopback,) = json.loads(ip("-j", "addr", "show", "dev", "lo"))
    assert [(a["local"], a["prefixlen"]) for a in loopback["addr_info"] if a["family"] == "inet"][-1] == (
        ADDRESS.address, 32,
    )  # fmt: skip
    assert kernel.local_vips() == [ADDRESS]
    assert kernel.foreign_addresses([ADDRESS.address]) == {}
    assert kernel.remove_local_vips([ADDRESS]) == [None]
    assert kernel.local_vips() == []


def test_an_ipv6_route_carries_our_protocol_and_makes_the_node_answer(kernel: RealKernel) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        vip = (ROUTE6.address, server.getsockname()[1])
        with pytest.raises(OSError, match="Network is unreachable"):
            socket.create_connection(vip, timeout=10)
        assert kernel.add_local_vips([ROUTE6]) == [None]
        assert local_routes()[ROUTE6.address] == str(protocol_of("lbk"))
        socket.create_connection(vip, timeout=10).close()
        assert kernel.local_vips() == [ROUTE6]
        assert kernel.remove_local_vips([ROUTE6]) == [None]
        with pytest.raises(OSError, match="Network is unreachable"):
            socket.create_connection(vip, timeout=10)


def test_an_ipv6_address_is_there_at_once_and_ours(kernel: RealKernel) -> None:
    """Without the search for duplicates, during which nobody could use it."""
    assert kernel.add_local_vips([ADDRESS6]) == [None]
    (loopback,) = json.loads(ip("-6", "-j", "addr", "show", "dev", "lo"))
    (found,) = (a for a in loopback["addr_info"] if a["local"] == ADDRESS6.address)
    assert found["prefixlen"] == 128
    assert not found.get("tentative")
    assert kernel.local_vips() == [ADDRESS6]
    assert kernel.foreign_addresses([ADDRESS6.address]) == {}
    assert kernel.remove_local_vips([ADDRESS6]) == [None]
    assert kernel.local_vips() == []


def test_somebody_elses_reader_sees_our_mark_on_both_forms(kernel: RealKernel) -> None:
    """pyroute2 speaks netlink by itself, and shows the protocol of addresses, which iproute2 6.1 does not."""
    kernel.add_local_vips([ROUTE, ADDRESS, ROUTE6, ADDRESS6])
    for family, route, address in ((socket.AF_INET, ROUTE, ADDRESS), (socket.AF_INET6, ROUTE6, ADDRESS6)):
        with IPRoute() as reader:
            marks = {a.get_attr("IFA_ADDRESS"): a.get_attr("IFA_PROTO") for a in reader.get_addr(family=family)}
            held = reader.get_routes(family=family, table=255, proto=protocol_of("lbk"))
            routes = {route.get_attr("RTA_DST") for route in held}
        assert marks[address.address] == protocol_of("lbk")
        assert route.address in routes


def test_adding_twice_and_removing_what_is_absent_are_no_errors(kernel: RealKernel) -> None:
    all_ = [ROUTE, ADDRESS, ROUTE6, ADDRESS6]
    assert kernel.add_local_vips([*all_, *all_]) == [None] * 8
    assert kernel.add_local_vips(all_) == [None] * 4
    assert sorted(kernel.local_vips()) == sorted(all_)
    assert kernel.remove_local_vips([*all_, *all_]) == [None] * 8
    assert kernel.remove_local_vips(all_) == [None] * 4
    assert kernel.local_vips() == []


@pytest.mark.parametrize("address", ["20.20.20.3", "2001:db8:20::3"])
@pytest.mark.parametrize(("old", "new"), [("route", "address"), ("address", "route")])
def test_a_vip_can_hold_both_forms_while_it_changes_from_one_to_the_other(
    kernel: RealKernel, old: str, new: str, address: str
) -> None:
    before, after = LocalVip(address, old), LocalVip(address, new)
    assert kernel.add_local_vips([before]) == [None]
    assert kernel.add_local_vips([after]) == [None]
    assert set(kernel.local_vips()) == {before, after}
    assert kernel.remove_local_vips([before]) == [None]
    assert kernel.local_vips() == [after]
    assert address in local_routes()


def test_other_peoples_addresses_and_routes_are_described_and_stay(kernel: RealKernel) -> None:
    ip("link", "add", "eth7", "type", "veth")
    ip("link", "set", "eth7", "up")
    ip("addr", "add", "20.20.20.10/24", "dev", "eth7")
    ip("addr", "add", "20.20.20.11/32", "dev", "lo")
    ip("route", "add", "local", "20.20.20.12/32", "dev", "lo", "proto", "static")
    ip("route", "add", "local", "20.20.21.0/24", "dev", "lo")
    asked = [f"20.20.20.{n}" for n in (10, 11, 12, 13)] + ["20.20.21.0"]
    owners = {
        "20.20.20.10": "address on eth7",
        "20.20.20.11": "address on lo",
        "20.20.20.12": "local route on lo, protocol static (4)",
    }
    assert kernel.foreign_addresses(asked) == owners
    assert kernel.local_vips() == []
    before = local_routes()
    for form in ("route", "address"):
        wanted = [LocalVip(address, form) for address in asked]
        outcomes = kernel.add_local_vips(wanted)
        assert [type(outcome) for outcome in outcomes] == [ForeignError] * 3 + [type(None)] * 2
        assert "address on eth7" in str(outcomes[0])
        assert kernel.remove_local_vips(wanted) == [None] * 5
    assert local_routes() == before
    assert kernel.foreign_addresses(asked) == owners


def test_other_peoples_ipv6_addresses_and_routes_are_described_and_stay(kernel: RealKernel) -> None:
    ip("link", "add", "eth7", "type", "veth")
    ip("link", "set", "eth7", "up")
    ip("addr", "add", "2001:db8:20::10/64", "dev", "eth7", "nodad")
    ip("addr", "add", "2001:db8:20::11/128", "dev", "lo")
    ip("-6", "route", "add", "local", "2001:db8:20::12/128", "dev", "lo", "proto", "static", "table", "local")
    asked = [f"2001:db8:20::{n}" for n in (10, 11, 12, 13)]
    owners = {
        "2001:db8:20::10": "address on eth7",
        "2001:db8:20::11": "address on lo",
        "2001:db8:20::12": "local route on lo, protocol static (4)",
    }
    assert kernel.foreign_addresses(asked) == owners
    assert kernel.local_vips() == []
    before = local_routes()
    for form in ("route", "address"):
        wanted = [LocalVip(address, form) for address in asked]
        outcomes = kernel.add_local_vips(wanted)
        assert [type(outcome) for outcome in outcomes] == [ForeignError] * 3 + [type(None)]
        assert kernel.remove_local_vips(wanted) == [None] * 4
    assert local_routes() == before
    assert kernel.foreign_addresses(asked) == owners


def test_thousands_in_one_call(kernel: RealKernel) -> None:
    vips = [LocalVip(f"30.{n >> 8}.{n & 255}.1", "route") for n in range(2_500)]
    vips += [LocalVip(f"2001:db8:30::{n + 1:x}", "route") for n in range(2_500)]
    assert kernel.add_local_vips(vips) == [None] * len(vips)
    assert sorted(kernel.local_vips()) == sorted(vips)
    assert kernel.foreign_addresses([vip.address for vip in vips]) == {}
    assert kernel.remove_local_vips(vips) == [None] * len(vips)
    assert kernel.local_vips() == []


def test_one_vip_that_fails_does_not_stop_the_others(kernel: RealKernel) -> None:
    ip("addr", "add", "30.0.0.5/32", "dev", "lo")
    vips = [LocalVip(f"30.0.0.{n}", "route") for n in range(1, 250)]
    outcomes = kernel.add_local_vips(vips)
    assert [vip.address for vip, outcome in zip(vips, outcomes, strict=True) if outcome] == ["30.0.0.5"]
    assert len(kernel.local_vips()) == 248
