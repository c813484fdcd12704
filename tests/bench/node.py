# SPDX-License-Identifier: Apache-2.0
"""The balancer that is measured: a namespace with one way out, and maps as the reconciler would write them.

    clients ── router ── front [node] back ── router ── endpoints of Group.BEHIND
                 │
                 endpoints of all others: in and out by one interface

No policy routing and few routes, as on a machine that does nothing else.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np

from reconciler import limits
from reconciler.dataplane import program, rows
from reconciler.dataplane.chunks import LINE_BYTES
from reconciler.dataplane.layout import (
    ENDPOINTS,
    ENDPOINTS6,
    MAPS,
    SERVICES,
    SERVICES6,
    SETTINGS,
    VERDICTS,
    VIP_FILTER,
    VIPS,
    VIPS6,
    AlgorithmCode,
    EchoCode,
    EndpointRowState,
    MapSpec,
    ModeCode,
    UndefinedCode,
    Verdict,
)
from reconciler.dataplane.ring import hash_ring
from reconciler.dataplane.rows import Number
from reconciler.dataplane.source_nodes import canonical
from reconciler.dataplane.vip_filter import filter_of
from reconciler.kernel import holders
from reconciler.kernel.instance import Instance
from reconciler.kernel.port import Row
from reconciler.kernel.real import RealKernel
from reconciler.kinds.sources import SourceList, SourceNames, SourcesKind
from reconciler.limits import Sizes
from reconciler.model import Prefix
from reconciler.resource import Change
from reconciler.ring_store import Rings
from tests.bench.variants import FEATURES, memlock
from tests.packets.balancer import inside, ip
from tests.rings import write_rings

NODE_MAC, ROUTER_MAC = "02:0f:00:00:00:01", "02:01:00:00:00:fe"
LINKS = {
    "front": (("10.1.0.1/24", "10.1.0.254", "default"), ("2001:db8:1::1/64", "2001:db8:1::fe", "default")),
    "back": (("10.2.0.1/24", "10.2.0.254", "10.9.0.0/16"),),
}
"""Interface → its addresses, each with a router on the same network and what is behind that."""

PORT = 80
TCP, UDP = 6, 17

MANY_SERVICES = 512
ENDPOINTS_A_SERVICE = 64
LARGE_RING = 65_537
"""The slots of Katran's rings."""
SOURCES = 20_000


class Group(Enum):
    """Services with VIPs and endpoints that are numbered: both first addresses, whether slots are in transition; the
    slots of a ring, 0: as many as the number of endpoints asks for; and, if not everybody may use them, the network of
    the clients that may, beside SOURCES others."""

    STEADY = ("20.20.0.0", "10.8.0.0", False)
    MOVING = ("20.21.0.0", "10.8.0.0", True)
    BEHIND = ("20.22.0.0", "10.9.0.0", False)
    STEADY6 = ("2001:db8:5::", "2001:db8:8::", False)
    MOVING6 = ("2001:db8:6::", "2001:db8:8::", True)
    LARGE = ("20.23.0.0", "10.8.0.0", False, LARGE_RING)
    ALLOWED = ("20.26.0.0", "10.8.0.0", False, 0, "198.18.0.0/15")
    ALLOWED6 = ("2001:db8:9::", "2001:db8:8::", False, 0, "2001:db8:c::/48")
    CLOSED = ("20.27.0.0", "10.8.0.0", False, 0, "192.0.2.0/24")

    def __init__(
        self, first_vip: str, first_endpoint: str, is_moving: bool, slots: int = 0, clients: str = ""
    ) -> None:  # fmt: skip
        self.first_vip = ip_address(first_vip)
        self.first_endpoint = ip_address(first_endpoint)
        self.is_moving = is_moving
        self.slots = slots
        self.clients = clients

    @property
    def is_ipv6(self) -> bool:
        return self.first_vip.version == 6

    @property
    def services(self) -> int:
        return MANY_SERVICES if self in (Group.STEADY, Group.MOVING, Group.LARGE) else 1

    @property
    def first_id(self) -> int:
        """Of its endpoints. Who has the same addresses has the same ids."""
        same = next(group for group in Group if group.first_endpoint == self.first_endpoint)
        return 1 + list(Group).index(same) * MANY_SERVICES * ENDPOINTS_A_SERVICE

    @property
    def first_index(self) -> int:
        """Of its services and their rings."""
        return 1 + list(Group).index(self) * MANY_SERVICES


@contextmanager
def namespace(name: str) -> Iterator[None]:
    ip("netns", "add", name)
    try:
        with inside(name):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for device, addresses in LINKS.items():
            ip("-n", name, "link", "add", device, "address", NODE_MAC, "type", "veth", "peer", f"{device}-far")
            for own, router, network in addresses:
                ip("-n", name, "address", "add", own, "dev", device, *(["nodad"] if ":" in own else []))
                ip("-n", name, "link", "set", device, "up")
                ip("-n", name, "link", "set", f"{device}-far", "up")
                ip("-n", name, "neigh", "add", router, "lladdr", ROUTER_MAC, "dev", device, "nud", "permanent")
                ip("-n", name, "route", "add", network, "via", router)
        yield
    finally:
        ip("netns", "del", name)


class Node:
    """The maps of one instance, with the data plane's program loaded; no VIP yet."""

    def __init__(self, name: str, run_dir: Path) -> None:
        self._kernel = RealKernel(name, run_dir)
        self._instance = Instance(name, run_dir)
        self._vips: list[bytes] = []
        # Without services nothing needs more than this.
        self._kernel.load_program(program.program_name(()), (), Sizes(endpoints=limits.FEWEST_ENDPOINTS))
        self.bare_bytes = self._held_bytes()
        self._kernel.load_program(program.program_name(FEATURES), FEATURES, Sizes())
        with inside(name):
            self.ifindex = socket.if_nametoindex("front")

    def close(self) -> None:
        self._kernel.unload_program()
        self._kernel.remove_instance()

    def _held_bytes(self) -> int:
        """What all maps take."""
        opened = self.open_maps().values()
        try:
            return sum(map(memlock, opened))
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def open_maps(self) -> dict[str, int]:
        """Name of each map → a descriptor, which the caller closes."""
        generation = holders.live(self._instance)
        opened = {name: generation.open(name) for name in MAPS} if generation else {}
        return {name: descriptor for name, descriptor in opened.items() if descriptor is not None}

    # --- what it is told -------------------------------------------------------------------------------
    def tunnels(self) -> None:
        """The outer source address has 8 or 16 bits of the flow's hash, so that receivers can spread by it."""
        addresses = ("10.1.1.0", "0.0.0.255", "2001:db8:1:1::", "::ffff")
        row = rows.Settings(*(ip_address(address).packed for address in addresses), 0)
        self._write(SETTINGS, [SETTINGS.pack(Number(0), row)])

    def serve(self, group: Group) -> None:
        """Each service has a VIP, 64 endpoints and a ring of its own, and is there for TCP and UDP."""
        ids = range(group.first_id, group.first_id + group.services * ENDPOINTS_A_SERVICE)
        addresses = [(group.first_endpoint + n).packed for n in range(len(ids))]
        if group.is_ipv6:
            numbered = zip(ids, addresses, strict=True)
            self._write(ENDPOINTS6, [ENDPOINTS6.pack(Number(id), rows.Address(address)) for id, address in numbered])
        self._write(ENDPOINTS, [
            ENDPOINTS.pack(
                Number(id), rows.Endpoint(bytes(4) if group.is_ipv6 else address, 0, EndpointRowState.USABLE))
            for id, address in zip(ids, addresses, strict=True)
        ])  # fmt: skip
        self._rings(group, 0, known=())
        vips = [(group.first_vip + n).packed for n in range(group.services)]
        vip_map, service_map = (VIPS6, SERVICES6) if group.is_ipv6 else (VIPS, SERVICES)
        self._vips += vips
        self._write(VIP_FILTER, [VIP_FILTER.pack(Number(0), rows.VipFilter(filter_of(self._vips)))])
        answers = rows.Vip(UndefinedCode.DROP, EchoCode.REPLY)
        self._write(vip_map, [vip_map.pack(rows.Address(vip), answers) for vip in vips])
        known = [key for spec in (VIPS, VIPS6) for key, _ in self._kernel.dump(spec.name)]
        self._write(VIP_FILTER, [VIP_FILTER.pack(Number(0), rows.VipFilter(filter_of(known)))])
        allowed = self._sources(group)
        self._write(service_map, [
            service_map.pack(rows.ServiceKey(vip, PORT, protocol),
                             rows.Service(index, index, 0, ModeCode.DSR_L3, AlgorithmCode.MAGLEV, *allowed))
            for index, vip in enumerate(vips, group.first_index) for protocol in (TCP, UDP)
        ])  # fmt: skip
        if group.is_moving:
            self._rings(group, 1, known=range(group.first_index, group.first_index + group.services))

    def _sources(self, group: Group) -> tuple[int, int]:
        """The list of a group's clients, whose networks are of many lengths and lie far apart."""
        if not group.clients:
            return 0, 0
        rng, version = random.Random(1), 6 if group.is_ipv6 else 4
        first, last = (11 << 24, 192 << 24) if version == 4 else (1 << 125, 3 << 124)
        lengths = range(18, 33) if version == 4 else (32, 48, 56)
        width = 32 if version == 4 else 128
        networks: list[Prefix] = [ip_network(group.clients)]
        for _ in range(SOURCES):
            hidden = width - rng.choice(lengths)
            number = rng.randrange(first, last) >> hidden << hidden
            networks.append(ip_network((number.to_bytes(width // 8), width - hidden)))
        wanted = SourceList(tuple(map(str, canonical(networks))))
        assert SourcesKind(self._kernel).write([Change(wanted.key, None, wanted)]) == [None]
        found = SourceNames(self._kernel).found(version, wanted.id)
        assert found
        return found

    def _rings(self, group: Group, turn: int, known: Collection[int]) -> None:
        """The rings of a group; each turn gives every slot to another endpoint."""
        members = [str(member) for member in range(ENDPOINTS_A_SERVICE)]
        slots = hash_ring(members, [1] * ENDPOINTS_A_SERVICE, group.slots)
        slots = (slots + np.uint32(turn)) % np.uint32(ENDPOINTS_A_SERVICE)
        rings = {
            group.first_index + n: slots + np.uint32(group.first_id + n * ENDPOINTS_A_SERVICE)
            for n in range(group.services)
        }
        assert not any(write_rings(self._kernel, rings, known).values())

    def _write(self, spec: MapSpec, rows: Sequence[Row]) -> None:
        assert not any(self._kernel.update(spec.name, rows))

    def transitions(self, group: Group) -> dict[str, int]:
        """What the slots of a group take that are in transition, and their rows."""
        rings = Rings(self._kernel)
        indexes = range(group.first_index, group.first_index + group.services)
        places = [place for place in map(rings.place, indexes) if place and place.has_rows]
        lines = sum(place.lines for place in places)
        of_slots = sum(place._replace(has_rows=False, shares_rows=False).lines for place in places)
        return {
            "transition_rings": len(places), "transition_slots": sum(place.slots for place in places),
            "transition_slot_bytes": of_slots * LINE_BYTES, "transition_row_bytes": (lines - of_slots) * LINE_BYTES,
        }  # fmt: skip

    # --- what it counted -------------------------------------------------------------------------------
    def reasons(self) -> dict[Verdict, int]:
        """How often each verdict was given, all CPUs together."""
        return {
            Verdict(VERDICTS.key.unpack(key).number): int(VERDICTS.value.array(value)["packets"].sum())
            for key, value in self._kernel.dump(VERDICTS.name)
        }

