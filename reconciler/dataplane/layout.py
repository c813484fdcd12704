# SPDX-License-Identifier: Apache-2.0
"""The maps of the data plane: names, rows, sizes. `bpf/maps.h` declares the same for the program.

Fields that travel in packets (addresses, ports) are in network byte order; everything else is in host byte order.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Generic, TypeAlias, TypeVar

from reconciler import limits
from reconciler.dataplane import rows
from reconciler.dataplane.row import RowType
from reconciler.dataplane.rows import Number


class MapType(IntEnum):
    """`enum bpf_map_type` of include/uapi/linux/bpf.h."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    CPU_ARRAY = 1 << 16 | 2
    """lbctl's own: an ARRAY with a row for each CPU and key, first all rows of CPU 0, then those of CPU 1, and so on.
    `capacity` are the rows of one CPU. Rows of 64 bytes are lines of a processor's cache."""


NO_PREALLOC = 1 << 0
"""BPF_F_NO_PREALLOC: a row of a hash takes memory only once it is written."""
MMAPABLE = 1 << 10
"""BPF_F_MMAPABLE: user space can map an array into its own memory (Linux 5.5)."""


K = TypeVar("K", bound=tuple[Any, ...])
V = TypeVar("V", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class TypedMap(Generic[K, V]):
    """One map. It is made if the program has one of its `features`, or if `features` is empty.

    `inner` are the rows of the arrays in an array of arrays; each inner array has `inner_capacity` of them and can be
    mapped into memory. `meaning` rises when the same fields come to mean something else (description.py).
    """

    name: str
    type: MapType
    key: RowType[K]
    value: RowType[V]
    capacity: int
    features: tuple[str, ...] = ()
    is_mmapable: bool = False
    inner: RowType[Any] | None = None
    inner_capacity: int = 0
    meaning: int = 1

    @property
    def key_size(self) -> int:
        return self.key.size

    @property
    def value_size(self) -> int:
        """Bytes of one value; for a per-CPU map, of one CPU's value."""
        return self.value.size

    @property
    def flags(self) -> int:
        """The flags that the map is created with."""
        is_mmapable = self.is_mmapable or self.type == MapType.CPU_ARRAY
        return (NO_PREALLOC if self.type == MapType.HASH else 0) | (MMAPABLE if is_mmapable else 0)

    def is_used(self, features: Collection[str]) -> bool:
        """Whether a program with these features needs the map."""
        return not self.features or not set(self.features).isdisjoint(features)

    def pack(self, key: K, value: V) -> tuple[bytes, bytes]:
        """A row as the kernel takes it."""
        return self.key.pack(key), self.value.pack(value)

    def unpack(self, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[K, V]]:
        """Rows as the kernel gives them; not of per-CPU maps."""
        key, value = self.key.unpack, self.value.unpack
        return ((key(k), value(v)) for k, v in rows)


MapSpec: TypeAlias = TypedMap[Any, Any]
"""A map, whatever its rows are."""


_NAT = ("NAT",)
_FULLNAT = ("FULLNAT",)
_FULLNAT6 = ("FULLNAT6",)
_TRANSLATING = (*_NAT, *_FULLNAT)
_STAGED = (*_TRANSLATING, "FRAGMENTS")
_DSR = ("DSR_L2", "DSR_L3")
_IPV6 = ("IPV6",)
_ALLOWED = ("ALLOWED_SOURCES",)
_LEAST = ("LEAST_CONNECTIONS",)
_AFFINITY = ("AFFINITY",)

NUMBER = RowType(rows.Number)
_ADDRESS = RowType(rows.Address)
_ADDRESS6 = RowType(rows.Address, address="V16")
_SERVICE = RowType(rows.Service)
_VIP = RowType(rows.Vip)
_SOURCE_NODE = RowType(rows.SourceNode)
_TRAFFIC = RowType(rows.Traffic)
_VLAN = RowType(rows.Vlan)


def _hash(
    name: str, key: RowType[K], value: RowType[V], capacity: int, features: tuple[str, ...] = (),
    type_: MapType = MapType.HASH,
) -> TypedMap[K, V]:  # fmt: skip
    return TypedMap(name, type_, key, value, capacity, features)


def _array(
    name: str, value: RowType[V], capacity: int, features: tuple[str, ...] = (), type_: MapType = MapType.ARRAY, *,
    is_mmapable: bool = False,
) -> TypedMap[Number, V]:  # fmt: skip
    return TypedMap(name, type_, NUMBER, value, capacity, features, is_mmapable)


def _array_of_arrays(
    name: str, inner: RowType[Any], inner_capacity: int, capacity: int
) -> TypedMap[Number, Number]:
    return TypedMap(
        name, MapType.ARRAY_OF_MAPS, NUMBER, NUMBER, capacity, inner=inner, inner_capacity=inner_capacity
    )


# `index` is that of the service's counters
SERVICES = _hash("services", RowType(rows.ServiceKey), _SERVICE, limits.SERVICES)
VIPS = _hash("vips", _ADDRESS, _VIP, limits.SERVICES)
# 0 → a bit for each hash of an address (bpf/vip.h): if it is 0, the address is no VIP
VIP_FILTER = _array("vip_filter", RowType(rows.VipFilter), 1)
# id (0 is never used) → endpoint
ENDPOINTS = _array("endpoints", RowType(rows.Endpoint), limits.ENDPOINTS + 1, is_mmapable=True)
# the same for IPv6; id → address of an endpoint whose address in `endpoints` is zero
SERVICES6 = _hash("services6", RowType(rows.ServiceKey, vip="V16"), _SERVICE, limits.SERVICES, _IPV6)
VIPS6 = _hash("vips6", _ADDRESS6, _VIP, limits.SERVICES, _IPV6)
# line → a bit for each hash of an address (bpf/filter.h): if it is 0, no endpoint has the address
ENDPOINT_FILTER = _array("endpoint_filter", RowType(rows.EndpointFilter), 2_048, _NAT, is_mmapable=True)
ENDPOINTS6 = _array("endpoints6", _ADDRESS6, limits.ENDPOINTS + 1, _IPV6, is_mmapable=True)
# 0 → how often rows of the tables of services and VIPs were changed
SERVICE_CHANGES = _array("service_changes", RowType(rows.Changes), 1, (*_TRANSLATING, *_DSR), is_mmapable=True)
# what each CPU has found in these tables, which only the program writes
KNOWN_SERVICES = _array(
    "known_services", RowType(rows.KnownService), 4_096, (*_TRANSLATING, *_DSR), type_=MapType.CPU_ARRAY
)
# by version of IP
SERVICE_MAPS = {4: SERVICES, 6: SERVICES6}
VIP_MAPS = {4: VIPS, 6: VIPS6}
# list, node → which values of the next byte are allowed (bpf/allow.h); a list of any length may be exchanged at once
SOURCES = _hash("sources", RowType(rows.SourceKey), _SOURCE_NODE, limits.SOURCE_NODES, _ALLOWED)
SOURCES6 = _hash("sources6", RowType(rows.Source6Key), _SOURCE_NODE, limits.SOURCE_NODES, _ALLOWED)
SOURCE_MAPS: dict[int, MapSpec] = {4: SOURCES, 6: SOURCES6}
# name of a list → what user space knows of it; the program has no use for it
SOURCE_LISTS = _hash(
    "source_lists", RowType(rows.SourceListName), RowType(rows.SourceNote), limits.SOURCE_LISTS, _ALLOWED
)
# index → where the ring lies, how many slots it has and in which form (reconciler/dataplane/chunks.py)
RINGS = replace(_array("rings", RowType(rows.Head), 16_384, is_mmapable=True), meaning=3)
# index → chunk: an array of lines, each of slots of a ring or 8 rows of slots (reconciler/dataplane/slots.py)
CHUNK_LINES = 1 << 16
RING_CHUNKS = _array_of_arrays("ring_chunks", RowType(rows.Line), CHUNK_LINES, 4_096)
# hash → eight flows that began in a transition, each as one number (bpf/remember.h)
REMEMBERED = _array("remembered", RowType(rows.Bucket), 131_072, (*_DSR, "STATELESS"), is_mmapable=True)
# 0 → the secret of the hashes of `remembered` and of connections, made with the map
SEED = _array("seed", RowType(rows.Seed), 1, (*_TRANSLATING, *_DSR))
# index of a ring → number of turns that round-robin has taken
RING_TURNS = _array("ring_turns", RowType(rows.Turns), 16_384)
# id → how many connections an endpoint has, and its weight, for least-connections (bpf/load.h)
LOADS = _array("loads", RowType(rows.Load), limits.ENDPOINTS + 1, _LEAST, is_mmapable=True)
# ring, endpoint → a number that is the same in all rows of a ring: the endpoints of rings with affinity, and number 0
# (bpf/affinity.h)
MEMBERS = _hash("members", RowType(rows.Member), NUMBER, limits.MEMBERS, _AFFINITY)
# hash → eight endpoints that clients had
BOUND = _array("bound", RowType(rows.Bucket), 131_072, _AFFINITY, is_mmapable=True)
# name of a ring → what user space knows of it; the program has no use for it
RING_NAMES = _hash("ring_names", RowType(rows.RingName), RowType(rows.RingNote), 16_384)
# hash → four connections of NAT over IPv4 (bpf/connection.h)
CONNECTIONS = _array("connections", RowType(rows.Connections), limits.FLOWS * 5 // 8, _NAT, is_mmapable=True)
# the same of IPv6
CONNECTIONS6 = _array(
    "connections6", RowType(rows.Connections6), limits.FLOWS * 5 // 8, ("NAT6",), is_mmapable=True
)
# by version of IP
CONNECTION_MAPS: dict[int, MapSpec] = {4: CONNECTIONS, 6: CONNECTIONS6}
# 0 → what other connections of a client look like to it while one is opened; only the program has a use for it
LOOKS = _array("looks", RowType(rows.Looks), 1, _NAT, MapType.PERCPU_ARRAY)
# index of a service of NAT → what its clients see of it; outlives the service as long as connections have the index
FRONTS = _array("fronts", RowType(rows.Front), limits.SERVICES, _TRANSLATING, is_mmapable=True)
# id of an endpoint → how many SYNs clients sent again, since nobody had answered (health/unanswered.py)
UNANSWERED = _array("unanswered", RowType(rows.Packets), limits.ENDPOINTS + 1, _TRANSLATING, is_mmapable=True)
# address, port and protocol of an endpoint → the service of NAT without memory that it is of (bpf/stateless.h)
SERVED = _hash("served", RowType(rows.ServiceKey), RowType(rows.Served), limits.ENDPOINTS, ("STATELESS",))
# hash → four connections of fullnat over IPv4, as in `connections`, with their sources (bpf/fullnat.h)
TRANSLATED = _array("translated", RowType(rows.Translated), limits.FLOWS * 5 // 8, _FULLNAT, is_mmapable=True)
# the same of IPv6
TRANSLATED6 = _array(
    "translated6", RowType(rows.Translated6), limits.FLOWS * 5 // 8, _FULLNAT6, is_mmapable=True
)
# by version of IP
TRANSLATED_MAPS: dict[int, MapSpec] = {4: TRANSLATED, 6: TRANSLATED6}
# hash of a pool and a port → eight of them with the places of their connections (bpf/returns.h)
RETURNS = _array("returns", RowType(rows.Returns), limits.FLOWS // 2, _FULLNAT, is_mmapable=True)
# the same of IPv6
RETURNS6 = _array("returns6", RowType(rows.Returns), limits.FLOWS // 2, _FULLNAT6, is_mmapable=True)
# by version of IP
RETURN_MAPS: dict[int, MapSpec] = {4: RETURNS, 6: RETURNS6}
# a source towards a server → the number of their ports, which the program chooses
PORT_POOLS = _hash("port_pools", RowType(rows.PortPool), NUMBER, 256, _FULLNAT)
PORT_POOLS6 = _hash("port_pools6", RowType(rows.PortPool6), NUMBER, 256, _FULLNAT6)
# by version of IP
PORT_POOL_MAPS: dict[int, MapSpec] = {4: PORT_POOLS, 6: PORT_POOLS6}
# number of a pool of IPv6 → its source
POOL_SOURCES6 = _array("pool_sources6", RowType(rows.PoolSource6), 256, _FULLNAT6)
# number (0 is never used) → the ports of a pool (bpf/ports.h)
POOL_PORTS = _array("pool_ports", RowType(rows.PoolPorts), 256, _FULLNAT, is_mmapable=True)
# 0 → a bit for each number that is in use
POOL_NUMBERS = _array("pool_numbers", RowType(rows.PoolNumbers), 1, _FULLNAT, is_mmapable=True)
# 0 → the sources of fullnat
SNAT = _array("snat", RowType(rows.Snat), 1, _FULLNAT)
SNAT6 = _array("snat6", RowType(rows.Snat6), 1, _FULLNAT6)
# by version of IP
SNAT_MAPS: dict[int, MapSpec] = {4: SNAT, 6: SNAT6}
# 0 → a port that is asked for
LEASE = _array("lease", RowType(rows.Lease), 1, _FULLNAT, MapType.PERCPU_ARRAY)
# 0 → how far the sweep of `translated` is; only its program has a use for it
SWEPT = _array("swept", RowType(rows.Swept), 1, _FULLNAT, is_mmapable=True)
SWEPT6 = _array("swept6", RowType(rows.Swept), 1, _FULLNAT6, is_mmapable=True)
# by version of IP
SWEPT_MAPS: dict[int, MapSpec] = {4: SWEPT, 6: SWEPT6}
# 0 → tables for the checksum of SCTP, written with the map (crc32c.py)
CRC32C = _array("crc32c", RowType(rows.Crc32c), 1, ("SCTP",))
# number of a stage → its program (stages.py); 0 → what the main program knows about a packet that it hands to one
STAGES = _array("stages", NUMBER, 16, _STAGED, MapType.PROG_ARRAY)
HANDED_OVER = _array("handed_over", RowType(rows.Handed), 1, _STAGED, MapType.PERCPU_ARRAY)
# a packet that came in fragments → where the first of them went; the oldest rows make room (bpf/fragment.h)
FRAGMENT_WAYS = _hash(
    "fragment_ways", RowType(rows.FragmentKey), RowType(rows.FragmentWay), 16_384, ("FRAGMENTS",), MapType.LRU_HASH
)
# while one program takes over from another one: 0 → that other one, OTHER_STAGES + number → its stages
OTHER_STAGES = 1
OTHER = _array("other", NUMBER, OTHER_STAGES + STAGES.capacity, _NAT, MapType.PROG_ARRAY)
SERVICE_COUNTERS = _array("service_counters", _TRAFFIC, limits.SERVICES, type_=MapType.CPU_ARRAY)
# with a cache of the ways to endpoints, which only the program writes
ENDPOINT_COUNTERS = _array(
    "endpoint_counters", RowType(rows.EndpointLine), limits.ENDPOINTS + 1, type_=MapType.CPU_ARRAY
)
# Verdict below → packets
VERDICTS = _array("verdicts", RowType(rows.Packets), 64, type_=MapType.PERCPU_ARRAY)
# 0 → settings of the whole node
SETTINGS = _array("settings", RowType(rows.Settings), 1)
# ifindex of a trunk, tag → ifindex of the interface that stands for the VLAN; `trunks` is the reverse
VLANS = _hash("vlans", _VLAN, NUMBER, 4_096, ("VLAN",))
TRUNKS = _hash("trunks", NUMBER, _VLAN, 4_096, ("VLAN",))
# on endpoints: a VIP whose packets the program unpacks, filled up with zeros
UNPACKED = _hash("unpacked", RowType(rows.UnpackedKey), RowType(rows.Unpacked), 16_384, ("DECAPSULATE",))
# ifindex → next hop of packets that come in there and go to no network of the node (IPv4: 4 bytes)
GATEWAYS = _hash("gateways", NUMBER, RowType(rows.Gateway), 1_024, ("GATEWAY",))
# 0 → who checks endpoints through their VIPs; all zeros: nobody
PROBER = _array("prober", RowType(rows.Prober), 1, ("CHECKS",))
# only in the program that explains: the values looked up for a packet
EXPLAINED = _array("explained", RowType(rows.Explained), 1, ("EXPLAIN",))
# 0 → while somebody watches: the program that gets every packet (bpf/watch.h)
WATCHERS = _array("watchers", NUMBER, 1, (*_TRANSLATING, *_DSR), MapType.PROG_ARRAY)
# only in that program: 0 → what is watched; 0 → the packet at hand; number modulo capacity → a packet
WATCH_FILTER = _array("watch_filter", RowType(rows.WatchFilter), 1, ("WATCHING",), is_mmapable=True)
WATCHING = _array("watching", RowType(rows.Watched), 1, ("WATCHING",), MapType.PERCPU_ARRAY)
WATCH_REPORTS = _array("watch_reports", RowType(rows.Watched), 512, ("WATCHING",), is_mmapable=True)

# index → number of the inner array at this index. Only user space reads it: before Linux 6.8, a process that reads the
# array of maps itself waits for all CPUs, once for each row (maybe_wait_bpf_programs in bpf_map_copy_value)
CHUNK_IDS = _array("chunk_ids", NUMBER, RING_CHUNKS.capacity)
INNER_IDS = {RING_CHUNKS.name: CHUNK_IDS}

MAPS: dict[str, MapSpec] = {
    spec.name: spec
    for spec in (
        SERVICES, VIPS, VIP_FILTER, ENDPOINTS, SERVICES6, VIPS6, ENDPOINTS6, ENDPOINT_FILTER, SERVICE_CHANGES,
        KNOWN_SERVICES, RINGS, RING_CHUNKS, CHUNK_IDS, RING_TURNS, LOADS, MEMBERS, RING_NAMES, REMEMBERED,
        BOUND, SEED, CONNECTIONS, CONNECTIONS6, LOOKS, FRONTS, UNANSWERED, TRANSLATED, RETURNS, PORT_POOLS,
        POOL_PORTS, POOL_NUMBERS, SNAT, LEASE, SWEPT, TRANSLATED6, RETURNS6, PORT_POOLS6, POOL_SOURCES6, SNAT6,
        SWEPT6, SERVED, CRC32C, STAGES, HANDED_OVER, FRAGMENT_WAYS, OTHER, SERVICE_COUNTERS, ENDPOINT_COUNTERS,
        VERDICTS, SETTINGS, VLANS, TRUNKS, GATEWAYS, PROBER, UNPACKED, EXPLAINED, WATCHERS, WATCH_FILTER, WATCHING,
        WATCH_REPORTS, SOURCES, SOURCES6, SOURCE_LISTS,
    )
}  # fmt: skip


MARK_TUNNEL = 1 << 17
"""In the mark of a check's socket, beside the endpoint's id: packets go to it in a tunnel."""


class ModeCode(IntEnum):
    NAT = 1
    DSR_L2 = 2
    DSR_L3 = 3
    FULLNAT = 4
    NAT_STATELESS = 5
    NAT_SETTLING = 6
    NAT_LEAVING = 7


STATELESS_MODES = ModeCode.NAT_STATELESS, ModeCode.NAT_SETTLING, ModeCode.NAT_LEAVING
"""Those in which some connections of NAT are not remembered one by one: bpf/stateless.h."""


class AlgorithmCode(IntEnum):
    ROUND_ROBIN = 1
    SOURCE_HASH = 2
    MAGLEV = 3
    LEAST_CONNECTIONS = 4


class EndpointRowState(IntEnum):
    FREE = 0
    USABLE = 1
    RETIRED = 2      # no manifest names the endpoint any more; its connections go on
    DISABLED = 3     # its connections end
    DEAD = 4         # its connections go on, but datagrams and INITs of NAT go elsewhere


class UndefinedCode(IntEnum):
    DROP = 0
    PASS = 1
    REJECT = 2       # the packet is dropped, and the sender is told


class EchoCode(IntEnum):
    REPLY = 0        # the program answers
    ENDPOINT = 1     # an endpoint of the service with protocol ICMP (or ICMPv6) and port 0 answers
    DROP = 2


class TooBigCode(IntEnum):
    ANSWER = 0       # the sender is told how big a packet may be
    DROP = 1


class ConnectionState(IntEnum):
    OPENING = 0           # the client has sent nothing but SYNs; UDP: no endpoint has answered; SCTP: no cookie yet
    OPEN = 1
    CLIENT_CLOSED = 2     # after the client's FIN
    ENDPOINT_CLOSED = 3
    OVER = 4              # after a RST, or a FIN of each side; a SYN opens a new one


class Memory(IntEnum):
    """How the endpoint is chosen for a flow whose slot is in transition, or for one of a client with affinity."""

    BEGINS = 0       # the flow begins: it gets the slot's current endpoint and is remembered
    REMEMBERED = 1
    PREVIOUS = 2     # the flow is unknown: it gets the slot's former endpoint
    CURRENT = 3      # the flow is unknown, and new (UDP) or its former endpoint dead: it gets the current one
    AFFINITY = 4     # no matter of a slot: the client had this endpoint before


class Verdict(IntEnum):
    """The reasons for the fates of packets to and from VIPs; one counter each. `meaning` is for people."""

    meaning: str

    def __new__(cls, number: int, meaning: str = "") -> Verdict:
        self = int.__new__(cls, number)
        self._value_, self.meaning = number, meaning
        return self

    REQUEST = 0, "forwarded to an endpoint"
    REPLY = 1, "forwarded to a client"
    VIA_KERNEL = 2, "rewritten and given to the kernel, which asks for the next hop's MAC"
    CONNECTION_UNKNOWN = 3, "belongs to no connection and opens none: the kernel answers with a reset"
    UNDEFINED = 4, "dropped: to a VIP, but to none of its services"
    FRAGMENT = 5, "dropped: an IP fragment has no ports to balance by, and none came before that has them"
    IP_OPTIONS = 6, "dropped: with IP options the ports are not in their usual place"
    TTL_EXPIRED = 7, "dropped: its TTL allows for no further hop"
    MALFORMED = 8, "dropped: its lengths contradict each other, or a header is cut off"
    NO_ENDPOINT = 9, "dropped: the pool has no active endpoint"
    NO_ROUTE = 10, "dropped: the FIB has no way to the next hop, or there is no source for a tunnel"
    TOO_BIG = 11, "dropped: longer than the MTU of the way out"
    ADDRESS_CLASH = 12, "dropped: every endpoint tried already talks to this client address and port"
    ENDPOINT_DISABLED = 13, "dropped: a reply of an endpoint that is disabled"
    TOO_BIG_ANSWERED = 14, "dropped: longer than the MTU of the way out, and the sender was told"
    NO_HEADROOM = 15, "dropped: the driver left no room for another header"
    NEIGHBOUR_UNKNOWN = 16, "dropped: the next hop's MAC is unknown; the kernel asks for it now"
    OFF_LINK = 17, "dropped: dsr-l2 reaches endpoints only on networks of the node itself"
    ICMP_ERROR = 18, "an ICMP error about a flow, forwarded to the flow's endpoint"
    REJECTED = 19, "dropped: to a VIP, but to none of its services, and the sender was told"
    ECHO_ANSWERED = 20, "a ping of a VIP, answered"
    ECHO_FORWARDED = 21, "a ping of a VIP, forwarded to an endpoint, which answers"
    ECHO_DROPPED = 22, "dropped: a ping of a VIP whose service drops pings"
    ERROR_RELAYED = 23, "an ICMP error about a packet on its way to an endpoint, relayed to the client"
    IMPOSSIBLE_SOURCE = 24, "dropped: from an address that no other host can have: loopback, multicast, the VIP itself"
    LINK_BROADCAST = 25, "dropped: the packet is for one VIP, its frame for many hosts (broadcast or multicast)"
    NOT_ALLOWED = 26, "dropped: the client is in none of the networks that may use the service"
    NOT_ALLOWED_ANSWERED = 27, "dropped: the client may not use the service, and was told"
    TABLE_FULL = 28, "dropped: the table of connections has no room for another one"
    STAGE_MISSING = 29, "dropped: the program that translates is gone, since somebody removed its pin"
    CHECK = 30, "a check of an endpoint through its VIP, forwarded to the endpoint"
    CHECK_ANSWERED = 31, "an answer to such a check, handed to who checks"
    TTL_EXPIRED_ANSWERED = 32, "dropped: its TTL allows for no further hop, and the sender is told"
    NO_PORT = 33, "dropped: no source address of fullnat has a port left towards the endpoint"
    # On endpoints whose program unpacks tunnels: the fate of each tunnelled packet.
    DECAPSULATED = 48, "unpacked, for a VIP of the endpoint"
    NOT_FOR_VIP = 49, "passed on untouched: the packet inside is for no VIP of the endpoint"
    TUNNEL_ELSEWHERE = 50, "passed on untouched: the tunnel ends at another node"
    TUNNEL_UNUSUAL = 51, "passed on untouched: the outer packet is a fragment, has options or contradicts itself"
    CONGESTED = 52, "dropped: marked for congestion, and its sender knows no such mark (RFC 6040)"


_UNKNOWN = "unknown "


def is_word(codes: type[IntEnum], name: str) -> bool:
    """Whether a name is one of the words of the manifests."""
    return name in {word(codes, number) for number in codes}


@functools.cache
def code(codes: type[IntEnum], name: str) -> int:
    """The number of a word of the manifests, e.g. `round-robin`, or of `word`'s "unknown 7". Raises KeyError."""
    if name.startswith(_UNKNOWN):
        return int(name.removeprefix(_UNKNOWN))
    return codes[name.upper().replace("-", "_")]


def word(codes: type[IntEnum], number: int) -> str:
    """The reverse of `code`. A number without a meaning (a row was damaged) reads as "unknown 7"."""
    try:
        return codes(number).name.lower().replace("_", "-")
    except ValueError:
        return f"{_UNKNOWN}{number}"
