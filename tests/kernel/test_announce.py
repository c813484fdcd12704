# SPDX-License-Identifier: Apache-2.0
"""VIPs inside a network of the node: its machines find them, and hear of it when they come."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from reconciler.kernel.mark import protocol_of
from reconciler.kernel.objects import LocalVip, Neighbour
from reconciler.kernel.real import RealKernel

from .conftest import entered, ip

pytestmark = pytest.mark.kernel

MAC, OTHER_MAC = "02:04:00:00:00:01", "02:04:00:00:00:99"
VIP, VIP6, FAR = "10.4.0.100", "2001:db8:4::100", "20.20.20.1"
PROXY = Neighbour(VIP6, "side")


@pytest.fixture
def client(inside: str) -> Iterator[str]:
    """A machine on the network of the node's `side`, to which VIPs are known by another MAC."""
    name = f"{inside}-far"
    ip("netns", "add", name)
    try:
        ip("link", "add", "side", "address", MAC, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "add", "other", "type", "veth", "peer", "name", "nobody")
        ip("link", "set", "other", "up")
        for here in ([], ["-n", name]):
            number = 2 if here else 1
            device = "eth0" if here else "side"
            ip(*here, "addr", "add", f"10.4.0.{number}/24", "dev", device)
            ip(*here, "addr", "add", f"2001:db8:4::{number}/64", "dev", device, "nodad")
            ip(*here, "link", "set", device, "up")
        for setting in ("proxy_ndp", "forwarding"):
            Path("/proc/sys/net/ipv6/conf/side", setting).write_text("1")
        deadline = time.monotonic() + 60
        while "multicast ff00::/8 dev eth0" not in ip("-n", name, "-6", "route", "show", "table", "all"):
            assert time.monotonic() < deadline  # the kernel hears of a link that carries something a little later
            time.sleep(0.05)
        yield name
    finally:
        ip("netns", "del", name)


def known_mac(client: str, vip: str) -> str:
    found = ip("-n", client, "neigh", "show", vip).split()
    return found[found.index("lladdr") + 1] if "lladdr" in found else ""


def test_proxies_come_and_go_and_those_of_others_stay(kernel: RealKernel, client: str) -> None:
    other = Neighbour("2001:db8:4::77", "side")
    ip("-6", "neigh", "add", "proxy", other.address, "dev", "side")
    assert kernel.neighbour_proxies() == ([], [other])
    assert kernel.add_neighbour_proxies([PROXY, other, PROXY]) == [None] * 3
    assert kernel.neighbour_proxies() == ([PROXY], [other])
    shown = ip("-6", "neigh", "show", "proxy")
    assert f"{VIP6} dev side proxy proto {protocol_of('lbk')}" in " ".join(shown.split())
    assert kernel.remove_neighbour_proxies([PROXY, other, PROXY]) == [None] * 3
    assert kernel.neighbour_proxies() == ([], [other])
    (outcome,) = kernel.add_neighbour_proxies([Neighbour(VIP6, "nowhere")])
    assert "no interface nowhere" in str(outcome)


def test_a_vip_on_the_loopback_is_found_by_neighbour_discovery(kernel: RealKernel, client: str) -> None:
    assert kernel.add_local_vips([LocalVip(VIP6, "route")]) == [None]
    assert kernel.add_neighbour_proxies([PROXY]) == [None]
    with entered(client), pytest.raises(ConnectionRefusedError):  # by the node, after the client found it
        socket.create_connection((VIP6, 9), timeout=10)
    assert known_mac(client, VIP6) == MAC


def test_the_machines_of_its_network_learn_where_a_vip_is_now(kernel: RealKernel, client: str) -> None:
    for vip in (VIP, VIP6):
        ip("-n", client, "neigh", "add", vip, "lladdr", OTHER_MAC, "dev", "eth0", "nud", "reachable")
    kernel.add_neighbour_proxies([PROXY])
    with entered(client):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with tap:
        kernel.announce([VIP, VIP6, FAR])
        tap.setblocking(False)
        frames = []
        while True:
            try:
                frames.append(Ether(tap.recv(2000)))
            except BlockingIOError:
                break
    told = [frame for frame in frames if ARP in frame and frame[ARP].psrc == VIP]
    assert {(f.dst, f.src, f[ARP].op, f[ARP].hwsrc, f[ARP].pdst) for f in told} == {
        ("ff:ff:ff:ff:ff:ff", MAC, 1, MAC, VIP)
    }  # fmt: skip
    assert len(told) == 3
    told = [frame for frame in frames if ICMPv6ND_NA in frame]
    assert len(told) == 3
    for frame in told:
        advert = frame[ICMPv6ND_NA]
        assert (frame.dst, frame[IPv6].dst, frame[IPv6].hlim) == ("33:33:00:00:00:01", "ff02::1", 255)
        assert (advert.tgt, advert.O, advert.S, advert[ICMPv6NDOptDstLLAddr].lladdr) == (VIP6, 1, 0, MAC)
        again = frame.copy()
        del again[ICMPv6ND_NA].cksum
        assert bytes(Ether(bytes(again))) == bytes(frame)
    assert not [frame for frame in frames if ARP in frame and frame[ARP].psrc == FAR]
    assert (known_mac(client, VIP), known_mac(client, VIP6)) == (MAC, MAC)


def test_nothing_is_told_where_no_network_has_the_vip(kernel: RealKernel, client: str) -> None:
    ip("-n", client, "neigh", "add", VIP6, "lladdr", OTHER_MAC, "dev", "eth0", "nud", "reachable")
    kernel.announce([FAR, VIP6, "2001:db8:20::1"])  # the kernel answers for none of these
    kernel.announce([])
    assert known_mac(client, VIP6) == OTHER_MAC
    assert known_mac(client, FAR) == ""
