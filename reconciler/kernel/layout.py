# SPDX-License-Identifier: Apache-2.0
"""The maps of the data plane: names, shapes, sizes. `bpf/maps.h` declares the same for the program.

Formats are `struct` strings. Fields that travel in packets (addresses, ports) are in network byte order and
are written as raw bytes ("4s", "2s"); everything else is in host byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from reconciler import limits


class MapType(IntEnum):
    """`enum bpf_map_type` of include/uapi/linux/bpf.h."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12


NO_PREALLOC = 1 << 0
"""BPF_F_NO_PREALLOC: rows of a hash take memory only once they are there."""
MMAPABLE = 1 << 10
"""BPF_F_MMAPABLE: user space can map an array into its own memory (Linux 5.5)."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map. It is made only if the program has one of these `features`; always, if there are none.

    `inner` is the format of the rows of an array of arrays.
    """

    name: str
    type: MapType
    key: str
    value: str
    capacity: int
    features: tuple[str, ...] = ()
    is_mmapable: bool = False
    inner: str = ""

    @property
    def key_size(self) -> int:
        return struct.calcsize(self.key)

    @property
    def value_size(self) -> int:
        """Bytes of one value; for a per-CPU map, of one CPU's value."""
        return struct.calcsize(self.value)

    @property
    def flags(self) -> int:
        """The flags that the map is created with."""
        return (NO_PREALLOC if self.type == MapType.HASH else 0) | (MMAPABLE if self.is_mmapable else 0)

    def is_used(self, features: Collection[str]) -> bool:
        """Whether a program with these features needs the map."""
        return not self.features or not set(self.features).isdisjoint(features)


_NAT = ("NAT",)
_DSR = ("DSR_L2", "DSR_L3")
_IPV6 = ("IPV6",)

# vip, port, protocol, padding → index of its counters, ring, target port (0: as asked), mode, algorithm
SERVICES = MapSpec("services", MapType.HASH, "=4s2sBx", "=II2sBB", limits.SERVICES)
# vip → what becomes of undefined traffic and of pings (UndefinedCode, EchoCode below), padding
VIPS = MapSpec("vips", MapType.HASH, "=4s", "=BBxx", limits.SERVICES)
# 0 → a bit for each hash of an address (bpf/vip.h): if it is 0, the address is no VIP
VIP_FILTER = MapSpec("vip_filter", MapType.ARRAY, "=I", "=8192s", 1)
# id (0 is never used) → address, port (0: as asked), state (EndpointRowState below), padding
ENDPOINTS = MapSpec("endpoints", MapType.ARRAY, "=I", "=4s2sBx", limits.ENDPOINTS + 1)
# the same for IPv6: vip, port, protocol, padding → as in services; vip → as in vips; id → address of an
# endpoint whose address in `endpoints` is zero
SERVICES6 = MapSpec("services6", MapType.HASH, "=16s2sBx", "=II2sBB", limits.SERVICES, _IPV6)
VIPS6 = MapSpec("vips6", MapType.HASH, "=16s", "=BBxx", limits.SERVICES, _IPV6)
ENDPOINTS6 = MapSpec("endpoints6", MapType.ARRAY, "=I", "=16s", limits.ENDPOINTS + 1, _IPV6)
# index → array of unsigned 32-bit numbers: the count of slots n, then n endpoints; see reconciler/slots.py
RINGS = MapSpec("rings", MapType.ARRAY_OF_MAPS, "=I", "=I", 16_384, inner="=I")
# index → element 0 of the ring once more
RING_HEADS = MapSpec("ring_heads", MapType.ARRAY, "=I", "=I", RINGS.capacity)
# index of a ring, or 16,384 + index → array with a row for each slot, only while slots of the ring are in transition:
# the endpoints that unknown connections and unknown datagrams go to, and three times in units of 2**30 ns of
# CLOCK_MONOTONIC: the begin of the transition, the end of the time in which datagrams are learnt, the last use of
# another endpoint than the current one
PREVIOUS = MapSpec("previous", MapType.ARRAY_OF_MAPS, "=I", "=I", 2 * RINGS.capacity, _DSR, inner="=5Ixxxx")
# hash → eight flows that began in a transition, each as one number (bpf/remember.h)
REMEMBERED = MapSpec("remembered", MapType.ARRAY, "=I", "=8Q", 131_072, _DSR, is_mmapable=True)
# 0 → the secret that the hashes of `remembered` depend on, made with the map
SEED = MapSpec("seed", MapType.ARRAY, "=I", "=2Q", 1, _DSR)
# id of an endpoint → the way to it; a cache that only the program writes
NEXT_HOPS = MapSpec("next_hops", MapType.ARRAY, "=I", "=IIIHHQQ", 65_536, _DSR)
# index of a ring → number of connections that it scheduled; round-robin takes its turn from this
RING_TURNS = MapSpec("ring_turns", MapType.ARRAY, "=I", "=Q", 16_384)
# name of a ring, filled up with zeros → its index; the program has no use for it
RING_NAMES = MapSpec("ring_names", MapType.HASH, "=128s", "=I", 16_384)
# source, destination, source port, destination port, protocol, padding
# → new address, new port, direction, state, endpoint id, index of the service's counters, last seen (ns), the number
# that the sender acknowledged last, padding
FLOWS = MapSpec("flows", MapType.LRU_HASH, "=4s4s2s2sBxxx", "=4s2sBBIIQ4sxxxx", limits.FLOW_ROWS, _NAT)
# index → connections, request packets, request bytes, reply packets, reply bytes
SERVICE_COUNTERS = MapSpec("service_counters", MapType.PERCPU_ARRAY, "=I", "=5Q", limits.SERVICES)
ENDPOINT_COUNTERS = MapSpec("endpoint_counters", MapType.PERCPU_ARRAY, "=I", "=5Q", limits.ENDPOINTS + 1)
# Verdict below → packets
VERDICTS = MapSpec("verdicts", MapType.PERCPU_ARRAY, "=I", "=Q", 64)
# 0 → source of IPv4 tunnels, the bits of it that a hash of the flow replaces, the same two for IPv6, what becomes of
# packets that are too big to be encapsulated (TooBigCode below), padding
SETTINGS = MapSpec("settings", MapType.ARRAY, "=I", "=4s4s16s16sBxxx", 1)
# ifindex of a trunk, tag, padding → ifindex of the interface that stands for the VLAN; and the other way round
VLANS = MapSpec("vlans", MapType.HASH, "=IHxx", "=I", 4_096, ("VLAN",))
TRUNKS = MapSpec("trunks", MapType.HASH, "=I", "=IHxx", 4_096, ("VLAN",))
# of endpoints: a VIP for which the program unpacks tunnels, filled up with zeros; version of IP, padding → padding
UNPACKED = MapSpec("unpacked", MapType.HASH, "=16sBxxx", "=4x", 16_384, features=("DECAPSULATE",))
# ifindex → next hop of packets that come in there and go to no network of the node (IPv4: 4 bytes), whether it is IPv6
GATEWAYS = MapSpec("gateways", MapType.HASH, "=I", "=16sBxxx", 1_024, ("GATEWAY",))
# only in the program that explains: the values that it looked up for a packet, in this order; all ones: not looked up
EXPLANATION = (
    "bytes", "vip", "service", "flow", "rings", "slots", "slot", "previous", "holder", "memory", "endpoint", "fib",
    "egress",
)  # fmt: skip
EXPLAINED = MapSpec("explained", MapType.ARRAY, "=I", "=13I", 1, ("EXPLAIN",))

# index → number of the inner array that is there. Only user space reads these: before Linux 6.8, a process that reads
# the array of maps itself waits for all CPUs, once for each row (maybe_wait_bpf_programs in bpf_map_copy_value)
RING_IDS = MapSpec("ring_ids", MapType.ARRAY, "=I", "=I", RINGS.capacity)
PREVIOUS_IDS = MapSpec("previous_ids", MapType.ARRAY, "=I", "=I", PREVIOUS.capacity, _DSR)
INNER_IDS = {RINGS.name: RING_IDS, PREVIOUS.name: PREVIOUS_IDS}

MAPS = {
    spec.name: spec
    for spec in (
        SERVICES, VIPS, VIP_FILTER, ENDPOINTS, SERVICES6, VIPS6, ENDPOINTS6, RINGS, RING_HEADS, RING_TURNS, RING_NAMES,
        PREVIOUS, REMEMBERED, SEED, NEXT_HOPS, FLOWS, SERVICE_COUNTERS, ENDPOINT_COUNTERS, VERDICTS, SETTINGS,
        VLANS, TRUNKS, GATEWAYS, RING_IDS, PREVIOUS_IDS, UNPACKED, EXPLAINED,
    )
}  # fmt: skip


class ModeCode(IntEnum):
    NAT = 1
    DSR_L2 = 2
    DSR_L3 = 3


class AlgorithmCode(IntEnum):
    ROUND_ROBIN = 1
    SOURCE_HASH = 2
    MAGLEV = 3


class EndpointRowState(IntEnum):
    FREE = 0
    USABLE = 1
    RETIRED = 2      # no manifest names it any more; connections that point to it go on
    DISABLED = 3     # connections that point to it end


class UndefinedCode(IntEnum):
    DROP = 0
    PASS = 1
    REJECT = 2       # dropped, and the sender is told


class EchoCode(IntEnum):
    REPLY = 0        # answered by the program
    ENDPOINT = 1     # for the endpoints of the service with protocol ICMP (or ICMPv6) and port 0
    DROP = 2


class TooBigCode(IntEnum):
    ANSWER = 0       # the sender is told how big a packet may be
    DROP = 1


class Direction(IntEnum):
    REQUEST = 0      # client to VIP: the flow's new address is the endpoint's, for the destination
    REPLY = 1        # endpoint to client: the flow's new address is the VIP, for the source


class FlowState(IntEnum):
    OPENING = 0      # nothing but SYNs
    OPEN = 1
    CLOSING = 2      # a FIN or a RST came by; a SYN starts afresh


class Memory(IntEnum):
    """How the endpoint is chosen for a flow whose slot is in transition."""

    BEGINS = 0       # the flow begins: the slot's current endpoint, which is remembered
    REMEMBERED = 1
    PREVIOUS = 2     # the flow is unknown: the endpoint that had the slot before
    CURRENT = 3      # unknown, too, but no endpoint had the slot before, or it is dead


class Verdict(IntEnum):
    """Why a packet to or from a VIP went where it went; one counter each. `meaning` says it to people."""

    meaning: str

    def __new__(cls, number: int, meaning: str = "") -> Verdict:
        self = int.__new__(cls, number)
        self._value_, self.meaning = number, meaning
        return self

    REQUEST = 0, "forwarded to an endpoint"
    REPLY = 1, "forwarded to a client"
    VIA_KERNEL = 2, "rewritten and given to the kernel, which finds out the next hop's MAC"
    CONNECTION_UNKNOWN = 3, "belongs to no connection and opens none: the kernel answers with a reset"
    UNDEFINED = 4, "dropped: to a VIP, but to none of its services"
    FRAGMENT = 5, "dropped: an IP fragment has no ports to balance by"
    IP_OPTIONS = 6, "dropped: with IP options the ports are not where they always are"
    TTL_EXPIRED = 7, "dropped: its TTL allows for no further hop"
    MALFORMED = 8, "dropped: lengths that contradict each other, a header that is cut off"
    NO_ENDPOINT = 9, "dropped: the pool has no active endpoint"
    NO_ROUTE = 10, "dropped: the FIB has no way to the next hop, or there is no source for a tunnel"
    TOO_BIG = 11, "dropped: longer than the MTU of the way out"
    ADDRESS_CLASH = 12, "dropped: every endpoint tried already talks to this client address and port"
    ENDPOINT_DISABLED = 13, "dropped: a reply of an endpoint that is disabled"
    TOO_BIG_ANSWERED = 14, "dropped: longer than the MTU of the way out, and the sender was told"
    NO_HEADROOM = 15, "dropped: the driver left no room for another header"
    NEIGHBOUR_UNKNOWN = 16, "dropped: nobody knows the next hop's MAC, for which the kernel asks now"
    OFF_LINK = 17, "dropped: dsr-l2 reaches an endpoint only on a network of the node itself"
    ICMP_ERROR = 18, "an ICMP error about a flow, forwarded to the endpoint that has it"
    REJECTED = 19, "dropped: to a VIP, but to none of its services, and the sender was told"
    ECHO_ANSWERED = 20, "a ping of a VIP, answered"
    ECHO_FORWARDED = 21, "a ping of a VIP, forwarded to an endpoint, which answers"
    ECHO_DROPPED = 22, "dropped: a ping of a VIP, as its service wants it"
    ERROR_RELAYED = 23, "a router's word that packets in a tunnel are too big, relayed to the client"
    IMPOSSIBLE_SOURCE = 24, "dropped: from an address that no other host can have: loopback, multicast, the VIP itself"
    LINK_BROADCAST = 25, "dropped: for one VIP, but in a frame for many: broadcast or multicast"
    # On endpoints whose program unpacks tunnels: what became of each tunnelled packet.
    DECAPSULATED = 48, "unpacked, for a VIP of the endpoint"
    NOT_FOR_VIP = 49, "passed on untouched: what is inside is for nobody that the endpoint holds"
    TUNNEL_ELSEWHERE = 50, "passed on untouched: the tunnel ends at another node"
    TUNNEL_UNUSUAL = 51, "passed on untouched: the outer packet is a fragment, has options, contradicts itself"
    CONGESTED = 52, "dropped: marked for congestion, which its sender would not understand (RFC 6040)"


_UNKNOWN = "unknown "


def is_word(codes: type[IntEnum], name: str) -> bool:
    """Whether a name is one of the words of the manifests."""
    return name in {word(codes, number) for number in codes}


def code(codes: type[IntEnum], name: str) -> int:
    """The number of a word of the manifests, e.g. `round-robin`, or of `word`'s "unknown 7". Raises KeyError."""
    if name.startswith(_UNKNOWN):
        return int(name.removeprefix(_UNKNOWN))
    return codes[name.upper().replace("-", "_")]


def word(codes: type[IntEnum], number: int) -> str:
    """The reverse of `code`; a number that means nothing (a row was damaged) reads as "unknown 7"."""
    try:
        return codes(number).name.lower().replace("_", "-")
    except ValueError:
        return f"{_UNKNOWN}{number}"
