# SPDX-License-Identifier: Apache-2.0
"""What is measured, what must come of it, and what Katran took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.bench.node import LARGE_RING, MANY_SERVICES, NODE_MAC, PORT, ROUTER_MAC, Group
from tests.bench.rounds import Stream
from tests.bench.variants import Variant

OURS, MOVING, BEFORE, LRU, NOTHING = "ours", "in transition", "… begun before", "LRU", "nothing"
KEPT = "all kept"
"""Names of programs: ours while rings stand still, and for services of which every slot is in transition, where
flows are remembered or began earlier; the baseline; the empty one. `KEPT` is in transition, with a memory made for as
many flows as there are (`Program.flows`)."""
FOR_SOME = "20,000 sources"
"""Ours, for a service that only clients in one of so many networks may use."""

KNOWN_FLOWS, MANY_FLOWS, NEW_FLOWS = 1 << 16, 1 << 20, 1 << 24
OUTER, OUTER6 = 20, 40
"""Bytes that tunnels put before a frame."""

CLIENT, CLIENT6, STRANGER, STRANGER6 = "198.18.0.0", "2001:db8:c::", "203.0.113.9", "2001:db8:7::"
PING = bytes(44)
PAYLOAD = Raw(PING)


@dataclass(frozen=True, slots=True)
class Program:
    """One of those that take turns in a case. What comes before the stream makes its flows known."""

    name: str
    variant: Variant
    stream: Stream
    before: Stream | None = None
    flows: int = 0
    """The capacity for flows of a node with a memory of its own; 0: it has that of all others."""


@dataclass(frozen=True, slots=True)
class Case:
    """Programs under the same load. `action` and `reason` are what all packets must get, without exception.

    `fills`: nothing of the stream is known, and the tables are full of it before anything is measured.
    `katran_ns` is what Katran took, net of the wrapper, by the same method on the same machine: the least and the most
    of several runs beside ours. Its flood guard was off, so that it stored each new flow.
    """

    name: str
    programs: tuple[Program, ...]
    action: XdpVerdict
    reason: Verdict | None = None
    fills: bool = False
    katran_ns: tuple[int, int] | None = None

    @property
    def stream(self) -> Stream:
        return self.programs[-1].stream


def cases(scale: int = 1) -> Iterator[Case]:
    """From the empty program to what costs the most. Tests have a larger scale, and so many times fewer flows."""
    for grows in (0, OUTER, OUTER6):
        name = f"empty program, {grows} bytes put before the frame" if grows else "empty program"
        yield Case(name, (_nothing(Stream(_request(Group.STEADY), grows=grows)),), XdpVerdict.TX)

    passed, answered = (XdpVerdict.PASS, None), (XdpVerdict.TX, Verdict.ECHO_ANSWERED)
    vip, vip6 = (str(group.first_vip) for group in (Group.STEADY, Group.STEADY6))
    for name, packet, (action, reason), katran_ns in (
        ("not for a VIP, IPv4", IP(src=CLIENT, dst=STRANGER) / _tcp("A"), passed, None),
        ("not for a VIP, IPv6", IPv6(src=CLIENT6, dst=STRANGER6) / _tcp("A"), passed, None),
        ("echo, IPv4", IP(src=CLIENT, dst=vip) / ICMP(id=7, seq=1) / PAYLOAD, answered, (6, 6)),
        ("echo, IPv6", IPv6(src=CLIENT6, dst=vip6) / ICMPv6EchoRequest(id=7, seq=1, data=PING), answered, None),
    ):
        stream = Stream(_frame(packet))
        programs = (Program(OURS, Variant.OURS, stream), _nothing(stream))
        yield Case(name, programs, action, reason, katran_ns=katran_ns)

    for name, flows, services, is_ipv6, katran_ns in (
        ("1 flow, IPv4", 1, 1, False, (65, 65)),
        ("64k flows, IPv4", KNOWN_FLOWS, 1, False, None),
        ("1M flows, IPv4", MANY_FLOWS, 1, False, (271, 280)),
        ("1M flows, 512 services, IPv4", MANY_FLOWS, MANY_SERVICES, False, (340, 346)),
        ("1 flow, IPv6", 1, 1, True, None),
        ("1M flows, IPv6", MANY_FLOWS, 1, True, None),
    ):
        yield _known(f"known, {name}", max(flows // scale, 1), services, is_ipv6, katran_ns)
    yield _large(MANY_FLOWS // scale)
    yield _kept(MANY_FLOWS // scale)
    stream = Stream(_frame(IP(src=CLIENT, dst=vip) / UDP(sport=1024, dport=PORT) / PAYLOAD), grows=OUTER)
    yield Case("known, 1 flow, UDP, IPv4", (
        Program(OURS, Variant.OURS, stream), Program(LRU, Variant.LRU, stream), _nothing(stream),
    ), XdpVerdict.TX, Verdict.REQUEST, katran_ns=(83, 90))  # fmt: skip
    stream = Stream(_request(Group.BEHIND), grows=OUTER)
    yield Case("known, 1 flow, IPv4, other interface", (
        Program(OURS, Variant.OURS, stream), Program(LRU, Variant.LRU, stream), _nothing(stream),
    ), XdpVerdict.REDIRECT, Verdict.REQUEST)  # fmt: skip
    for name, flows in (("1 flow", 1), ("64k flows", KNOWN_FLOWS)):
        stream = Stream(_request(Group.STEADY), max(flows // scale, 1), grows=OUTER)
        programs = (Program(OURS, Variant.OURS, stream), _nothing(stream))
        yield Case(f"ring only, {name}, IPv4", programs, XdpVerdict.TX, Verdict.REQUEST)

    for is_ipv6, everybody, some in ((False, Group.STEADY, Group.ALLOWED), (True, Group.STEADY6, Group.ALLOWED6)):
        family, flows = "IPv6" if is_ipv6 else "IPv4", max(MANY_FLOWS // scale, 1)
        streams = [Stream(_request(group), flows, grows=OUTER6 if is_ipv6 else OUTER) for group in (everybody, some)]
        yield Case(f"allowed sources, 1M flows, {family}", (
            Program(OURS, Variant.OURS, streams[0]), Program(FOR_SOME, Variant.OURS, streams[1]), _nothing(streams[0]),
        ), XdpVerdict.TX, Verdict.REQUEST)  # fmt: skip
    stream = Stream(_request(Group.CLOSED), max(MANY_FLOWS // scale, 1))
    programs = (Program(FOR_SOME, Variant.OURS, stream), _nothing(stream))
    yield Case("not allowed, 1M flows, IPv4", programs, XdpVerdict.DROP, Verdict.NOT_ALLOWED)

    yield _new("new (SYN), 16M flows, IPv4", "S", False, (1055, 1055), scale)
    yield _new("new (SYN), 16M flows, IPv6", "S", True, None, scale)
    yield _new("new (no SYN), 16M flows, IPv4", "A", False, None, scale)


def _known(name: str, flows: int, services: int, is_ipv6: bool, katran_ns: tuple[int, int] | None) -> Case:
    """What is in transition is remembered from its SYN on, or not at all if it began earlier."""

    def stream(group: Group, flags: str = "A") -> Stream:
        return Stream(_request(group, flags), flows, services, OUTER6 if is_ipv6 else OUTER)

    steady, moving = (Group.STEADY6, Group.MOVING6) if is_ipv6 else (Group.STEADY, Group.MOVING)
    shifted = replace(stream(moving), frame=_request(moving, "A", client=1))
    return Case(name, (
        Program(OURS, Variant.OURS, stream(steady)),
        Program(MOVING, Variant.OURS, stream(moving), before=stream(moving, "S")),
        Program(BEFORE, Variant.OURS, shifted),
        Program(LRU, Variant.LRU, stream(steady), before=stream(steady, "S")),
        _nothing(stream(steady)),
    ), XdpVerdict.TX, Verdict.REQUEST, katran_ns=katran_ns)  # fmt: skip


def _large(flows: int) -> Case:
    """As many slots as Katran's rings have."""
    stream = Stream(_request(Group.LARGE), flows, MANY_SERVICES, OUTER)
    before = replace(stream, frame=_request(Group.LARGE, "S"))
    return Case(f"known, 1M flows, 512 services, {LARGE_RING:,} slots, IPv4", (
        Program(OURS, Variant.OURS, stream),
        Program(LRU, Variant.LRU, stream, before=before),
        _nothing(stream),
    ), XdpVerdict.TX, Verdict.REQUEST)  # fmt: skip


def _kept(flows: int) -> Case:
    """In a transition on a node that is made for as many flows as it has."""
    steady, moving = (Stream(_request(group), flows, 1, OUTER) for group in (Group.STEADY, Group.MOVING))
    return Case("known, 1M flows, node made for 1M, IPv4", (
        Program(KEPT, Variant.OURS, moving, replace(moving, frame=_request(Group.MOVING, "S")), flows),
        Program(LRU, Variant.LRU, steady, replace(steady, frame=_request(Group.STEADY, "S"))),
        _nothing(steady),
    ), XdpVerdict.TX, Verdict.REQUEST, katran_ns=(271, 280))  # fmt: skip


def _new(name: str, flags: str, is_ipv6: bool, katran_ns: tuple[int, int] | None, scale: int) -> Case:
    def stream(group: Group) -> Stream:
        # Clients of their own, so that no table knows them from another case.
        client = 3 if flags == "S" else 2
        return Stream(_request(group, flags, client), NEW_FLOWS // scale, 1, OUTER6 if is_ipv6 else OUTER)

    steady, moving = (Group.STEADY6, Group.MOVING6) if is_ipv6 else (Group.STEADY, Group.MOVING)
    return Case(name, (
        Program(OURS, Variant.OURS, stream(steady)),
        Program(MOVING, Variant.OURS, stream(moving)),
        Program(LRU, Variant.LRU, stream(steady)),
        _nothing(stream(steady)),
    ), XdpVerdict.TX, Verdict.REQUEST, True, katran_ns)  # fmt: skip


def _nothing(stream: Stream) -> Program:
    return Program(NOTHING, Variant.NOTHING, stream)


def _request(group: Group, flags: str = "A", client: int = 0) -> bytes:
    """Of the first flow to the first service of a group. Clients of other numbers have other addresses."""
    vip = str(group.first_vip)
    if group.is_ipv6:
        return _frame(IPv6(src=f"2001:db8:c:{client}::", dst=vip) / _tcp(flags))
    return _frame(IP(src=f"198.{18 + client}.0.0", dst=vip) / _tcp(flags))


def _tcp(flags: str) -> Packet:
    return TCP(sport=1024, dport=PORT, flags=flags) / PAYLOAD


def _frame(packet: Packet) -> bytes:
    return bytes(Ether(src=ROUTER_MAC, dst=NODE_MAC) / packet)
