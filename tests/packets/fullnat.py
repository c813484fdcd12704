# SPDX-License-Identifier: Apache-2.0
"""FullNAT in a balancer of known routes, for both versions of IP: who takes part, and what tables hold of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from reconciler.dataplane.layout import POOL_PORTS, RETURNS, RETURNS6, TRANSLATED, TRANSLATED6, MapSpec, ModeCode
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as node
from tests.packets.balancer import ENDPOINTS6_AT, ENDPOINTS_AT, ROUTER, ROUTER6, Balancer, macs_towards
from tests.packets.frames import At, forwarded, frame, frame6, tcp, tcp6, translated

FEATURES = (
    "FULLNAT", "FULLNAT6", "IPV6", "UDP", "ROUND_ROBIN", "SOURCE_HASH", "MAGLEV", "REJECT", "ECHO", "ALLOWED_SOURCES",
    "VLAN",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One version of IP. Words of an entry: `who` tells the client, `way` the port, from these on, one a place."""

    version: int
    table: MapSpec
    returns: MapSpec
    way: int
    client: At
    other: At
    """A client behind the router, with the same port as the first one."""
    web: At
    sources: tuple[str, str]
    ids: tuple[int, int]
    """Two endpoints."""
    router: str
    clients: str
    """The network of many clients."""
    tcp: Callable[..., bytes]
    frame: Callable[..., bytes]
    ip: type[Packet]

    @property
    def server(self) -> At:
        return At((ENDPOINTS_AT | ENDPOINTS6_AT)[self.ids[0]], self.web.port)

    @property
    def second(self) -> At:
        """The other endpoint."""
        return At((ENDPOINTS_AT | ENDPOINTS6_AT)[self.ids[1]], self.web.port)

    @property
    def dns(self) -> At:
        return At(self.web.address, 53)

    def many(self, count: int, port: int = 40_000) -> list[At]:
        """So many clients."""
        return [At(self.clients.format(number // 250 + 1, number % 250 + 1), port) for number in range(count)]

    def udp(self, source: At, destination: At, payload: bytes = b"hello", **fields: int) -> bytes:
        datagram = UDP(sport=source.port, dport=destination.port, **fields)
        return self.frame(source.address, destination.address, datagram / payload)

    def neighbour(self, client: At) -> str:
        """By whom a client is reached."""
        return client.address if client.address in node.NEIGHBOURS else self.router

    def to_server(self, content: bytes, source: At) -> bytes:
        """What a client's frame must be when it leaves from this source."""
        return forwarded(
            translated(content, source=source, destination=self.server), macs_towards(self.server.address)
        )

    def to_client(self, content: bytes, client: At) -> bytes:
        """What an endpoint's frame must be when it leaves for this client."""
        return forwarded(
            translated(content, source=self.web, destination=client), macs_towards(self.neighbour(client))
        )

    def serve(self, balancer: Balancer, protocol: int = node.TCP) -> None:
        """The web service, by the first endpoint."""
        balancer.serve(self.web, ring=[self.ids[0]], mode=ModeCode.FULLNAT, protocol=protocol)

    def source_of(self, content: bytes) -> At:
        packet = Ether(content)
        return At(packet[self.ip].src, (packet[UDP] if UDP in packet else packet[TCP]).sport)

    def destination_of(self, content: bytes) -> At:
        packet = Ether(content)
        return At(packet[self.ip].dst, (packet[UDP] if UDP in packet else packet[TCP]).dport)

    def opened(self, balancer: Balancer, client: At) -> At | None:
        """The source that a new connection gets; None if it is refused."""
        action, content = balancer.send(self.tcp(client, self.web, "S"))
        return self.source_of(content) if action == XdpVerdict.REDIRECT else None

    def retried(self, balancer: Balancer, client: At) -> At | None:
        """The same for a client that tries again: at each try, a full pool looks at eight of its ports for one whose
        connection is no more."""
        return next((source for _ in range(150 // 8 + 1) if (source := self.opened(balancer, client))), None)

    def rest(self, balancer: Balancer, units: int) -> None:
        """Let all connections be silent for so much longer."""
        who = self._entries(balancer)[:, :4]
        held = who >> np.uint64(14) != 0
        seen = (who & np.uint64(0x7FF)) - np.uint64(units) & np.uint64(0x7FF)
        who[held] = (who >> np.uint64(11) << np.uint64(11) | seen)[held]

    def owned(self, balancer: Balancer) -> set[tuple[int, int]]:
        """The ports that entries have; each has a word that replies find it by, and there is no other word."""
        entries, words = self._entries(balancer), balancer.kernel.words(self.returns.name)
        assert words is not None
        who, ways = entries[:, :4], entries[:, self.way : self.way + 4]
        assert not ((ways != 0) & (who >> np.uint64(14) == 0)).any(), "a free place has a port"
        own = {
            (way & 0x7FFF, way >> 16 & 0xFFFF, bucket * 4 + place)
            for (bucket, place), way in zip(np.argwhere(ways).tolist(), ways[ways != 0].tolist(), strict=True)
        }
        assert {(w >> 43, w >> 27 & 0xFFFF, (w & (1 << 27) - 1) - 1) for w in words[words != 0].tolist()} == own
        return {(pool, port) for pool, port, _ in own}

    def _entries(self, balancer: Balancer) -> np.ndarray:
        words = balancer.kernel.words(self.table.name)
        assert words is not None
        return words.reshape(-1, self.table.value_size // 8)


FOUR = Family(
    4, TRANSLATED, RETURNS, 8, node.CLIENT, At("192.0.2.9", node.CLIENT.port), node.WEB, ("10.2.0.201", "10.2.0.202"),
    (1, 2), ROUTER, "198.51.{}.{}", tcp, frame, IP,
)  # fmt: skip
SIX = Family(
    6, TRANSLATED6, RETURNS6, 16, At("2001:db8:77::7", 40_000), At("2001:db8:77::8", 40_000), At("2001:db8:20::1", 80),
    ("2001:db8:2::c9", "2001:db8:2::ca"), (5, 6), ROUTER6, "2001:db8:78::{:x}:{:x}", tcp6, frame6, IPv6,
)  # fmt: skip


def taken(balancer: Balancer, first_port: int = 0) -> set[tuple[int, int]]:
    """The ports that pools have given away: pairs of the pool's number and the port; `first_port` is theirs."""
    words = balancer.kernel.words(POOL_PORTS.name)
    assert words is not None
    bits = words.reshape(-1, POOL_PORTS.value_size // 8)[:, -4096::4]
    return {
        (pool, first_port + word * 64 + bit) for pool, word in np.argwhere(bits).tolist()
        for bit in range(64) if int(bits[pool, word]) >> bit & 1
    }  # fmt: skip
