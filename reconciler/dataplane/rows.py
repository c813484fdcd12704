# SPDX-License-Identifier: Apache-2.0
"""The keys and values of the maps, field by field. `bpf/maps.h` declares the same and says what the fields mean.

A struct of C has its fields' names here. What C declares without a struct is a `Number`, `Address` and so on. Maps of
IPv6 have the same rows with longer addresses (layout.py).
"""

from __future__ import annotations

import builtins
from typing import Annotated, NamedTuple

from reconciler.dataplane.row import U8, U16, U32, U64, IPv4, IPv6, Port


class Number(NamedTuple):
    """The key of an array, or a number that refers to a row of one."""

    number: U32


class ServiceKey(NamedTuple):
    vip: IPv4
    port: Port
    protocol: U8
    pad: U8 = 0


class Service(NamedTuple):
    index: U32  # type: ignore[assignment]  # tuples have a method of this name
    ring: U32
    target_port: Port
    mode: U8
    algorithm: U8
    sources: U16 = 0
    levels: U16 = 0


class KnownService(NamedTuple):
    """What a CPU has found of a service."""

    stamp: U64
    index: U32  # type: ignore[assignment]  # tuples have a method of this name
    ring: U32
    target_port: Port
    mode: U8
    algorithm: U8
    sources: U16
    levels: U16
    vip: IPv6
    port: Port
    protocol: U8
    is_ipv6: U8
    pad: Annotated[bytes, "V20"] = bytes(20)


class SourceKey(NamedTuple):
    list: U32
    node: U32


class Source6Key(NamedTuple):
    list: U32
    node: IPv6


class SourceNode(NamedTuple):
    bits: Annotated[bytes, "4u8"]


class SourceListName(NamedTuple):
    name: IPv6


class SourceNote(NamedTuple):
    """What user space knows of a list of sources: its number, and the levels of its nodes of both families."""

    number: U16
    levels: U16
    levels6: U16
    pad: Annotated[bytes, "V2"] = bytes(2)


class Address(NamedTuple):
    address: IPv4


class Vip(NamedTuple):
    undefined: U8
    echo: U8
    pad: Annotated[bytes, "V2"] = bytes(2)


class VipFilter(NamedTuple):
    bits: Annotated[bytes, "V8192"]


class EndpointFilter(NamedTuple):
    bits: Annotated[bytes, "8u8"]


class Endpoint(NamedTuple):
    address: IPv4
    port: Port
    state: U8
    pad: U8 = 0


class Head(NamedTuple):
    """Where a ring lies: reconciler/dataplane/chunks.py has the fields of the number."""

    head: U64


class Line(NamedTuple):
    """16, 32 or 64 slots of a ring or 8 rows of slots in transition."""

    words: Annotated[bytes, "8u8"]


class Bucket(NamedTuple):
    flows: Annotated[bytes, "8u8"]


class Seed(NamedTuple):
    words: Annotated[bytes, "2u8"]


class Crc32c(NamedTuple):
    words: Annotated[bytes, "65536u4"]


class Turns(NamedTuple):
    turns: U64


class Load(NamedTuple):
    """How many connections an endpoint has is the sum of the first two, which may be negative numbers of 32 bits."""

    since: U32
    counted: U32
    weight: U32
    pad: U32 = 0


class Member(NamedTuple):
    """An endpoint of a ring with affinity."""

    ring: U32
    endpoint: U32


class Changes(NamedTuple):
    changes: U64


class RingName(NamedTuple):
    """Filled up with zeros."""

    name: Annotated[bytes, "V128"]


class RingNote(NamedTuple):
    """What user space knows of a ring: its number in `rings`, a checksum of its slots, and a digest of what these
    slots were made from (reconciler/kinds/ring.py)."""

    number: U32
    checksum: U32
    digest: Annotated[bytes, "V16"]


class Connections(NamedTuple):
    """Four connections of NAT, each a word of `who` and one of `where`."""

    who: Annotated[bytes, "4u8"]
    where: Annotated[bytes, "4u8"]


class Connections6(NamedTuple):
    """The same over IPv6, and behind them the clients' addresses."""

    who: Annotated[bytes, "4u8"]
    where: Annotated[bytes, "4u8"]
    addresses: Annotated[bytes, "V64"]


class Served(NamedTuple):
    """The service that an endpoint's address and port belong to, and the endpoint's number."""

    vip: IPv4
    port: Port
    pad: Annotated[bytes, "V2"] = bytes(2)
    endpoint: U32 = 0
    until: U32 = 0


class Handed(NamedTuple):
    """What a main program knows about a packet that it hands to a stage."""

    index: U32  # type: ignore[assignment]  # tuples have a method of this name
    ring: U32
    target_port: Port
    mode: U8
    algorithm: U8
    sources: U16
    levels: U16
    ingress: U32
    tci: U32
    is_from_main: U8
    is_refused: U8
    pad: Annotated[bytes, "V6"] = bytes(6)
    client: Annotated[bytes, "V16"] = bytes(16)
    peer: Annotated[bytes, "V16"] = bytes(16)
    translated: Annotated[bytes, "V16"] = bytes(16)
    source: Annotated[bytes, "V16"] = bytes(16)
    route: Annotated[bytes, "V64"] = bytes(64)


class FragmentKey(NamedTuple):
    """A packet that came in fragments. An IPv4 address is filled up with zeros."""

    source: Annotated[bytes, "V16"]
    destination: Annotated[bytes, "V16"]
    id: Annotated[bytes, "V4"]
    protocol: U8
    is_ipv6: U8
    pad: Annotated[bytes, "V2"] = bytes(2)


class FragmentWay(NamedTuple):
    """Where the first fragment of a packet went, and when, in units of 2^30 ns."""

    moment: U32
    endpoint: U32
    service: U32
    hash: U32
    change: U32
    translated: Annotated[bytes, "V4"]


class Translated(NamedTuple):
    """Four connections of fullnat: as Connections, each with a word that says its source address, port and pool."""

    who: Annotated[bytes, "4u8"]
    where: Annotated[bytes, "4u8"]
    way: Annotated[bytes, "4u8"]
    spare: Annotated[bytes, "4u8"]


class Translated6(NamedTuple):
    """The same over IPv6, with the addresses of the clients."""

    who: Annotated[bytes, "4u8"]
    where: Annotated[bytes, "4u8"]
    addresses: Annotated[bytes, "V64"]
    way: Annotated[bytes, "4u8"]
    spare: Annotated[bytes, "4u8"]


class Returns(NamedTuple):
    """Eight ports of pools, each with the place of its connection."""

    words: Annotated[bytes, "8u8"]


class PortPool(NamedTuple):
    """A source address towards one server."""

    source: IPv4
    address: IPv4
    port: Port
    protocol: U8
    pad: U8 = 0


class PortPool6(NamedTuple):
    """The same over IPv6."""

    source: IPv6
    address: IPv6
    port: Port
    protocol: U8
    pad: U8 = 0


class PoolSource6(NamedTuple):
    source: IPv6


class PoolPorts(NamedTuple):
    """The ports of a pool. `words` has four words for each 64 ports: those that are taken, those that came back tired
    in an even epoch, in an odd one, and the epoch."""

    source: IPv4
    address: IPv4
    port: Port
    protocol: U8
    pad: U8
    cursor: U32
    used: U64
    unrested: U64
    refused: U64
    hand: U64
    full: Annotated[bytes, "16u8"]
    words: Annotated[bytes, "4096u8"]


class PoolNumbers(NamedTuple):
    words: Annotated[bytes, "512u8"]
    full: Annotated[bytes, "8u8"]


class Snat(NamedTuple):
    """The source addresses of fullnat, filled up with zeros, and their ports."""

    sources: Annotated[bytes, "V32"]
    used: U32
    first_port: U16
    ports: U16


class Snat6(NamedTuple):
    """The same over IPv6."""

    none: Annotated[bytes, "V32"]
    used: U32
    first_port: U16
    ports: U16
    sources: Annotated[bytes, "V128"]


class Lease(NamedTuple):
    """A port that a connection of fullnat gets; nothing outlives a packet."""

    client: U32
    client_port: U16
    protocol: U8
    is_answered: U8
    address: Annotated[bytes, "V16"]
    port: Port
    verdict: U16
    endpoint: U32
    pool: U32
    pad: Annotated[bytes, "V4"]
    way: U64


class Swept(NamedTuple):
    next: U64
    cleared: U64


class Looks(NamedTuple):
    """Addresses and ports that a client must not see twice."""

    places: Annotated[bytes, "8u8"]


class Front(NamedTuple):
    """What clients of NAT see of a service. An IPv4 address is the first four bytes."""

    vip: IPv6
    port: Port
    target_port: Port
    idle: U16
    protocol: U8
    version: U8
    idle_s: U32 = 0
    affinity_s: U32 = 0


class Traffic(NamedTuple):
    connections: U64
    request_packets: U64
    request_bytes: U64
    reply_packets: U64
    reply_bytes: U64


class EndpointLine(NamedTuple):
    """What a CPU counts of an endpoint, as in Traffic, and its cache of the way there."""

    connections: U64
    request_packets: U64
    request_bytes: U64
    reply_packets: U64
    reply_bytes: U64
    moment: U32
    ifindex: U32
    mtu: U16
    asked: U16
    macs: Annotated[bytes, "V12"]


class Packets(NamedTuple):
    packets: U64


class Settings(NamedTuple):
    tunnel_source: IPv4
    tunnel_spread: IPv4
    tunnel_source6: IPv6
    tunnel_spread6: IPv6
    too_big: U8
    pad: Annotated[bytes, "V3"] = bytes(3)


class Vlan(NamedTuple):
    trunk: U32
    tag: U16
    pad: Annotated[bytes, "V2"] = bytes(2)


class UnpackedKey(NamedTuple):
    address: IPv6
    version: U8
    pad: Annotated[bytes, "V3"] = bytes(3)


class Unpacked(NamedTuple):
    pad: Annotated[bytes, "V4"] = bytes(4)


class Gateway(NamedTuple):
    address: IPv6
    is_ipv6: U8
    pad: Annotated[bytes, "V3"] = bytes(3)


class Prober(NamedTuple):
    ifindex: U32
    address: IPv4
    address6: IPv6
    mac: Annotated[bytes, "V6"]
    pad: Annotated[bytes, "V2"] = bytes(2)


class Explained(NamedTuple):
    """The values looked up for a packet, in this order; all ones: not looked up. See EXPLAIN in bpf/maps.h."""

    bytes: U32
    vip: U32
    service: U32
    flow: U32
    rings: U32
    ring_chunks: U32
    slots: U32
    slot: U32
    holder: U32
    memory: U32
    endpoint: U32
    fib: U32
    egress: U32
    verdict: U32


class WatchFilter(NamedTuple):
    """Which packets are watched, see bpf/watch.h. An IPv4 address is the first four bytes; port 0 is any."""

    client: IPv6
    vip: IPv6 = bytes(16)
    until: U64 = 0
    taken: U64 = 0
    limit: U64 = 0
    client_port: Port = 0
    vip_port: Port = 0
    is_ipv6: U8 = 0
    has_vip: U8 = 0
    pad: Annotated[bytes, "V2"] = bytes(2)


class Watched(NamedTuple):
    """A packet that was watched: `seen` is an Explained, `before` and `after` the beginnings of its frame."""

    sequence: U64
    time: U64
    missed: U64
    is_on: U32
    action: U32
    bytes: U32
    bytes_after: U32
    ingress: U32
    pad: U32
    seen: Annotated[builtins.bytes, "V56"]
    before: Annotated[builtins.bytes, "V128"]
    after: Annotated[builtins.bytes, "V128"]
