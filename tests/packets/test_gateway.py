# SPDX-License-Identifier: Apache-2.0
"""The gateway of an interface: what comes in there and is for no network of the node leaves to it, the kernel's
routes or not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import AlgorithmCode, ModeCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kinds.gateway import Gateway, GatewayKind
from reconciler.kinds.gateway_route import GatewayRoute, GatewayRouteKind
from reconciler.resource import Change
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    NODE_MACS,
    ROUTER,
    STRANGER,
    STRANGER6,
    VIP,
    WEB,
    Balancer,
    by_mac,
    inside,
    ip,
    macs_towards,
    through_tunnel,
    to_client,
    to_endpoint,
)
from tests.packets.frames import ETHERNET, IPV4, MACS, At, answered, tcp, tcp6, tunnelled6
from tests.packets.test_forward import NOWHERE
from tests.packets.test_ipv6 import label

pytestmark = pytest.mark.kernel

GATEWAY, GATEWAY6 = ENDPOINTS_AT[2], ENDPOINTS6_AT[6]
"""Neighbours on `back`, and on no way to anywhere by the kernel's routes."""
FAR, FAR6 = "198.51.100.11", "2001:db8:44::11"
OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"
WEB6, SOURCE6 = At("2001:db8:20::1", 80), At(CLIENT6, 40_000)


@pytest.fixture(autouse=True)
def _far_endpoint(balancer: Balancer) -> None:
    balancer.settings(OWN, source6=OWN6)
    balancer.gateway("back", GATEWAY)
    balancer.endpoint(1, FAR)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)


def test_a_tunnel_leaves_to_the_gateway_of_the_interface_that_the_packet_came_in_by(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB, "A", b"hello")
    for _ in range(2):  # by a fresh answer of the FIB, and by one that is remembered
        assert balancer.send(content, "back") == (XdpVerdict.TX, through_tunnel(content, FAR, OWN, GATEWAY))
        assert balancer.send(content, "front") == (XdpVerdict.TX, through_tunnel(content, FAR, OWN, ROUTER))
    assert balancer.verdicts() == {Verdict.REQUEST: 4}


@pytest.mark.parametrize("address", NOWHERE.values(), ids=NOWHERE)
def test_the_kernels_routes_are_not_asked(balancer: Balancer, address: str) -> None:
    balancer.endpoint(1, address)
    content = tcp(CLIENT, WEB)
    assert balancer.send(content, "back") == (XdpVerdict.TX, through_tunnel(content, address, OWN, GATEWAY))


def test_an_endpoint_on_a_network_of_the_node_is_reached_without(balancer: Balancer) -> None:
    balancer.endpoint(1, ENDPOINTS_AT[3])
    content = tcp(CLIENT, WEB)
    assert balancer.send(content, "back") == (XdpVerdict.TX, through_tunnel(content, ENDPOINTS_AT[3], OWN))
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    assert balancer.send(content, "back") == (XdpVerdict.TX, by_mac(content, ENDPOINTS_AT[3]))


def test_no_gateway_brings_a_frame_to_the_mac_of_somebody_far(balancer: Balancer) -> None:
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L2)
    assert balancer.send(tcp(CLIENT, WEB), "back").verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.OFF_LINK: 1}


def test_a_gateway_serves_its_own_family(balancer: Balancer) -> None:
    balancer.endpoint(5, FAR6)
    balancer.serve(WEB6, [5], index=2, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    content = tcp6(SOURCE6, WEB6)
    kernels = tunnelled6(content, OWN6, FAR6, macs_towards("2001:db8:1::fe"), label(SOURCE6))
    assert balancer.send(content, "back") == (XdpVerdict.REDIRECT, kernels)


@pytest.fixture
def _ipv6(balancer: Balancer) -> None:
    balancer.gateway("back", GATEWAY6)
    balancer.endpoint(1, FAR6)
    balancer.serve(WEB6, [1], index=2, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)


@pytest.mark.usefixtures("_ipv6")
@pytest.mark.parametrize("address", [FAR6, "2001:db8:9::1"], ids=["default route", "blackhole"])
def test_tunnels_of_ipv6_leave_to_an_ipv6_gateway(balancer: Balancer, address: str) -> None:
    balancer.endpoint(1, address)
    content = tcp6(SOURCE6, WEB6)
    expected = tunnelled6(content, OWN6, address, macs_towards(GATEWAY6), label(SOURCE6))
    assert balancer.send(content, "back") == (XdpVerdict.TX, expected)


def test_for_a_gateway_without_a_known_mac_the_kernel_gets_something_to_ask_by(balancer: Balancer) -> None:
    balancer.gateway("back", STRANGER)
    for content in (tcp(CLIENT, WEB), tcp(CLIENT, WEB, "A", b"x" * 999, tos=8)):
        probe = Ether(src=MACS[0], dst=MACS[1]) / IP(
            src=CLIENT.address, dst=STRANGER, id=0, flags="DF", ttl=64
        ) / ICMP(type=0, id=0, seq=0)  # fmt: skip
        assert balancer.send(content, "back") == (XdpVerdict.PASS, bytes(probe))
    assert balancer.verdicts() == {Verdict.NEIGHBOUR_UNKNOWN: 2}
    assert balancer.traffic_of_endpoints() == {}


@pytest.mark.usefixtures("_ipv6")
@pytest.mark.parametrize("content", [tcp6(SOURCE6, WEB6), tcp(CLIENT, WEB, "A", b"hello")], ids=["IPv6", "IPv4"])
def test_for_an_ipv6_gateway_without_a_known_mac_too(balancer: Balancer, content: bytes) -> None:
    balancer.gateway("back", STRANGER6)
    action, out = balancer.send(content, "back")
    assert action == XdpVerdict.PASS
    ip = Ether(out)[IPv6]
    assert (ip.src, ip.dst, ip.nh, ip.plen, len(out)) == (OWN6, STRANGER6, 59, 0, ETHERNET + 40)
    assert balancer.verdicts() == {Verdict.NEIGHBOUR_UNKNOWN: 1}


def test_a_gateway_of_another_network_than_the_interfaces_is_none(balancer: Balancer) -> None:
    balancer.gateway("back", ROUTER)
    assert balancer.send(tcp(CLIENT, WEB), "back").verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.NO_ROUTE: 1}


def test_what_does_not_fit_is_told_to_the_sender(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB, "A", bytes(1500 - IPV4 - 20))
    assert balancer.send(content, "back") == (
        XdpVerdict.TX, answered(content, ICMP(type=3, code=4, nexthopmtu=1480), 504)
    )  # fmt: skip


# --- NAT ---------------------------------------------------------------------------------------------------------
def test_nat_takes_the_gateway_both_ways(balancer: Balancer) -> None:
    balancer.serve(ring=[1])
    client = At("203.0.113.9", 40_000)
    request = tcp(client, WEB)
    assert balancer.send(request, "back") == (XdpVerdict.TX, to_endpoint(request, At(FAR, 80), GATEWAY))
    reply = tcp(At(FAR, 80), client, "SA")
    assert balancer.send(reply, "back") == (XdpVerdict.TX, to_client(reply, At(VIP, 80), GATEWAY))
    near = tcp(CLIENT, WEB)
    assert balancer.send(near, "back") == (XdpVerdict.TX, to_endpoint(near, At(FAR, 80), GATEWAY))
    reply = tcp(At(FAR, 80), CLIENT, "SA")  # on the network of `front`
    assert balancer.send(reply, "back") == (XdpVerdict.REDIRECT, to_client(reply, At(VIP, 80)))


def test_nat_asks_for_an_unknown_gateway(balancer: Balancer) -> None:
    balancer.gateway("back", STRANGER)
    balancer.serve(ring=[1])
    action, out = balancer.send(tcp(CLIENT, WEB), "back")
    assert (action, Ether(out)[IP].dst) == (XdpVerdict.PASS, STRANGER)
    assert balancer.verdicts() == {Verdict.NEIGHBOUR_UNKNOWN: 1}


# --- a link-local gateway ----------------------------------------------------------------------------------------
LINK_LOCAL, OTHER_LINK_LOCAL = "fe80::ff:fe00:6", "fe80::99"
LINK_LOCAL_MAC = "02:02:00:00:00:f6"


@pytest.fixture
def link_local(balancer: Balancer) -> Iterator[Callable[[str], None]]:
    """Write the gateway of `back` by the kinds that lbctl writes it by; each has to read back as it was written."""
    kinds = (GatewayRouteKind(balancer.kernel), GatewayKind(balancer.kernel))

    def write(address: str) -> None:
        rows = GatewayRoute("back", ip_address(address)), Gateway("back", ip_address(address))
        with inside(balancer.netns):
            for kind, row in zip(kinds, rows, strict=True):
                assert kind.write([Change(row.key, None, row)]) == [None]
                assert kind.read({}).resources == (row,)

    known = ("lladdr", LINK_LOCAL_MAC, "dev", "back", "nud", "permanent")
    ip("-n", balancer.netns, "neigh", "replace", LINK_LOCAL, *known)
    balancer.endpoint(1, FAR6)
    balancer.serve(WEB6, [1], index=2, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    yield write
    with inside(balancer.netns):
        for kind in reversed(kinds):
            assert kind.write([Change(r.key, r, None) for r in kind.read({}).resources]) == [None]
            assert kind.read({}).resources == ()
        assert balancer.kernel.routes() == []


def test_tunnels_leave_to_a_link_local_gateway(balancer: Balancer, link_local: Callable[[str], None]) -> None:
    balancer.gateway("back", LINK_LOCAL)
    content = tcp6(SOURCE6, WEB6)
    assert balancer.send(content, "back").verdict == XdpVerdict.DROP  # the FIB knows nothing of such an address
    link_local(LINK_LOCAL)
    expected = tunnelled6(content, OWN6, FAR6, (NODE_MACS["back"], LINK_LOCAL_MAC), label(SOURCE6))
    for _ in range(2):
        assert balancer.send(content, "back") == (XdpVerdict.TX, expected)
    near = ENDPOINTS6_AT[7]
    balancer.endpoint(1, near)
    expected = tunnelled6(content, OWN6, near, macs_towards(near), label(SOURCE6))
    assert balancer.send(content, "back") == (XdpVerdict.TX, expected)


def test_for_a_link_local_gateway_without_a_known_mac_the_kernel_asks(
    balancer: Balancer, link_local: Callable[[str], None]
) -> None:
    link_local(OTHER_LINK_LOCAL)
    action, out = balancer.send(tcp6(SOURCE6, WEB6), "back")
    assert action == XdpVerdict.PASS
    destination = Ether(out)[IPv6].dst
    argv = ["ip", "-n", balancer.netns, "route", "get", destination]
    way = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
    assert f"via {OTHER_LINK_LOCAL} dev back" in way
