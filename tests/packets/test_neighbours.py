# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose MAC nobody knows: the kernel, given what the program passes on, really asks for it."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from reconciler.dataplane.layout import AlgorithmCode, ModeCode
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    NODE_MACS,
    STRANGER,
    STRANGER6,
    WEB,
    Balancer,
    inside,
    ip,
)
from tests.packets.frames import At, tcp, tcp6

pytestmark = pytest.mark.kernel

ALL_PROTOCOLS = 0x0003
LIMIT_S = 10
MAC = "02:02:00:00:00:99"
SERVICE6 = At("2001:db8:20::1", 80)


@pytest.fixture
def wire(balancer: Balancer) -> Iterator[Callable[[bytes], None]]:
    """Puts a frame on the wire to `front`, which runs the program."""
    with inside(balancer.netns):
        balancer.kernel.attach("front", "native", None)
        program = balancer.kernel.loaded_program()
        assert program
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("front-far", 0))
            yield lambda content: _put(sender, content)
        balancer.kernel.detach("front", "native", program.id)


def _put(sender: socket.socket, content: bytes) -> None:
    packet = Ether(content)
    packet.dst = NODE_MACS["front"]
    sender.send(bytes(packet))


def heard_on_back(balancer: Balancer, send: Callable[[], None], wanted: Callable[[Packet], bool]) -> Packet:
    """The first frame of this kind that leaves by `back` after something was sent."""
    with inside(balancer.netns):
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    with listener:
        listener.bind(("back-far", ALL_PROTOCOLS))
        send()
        deadline = time.monotonic() + LIMIT_S
        while select.select([listener], [], [], max(deadline - time.monotonic(), 0))[0]:
            packet = Ether(listener.recv(4096))
            if packet.src == NODE_MACS["back"] and wanted(packet):
                return packet
    raise AssertionError("nothing of the kind was heard")


def asks_for(packet: Packet) -> bool:
    return (ARP in packet and packet[ARP].pdst == STRANGER) or (
        ICMPv6ND_NS in packet and packet[ICMPv6ND_NS].tgt == STRANGER6
    )


def learn(balancer: Balancer, address: str) -> None:
    """What an answer to the question does."""
    ip("-n", balancer.netns, "neigh", "replace", address, "lladdr", MAC, "dev", "back", "nud", "reachable")


CASES = {
    "dsr-l2": (ModeCode.DSR_L2, WEB, STRANGER, tcp(CLIENT, WEB)),
    "dsr-l3": (ModeCode.DSR_L3, WEB, STRANGER, tcp(CLIENT, WEB)),
    "dsr-l2, IPv6": (ModeCode.DSR_L2, SERVICE6, STRANGER6, tcp6(At(CLIENT6, 40_000), SERVICE6)),
    "dsr-l3, IPv6": (ModeCode.DSR_L3, SERVICE6, STRANGER6, tcp6(At(CLIENT6, 40_000), SERVICE6)),
    "dsr-l3, IPv4 in IPv6": (ModeCode.DSR_L3, WEB, STRANGER6, tcp(CLIENT, WEB)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_packet_for_an_unknown_neighbour_makes_the_kernel_ask_for_it(
    balancer: Balancer, wire: Callable[[bytes], None], name: str
) -> None:
    mode, service, endpoint, content = CASES[name]
    balancer.settings("10.2.0.1", source6="2001:db8:2::1")
    balancer.endpoint(1, endpoint)
    balancer.serve(service, [1], algorithm=AlgorithmCode.MAGLEV, mode=mode)
    ip("-n", balancer.netns, "neigh", "flush", "dev", "back", "to", endpoint)
    heard_on_back(balancer, lambda: wire(content), asks_for)

    learn(balancer, endpoint)
    try:
        action, out = balancer.send(content)
        assert action == XdpVerdict.REDIRECT
        assert Ether(out).dst == MAC
    finally:
        ip("-n", balancer.netns, "neigh", "del", endpoint, "dev", "back")


@pytest.mark.parametrize("name", [name for name, (mode, *_) in CASES.items() if mode is ModeCode.DSR_L3])
def test_what_went_by_the_kernel_into_a_tunnel_arrives_once_the_neighbour_is_known(
    balancer: Balancer, wire: Callable[[bytes], None], name: str
) -> None:
    mode, service, endpoint, content = CASES[name]
    balancer.settings("10.2.0.1", source6="2001:db8:2::1")
    balancer.endpoint(1, endpoint)
    balancer.serve(service, [1], algorithm=AlgorithmCode.MAGLEV, mode=mode)
    ip("-n", balancer.netns, "neigh", "flush", "dev", "back", "to", endpoint)
    heard_on_back(balancer, lambda: wire(content), asks_for)
    try:
        arrived = heard_on_back(
            balancer,
            lambda: learn(balancer, endpoint),
            lambda packet: packet.dst == MAC,
        )
        outer = arrived[IPv6] if IPv6 in arrived and ":" in endpoint else arrived[IP]
        assert outer.dst == endpoint
        assert bytes(outer.payload)[-20:] == content[-20:]
    finally:
        ip("-n", balancer.netns, "neigh", "del", endpoint, "dev", "back")
