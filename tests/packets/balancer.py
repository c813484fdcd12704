# SPDX-License-Identifier: Apache-2.0
"""The real program with its maps, in a namespace whose routes and neighbours are known.

    client 10.1.0.2, router 10.1.0.254 ── front [node] back ── endpoints 10.2.0.11 … 10.2.0.14
                                        10.1.0.1      10.2.0.1

Frames are handed to it with BPF_PROG_TEST_RUN, so nothing is ever sent.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reconciler.dataplane import endpoint_filter, rows
from reconciler.dataplane.endpoint_table import words_of
from reconciler.dataplane.layout import (
    BOUND,
    CHUNK_IDS,
    CONNECTIONS,
    CONNECTIONS6,
    CRC32C,
    ENDPOINT_COUNTERS,
    ENDPOINT_FILTER,
    ENDPOINTS,
    ENDPOINTS6,
    FRONTS,
    GATEWAYS,
    MAPS,
    MEMBERS,
    PROBER,
    REMEMBERED,
    RETURNS,
    RETURNS6,
    RING_CHUNKS,
    RING_TURNS,
    SEED,
    SERVED,
    SERVICE_CHANGES,
    SERVICE_COUNTERS,
    SERVICES,
    SERVICES6,
    SETTINGS,
    SNAT,
    SNAT6,
    STATELESS_MODES,
    TRANSLATED,
    TRANSLATED6,
    TRUNKS,
    VERDICTS,
    VIP_FILTER,
    VIPS,
    VIPS6,
    VLANS,
    AlgorithmCode,
    EchoCode,
    EndpointRowState,
    MapSpec,
    MapType,
    ModeCode,
    TooBigCode,
    UndefinedCode,
    Verdict,
)
from reconciler.dataplane.program import program_name
from reconciler.dataplane.row import COUNTER
from reconciler.dataplane.rows import Number
from reconciler.dataplane.source_nodes import canonical
from reconciler.dataplane.vip_filter import filter_of
from reconciler.kernel import bpf
from reconciler.kernel.port import Kernel, Row
from reconciler.kernel.real import RealKernel
from reconciler.kinds.sources import SourceList, SourceNames, SourcesKind
from reconciler.limits import Sizes
from reconciler.resource import Change
from reconciler.ring_store import in_transition, remove_rings
from tests.packets.frames import At, forwarded, translated, tunnelled
from tests.packets.table import Ends, Entry, Table
from tests.rings import write_rings

FEATURES = (
    "NAT", "FULLNAT", "DSR_L2", "DSR_L3", "UDP", "SCTP", "IPV6", "ROUND_ROBIN", "SOURCE_HASH", "MAGLEV",
    "LEAST_CONNECTIONS", "REJECT", "ECHO", "FORWARD_ECHO", "GATEWAY", "VLAN", "CHECKS", "ALLOWED_SOURCES", "NAT6",
    "FULLNAT6", "STATELESS", "FRAGMENTS", "AFFINITY",
)  # fmt: skip
"""All that the program has."""

TCP, UDP, SCTP = 6, 17, 132
ICMP, ICMPV6 = 1, 58
VIP = "20.20.20.1"
WEB = At(VIP, 80)
CLIENT = At("10.1.0.2", 40_000)
ROUTER = "10.1.0.254"
ENDPOINTS_AT = {1: "10.2.0.11", 2: "10.2.0.12", 3: "10.2.0.13", 4: "10.2.0.14"}
ENDPOINTS6_AT = {5: "2001:db8:2::15", 6: "2001:db8:2::16", 7: "2001:db8:2::17"}
CLIENT6, ROUTER6, STRANGER6 = "2001:db8:1::2", "2001:db8:1::fe", "2001:db8:2::99"
STRANGER = "10.2.0.99"
"""On the endpoints' network, with a MAC that nobody knows."""

NO_WAY = {
    "blackhole": "10.9.1.0/24", "unreachable": "10.9.2.0/24", "prohibit": "10.9.3.0/24", "throw": "10.9.4.0/24",
}  # fmt: skip
"""Routes that forward nothing: kind → network."""

NODE_MACS = {"front": "02:0f:00:00:00:01", "back": "02:0f:00:00:00:02"}
NEIGHBOURS = {CLIENT.address: ("front", "02:01:00:00:00:02"), ROUTER: ("front", "02:01:00:00:00:fe")} | {
    address: ("back", f"02:02:00:00:00:{id:02x}") for id, address in (ENDPOINTS_AT | ENDPOINTS6_AT).items()
} | {ROUTER6: ("front", "02:01:00:00:00:f6")}
"""Address → the interface that it is reached by, its MAC."""

DETOURS = (
    "from 20.20.20.7",
    "to 192.0.2.7 tos 0x10",
    "to 192.0.2.7 ipproto 6 sport 777",
    "to 192.0.2.7 ipproto 6 dport 777",
    "to 192.0.2.7 iif back",
)
"""What goes by endpoint 4, whatever other routes say: rules of `ip rule`."""

ROWS_USED = 48
"""Tests use the first rows of arrays only, so that not all need to be looked at."""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def to_endpoint(content: bytes, server: At, next_hop: str = "") -> bytes:
    """What a client's frame must be when it leaves for this endpoint, by a router or directly."""
    return forwarded(translated(content, destination=server), macs_towards(next_hop or server.address))


def to_client(content: bytes, vip: At, next_hop: str = CLIENT.address) -> bytes:
    """What an endpoint's frame must be when it leaves for the client, by a router or directly."""
    return forwarded(translated(content, source=vip), macs_towards(next_hop))


def by_mac(content: bytes, endpoint: str) -> bytes:
    """What a client's frame must be when it leaves for this endpoint with nothing but other MACs."""
    return forwarded(content, macs_towards(endpoint))


def through_tunnel(content: bytes, endpoint: str, source: str, next_hop: str = "") -> bytes:
    """What a client's frame must be when it leaves for this endpoint in a tunnel."""
    return tunnelled(content, source, endpoint, macs_towards(next_hop or endpoint))


def macs_towards(neighbour: str) -> tuple[str, str]:
    interface, mac = NEIGHBOURS[neighbour]
    return NODE_MACS[interface], mac


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """A network namespace as in the picture above."""
    ip("netns", "add", name)
    try:
        with inside(name):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for device, address, address6 in (
            ("front", "10.1.0.1/24", "2001:db8:1::1/64"), ("back", "10.2.0.1/24", "2001:db8:2::1/64"),
        ):  # fmt: skip
            far = f"{device}-far"
            ip("-n", name, "link", "add", device, "address", NODE_MACS[device], "type", "veth", "peer", far)
            ip("-n", name, "address", "add", address, "dev", device)
            ip("-n", name, "address", "add", address6, "dev", device, "nodad")
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", far, "up")
        for address, (device, mac) in NEIGHBOURS.items():
            ip("-n", name, "neigh", "add", address, "lladdr", mac, "dev", device, "nud", "permanent")
        ip("-n", name, "route", "add", "default", "via", ROUTER)
        ip("-n", name, "route", "add", "default", "via", ROUTER6)
        ip("-n", name, "route", "add", "blackhole", "2001:db8:9::/64")
        for kind, network in NO_WAY.items():
            ip("-n", name, "route", "add", kind, network)
        ip("-n", name, "route", "add", "default", "via", ENDPOINTS_AT[4], "table", "77")
        for rule in DETOURS:
            ip("-n", name, "rule", "add", *rule.split(), "table", "77")
        yield
    finally:
        ip("netns", "del", name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block in a network namespace."""
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{name}") as there:  # noqa: PTH123
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(here.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Traffic(NamedTuple):
    connections: int = 0
    request_packets: int = 0
    request_bytes: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0


class Balancer:
    """The loaded program and its maps. Until told otherwise, it has no VIP."""

    def __init__(self, kernel: Kernel, program: int, netns: str) -> None:
        self.kernel = kernel
        self.netns = netns
        self._program = program
        self.table = Table(kernel)
        with inside(netns):
            self._ifindex = {name: socket.if_nametoindex(name) for name in NODE_MACS}

    # --- what it is told -------------------------------------------------------------------------------
    def serve(
        self, at: At = WEB, ring: Sequence[int] = (), *, index: int = 1, target_port: int = 0,
        algorithm: AlgorithmCode = AlgorithmCode.ROUND_ROBIN, mode: ModeCode = ModeCode.NAT, protocol: int = TCP,
        sources: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """A VIP and a service with a ring of its own, which has the service's index."""
        self.ring(index, ring)
        self.vip(at.address)
        self.service(at, index=index, target_port=target_port, algorithm=algorithm, mode=mode, protocol=protocol,
                     sources=sources)  # fmt: skip

    def service(
        self, at: At, *, index: int, target_port: int, algorithm: AlgorithmCode, mode: ModeCode = ModeCode.NAT,
        protocol: int = TCP, ring: int = 0, sources: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """A service whose ring, until told otherwise, has its own index. `sources` are the networks of its clients."""
        allowed = self._sources(6 if ":" in at.address else 4, sources)
        value = SERVICES.value.pack(rows.Service(index, ring or index, target_port, mode, algorithm, *allowed))
        if mode in (ModeCode.NAT, ModeCode.FULLNAT, *STATELESS_MODES):
            self.front(index, at, target_port, protocol)
        self._write(SERVICES6 if ":" in at.address else SERVICES, (_service_key(at, protocol), value))

    def front(
        self, index: int, at: At, target_port: int = 0, protocol: int = TCP, idle: int = 0, affinity_s: int = 0
    ) -> None:
        """What clients see of a service of NAT; `idle` is how long a connection may be silent, in units."""
        version = ip_address(at.address).version
        vip = _packed(at.address).ljust(16, b"\0")
        row = rows.Front(vip, at.port, target_port, idle, protocol, version, affinity_s=affinity_s)
        self._write(FRONTS, FRONTS.pack(Number(index), row))

    def members(self, ring: int, ids: Sequence[int], number: int = 77) -> None:
        """The endpoints of a ring that clients may have again."""
        former = [key for key, _ in self.kernel.dump(MEMBERS.name) if MEMBERS.key.unpack(key).ring == ring]
        self.kernel.delete(MEMBERS.name, former)
        for id in (0, *ids):
            self._write(MEMBERS, MEMBERS.pack(rows.Member(ring, id), Number(number)))

    def serves(self, at: At, service: At, endpoint: int, protocol: int = TCP, until: int = 0) -> None:
        """What comes from there is this service's, whether the table knows it or not."""
        row = rows.Served(_packed(service.address), service.port, endpoint=endpoint, until=until)
        self._write(SERVED, (_service_key(at, protocol), SERVED.value.pack(row)))

    def _sources(self, version: int, networks: Sequence[str]) -> tuple[int, int]:
        """What a service's row says of these networks, which have a list of their own."""
        if not networks:
            return 0, 0
        wanted = SourceList(tuple(map(str, canonical(map(ip_network, networks)))))
        assert SourcesKind(self.kernel).write([Change(wanted.key, None, wanted)]) == [None]
        found = SourceNames(self.kernel).found(version, wanted.id)
        assert found
        return found

    def settings(
        self, source: str, spread: str = "0.0.0.0", too_big: TooBigCode = TooBigCode.ANSWER, *,
        source6: str = "::", spread6: str = "::",
    ) -> None:  # fmt: skip
        """What tunnels have for a source address, and which of its bits a hash of the flow replaces."""
        row = rows.Settings(_packed(source), _packed(spread), _packed(source6), _packed(spread6), too_big)
        self._write(SETTINGS, SETTINGS.pack(Number(0), row))

    def sources(self, *addresses: str, first_port: int = 1024, ports: int = 64_512, version: int = 4) -> None:
        """The addresses that fullnat has for sources, of one family, and how many ports from which on. `version` is
        for no address at all."""
        packed = b"".join(map(_packed, addresses))
        if version == 6 or any(":" in address for address in addresses):
            row6 = rows.Snat6(bytes(32), len(addresses), first_port, ports, packed.ljust(128, b"\0"))
            self._write(SNAT6, SNAT6.pack(Number(0), row6))
        else:
            row = rows.Snat(packed.ljust(32, b"\0"), len(addresses), first_port, ports)
            self._write(SNAT, SNAT.pack(Number(0), row))
        for address in addresses:
            self.vip(address, UndefinedCode.PASS)

    def vlan(self, trunk: str, tag: int, interface: str, *, egress_only: bool = False) -> None:
        """An interface that stands for a VLAN of another one, whatever it is to the kernel."""
        key, index = VLANS.pack(rows.Vlan(self._ifindex[trunk], tag), Number(self._ifindex[interface]))
        if not egress_only:
            self._write(VLANS, (key, index))
        self._write(TRUNKS, (index, key))

    def gateway(self, interface: str, address: str) -> None:
        packed = _packed(address)
        row = rows.Gateway(packed, len(packed) > 4)
        self._write(GATEWAYS, GATEWAYS.pack(Number(self._ifindex[interface]), row))

    def prober(self, interface: str, address: str, address6: str, mac: str) -> None:
        """Who checks endpoints through their VIPs, and the interface behind which it is."""
        packed = bytes.fromhex(mac.replace(":", ""))
        row = rows.Prober(self._ifindex[interface], _packed(address), _packed(address6), packed)
        self._write(PROBER, PROBER.pack(Number(0), row))

    def withdraw(self, at: At, protocol: int = TCP) -> None:
        self.kernel.delete((SERVICES6 if ":" in at.address else SERVICES).name, [_service_key(at, protocol)])

    def vip(
        self, address: str, undefined: UndefinedCode = UndefinedCode.DROP, echo: EchoCode = EchoCode.REPLY
    ) -> None:
        self._write(VIPS6 if ":" in address else VIPS, (_packed(address), VIPS.value.pack(rows.Vip(undefined, echo))))
        addresses = [key for spec in (VIPS, VIPS6) for key, _ in self.kernel.dump(spec.name)]
        self._write(VIP_FILTER, VIP_FILTER.pack(Number(0), rows.VipFilter(filter_of(addresses))))

    def endpoint(
        self, id: int, address: str = "", port: int = 0, state: EndpointRowState = EndpointRowState.USABLE
    ) -> None:
        place = ip_address(address or (ENDPOINTS_AT | ENDPOINTS6_AT)[id])
        if count := self.kernel.capacity(ENDPOINT_FILTER.name):
            held = endpoint_filter.lines_of(self.kernel.joined(ENDPOINT_FILTER.name), count)
            wanted = held | endpoint_filter.filter_of(words_of([place], [port]), count)
            assert not any(self.kernel.update(ENDPOINT_FILTER.name, endpoint_filter.changed(held, wanted)))
        packed = place.packed
        if len(packed) == len(bytes(16)):
            self._write(ENDPOINTS6, ENDPOINTS6.pack(Number(id), rows.Address(packed)))
            packed = bytes(4)
        self._write(ENDPOINTS, ENDPOINTS.pack(Number(id), rows.Endpoint(packed, port, state)))

    def ring(self, index: int, ids: Sequence[int]) -> None:
        assert write_rings(self.kernel, {index: np.array(ids, np.uint32)}, known=()) == {index: None}

    def turn(self, ring: int, taken: int) -> None:
        """How many turns were taken already."""
        self._write(RING_TURNS, RING_TURNS.pack(Number(ring), rows.Turns(taken)))

    def clear(self) -> None:
        """Forget everything that a test wrote or counted."""
        for spec in MAPS.values():
            if spec in (CHUNK_IDS, SERVICE_CHANGES):
                continue  # chunks stay, and what is in them; and nobody counts back
            if spec in (SEED, CONNECTIONS, CONNECTIONS6, CRC32C):
                continue
            if spec in (TRANSLATED, TRANSLATED6, RETURNS, RETURNS6, BOUND):
                self._empty(spec)
                continue
            if spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.CPU_ARRAY):
                used = range(min(ROWS_USED, spec.capacity))
                self.kernel.delete(spec.name, [spec.key.pack(Number(row)) for row in used])
            elif spec is not RING_CHUNKS:
                self.kernel.delete(spec.name, [key for key, _ in self.kernel.dump(spec.name)])
        self.forget()

    def forget(self) -> None:
        """Forget all transitions, the flows that began in them, and all connections."""
        remove_rings(self.kernel, list(in_transition(self.kernel)))
        self._empty(REMEMBERED)
        self.table.clear()

    def _empty(self, spec: MapSpec) -> None:
        """Delete the rows of a big array that are in use, found without a Python object for each."""
        keys, values = self.kernel.joined(spec.name)
        if not keys:
            return  # a program without it
        numbers = np.frombuffer(keys, f"V{spec.key.size}")
        used = np.frombuffer(values, np.uint64).reshape(len(numbers), -1).any(axis=1)
        self.kernel.delete(spec.name, [key.tobytes() for key in numbers[used]])

    def _write(self, spec: MapSpec, row: Row) -> None:
        assert self.kernel.update(spec.name, [row]) == [None]

    # --- what it does ----------------------------------------------------------------------------------
    def send(self, content: bytes, interface: str = "front") -> bpf.Run:
        """Hand in a frame as if it came in on this interface; returns the XDP action and the frame after it."""
        with inside(self.netns):
            return bpf.test_run(self._program, content, self._ifindex[interface])

    # --- what it knows ---------------------------------------------------------------------------------
    def connections(self) -> dict[Ends, Entry]:
        return self.table.entries()

    def verdicts(self) -> dict[Verdict, int]:
        """Those that happened."""
        return {Verdict(index): sums[0] for index, sums in self._sums(VERDICTS).items()}

    def traffic_of_services(self) -> dict[int, Traffic]:
        return {index: Traffic(*sums) for index, sums in self._sums(SERVICE_COUNTERS).items()}

    def traffic_of_endpoints(self) -> dict[int, Traffic]:
        return {id: Traffic(*sums) for id, sums in self._sums(ENDPOINT_COUNTERS).items()}

    def _sums(self, spec: MapSpec) -> dict[int, list[int]]:
        fields = spec.value.fields
        cpus = [(key, spec.value.array(value)) for key, value in self.kernel.dump(spec.name)]
        return {
            spec.key.unpack(key).number: [int(values[name].sum()) for name, form in fields if form == COUNTER]
            for key, values in cpus
        }


def _packed(address: str) -> bytes:
    return ip_address(address).packed


def _service_key(at: At, protocol: int = TCP) -> bytes:
    spec = SERVICES6 if ":" in at.address else SERVICES
    return spec.key.pack(rows.ServiceKey(_packed(at.address), at.port, protocol))


@contextmanager
def loaded_balancer(
    run_dir: Path, name: str, features: Sequence[str], sizes: Sizes | None = None
) -> Iterator[Balancer]:
    """A program with these features, loaded as an instance of this name, in a namespace of the same name."""
    kernel = RealKernel(name, run_dir)
    try:
        kernel.load_program(program_name(features), features, sizes)
        handle = kernel.loaded_program()
        descriptor = handle and bpf.open_program(handle.id)
        assert descriptor
        with bpf.closing(descriptor), namespace(name):
            yield Balancer(kernel, descriptor, name)
    finally:
        kernel.unload_program()
        kernel.remove_instance()
