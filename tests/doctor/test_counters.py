# SPDX-License-Identifier: Apache-2.0
"""Packets that are dropped for where they come from, and redirects, are told of while they happen, and not later."""

from __future__ import annotations

import socket
import struct
import subprocess
from ipaddress import ip_address

import pytest

from reconciler.doctor import counters
from reconciler.doctor.counters import Watch
from reconciler.kernel import echo
from reconciler.model import Interface, Node
from tests.kernel.conftest import entered, namespace  # noqa: F401 - a fixture

pytestmark = pytest.mark.kernel

NODE = Node("lb1", (Interface("here"),))
OWN, NEAR, FAR = "10.6.0.1", "10.6.0.2", "198.51.100.7"


@pytest.fixture
def other(namespace, monkeypatch):  # noqa: F811
    """A machine beside that of the namespace; its name."""
    monkeypatch.setattr(counters, "LOOK_S", 0.0)
    name = f"{namespace}-b"
    ip("netns", "add", name)
    try:
        ip("link", "add", "here", "netns", namespace, "type", "veth", "peer", "there", "netns", name)
        for place, device, address in ((namespace, "here", OWN), (name, "there", NEAR)):
            ip("-n", place, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", place, "link", "set", device, "up")
        sysctl(namespace, "net.ipv4.conf.here.rp_filter=1", "net.ipv4.conf.here.accept_redirects=1")
        with entered(name):
            assert echo.answers(ip_address(OWN), 100, tries=100)  # both know each other's MAC from here on
        yield name
    finally:
        ip("netns", "del", name)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


def sysctl(place, *settings):
    ip("netns", "exec", place, "sysctl", "-qw", *settings)


def send(other, source, protocol, content):
    """One packet to the node, with any source."""
    with entered(other), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        addresses = socket.inet_aton(source) + socket.inet_aton(OWN)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 1, 0, 64, protocol, 0)
        sock.sendto(header + addresses + content, (OWN, 0))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def redirect():
    """That packets of the node to a far host shall go by another router."""
    inner = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, socket.IPPROTO_UDP, 0)
    inner += socket.inet_aton(OWN) + socket.inet_aton(FAR) + bytes(8)
    body = socket.inet_aton("10.6.0.3") + inner
    message = struct.pack("!BBH", 5, 1, 0) + body
    return struct.pack("!BBH", 5, 1, checksum(message)) + body


def found(watch):
    """Without martians, which are counted for the whole machine."""
    return [each.name for each in watch.findings(NODE) if each.name != "martians-dropped"]


def test_what_is_dropped_for_its_interface_is_told_while_it_happens(namespace, other):  # noqa: F811
    with entered(namespace):
        watch = Watch()
        assert found(watch) == []
        send(other, FAR, socket.IPPROTO_UDP, bytes(8))  # no route of the node leads back there
        assert found(watch) == ["packets-from-elsewhere"]
        assert found(Watch()) == []


def test_redirects_that_come_are_told(namespace, other):  # noqa: F811
    with entered(namespace):
        watch = Watch()
        send(other, NEAR, socket.IPPROTO_ICMP, redirect())
        assert found(watch) == ["redirects-seen"]


def test_packets_from_the_nodes_own_address_are_told(namespace, other):  # noqa: F811
    """As replies of another machine that has the same VIP: no counter of the namespace's own knows them."""
    with entered(namespace):
        watch = Watch()
        send(other, OWN, socket.IPPROTO_UDP, bytes(8))
        told = {each.name: each.evidence for each in watch.findings(NODE)}
        assert "impossible source" in told["martians-dropped"]
        assert "packets-from-elsewhere" not in told
