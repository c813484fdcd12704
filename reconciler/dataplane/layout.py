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
"""BPF_F_NO_PREALLOC: a row of a hash takes memory only once it is written."""
MMAPABLE = 1 << 10
"""BPF_F_MMAPABLE: user space can map an array into its own memory (Linux 5.5)."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map. It is made if the program has one of its `features`, or if `features` is empty.

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

# vip, port, protocol, padding → index of the service's counters, ring, target port (0: the client's), mode, algorithm
SERVICES = MapSpec("services", MapType.HASH, "=4s2sBx", "=II2sBB", limits.SERVICES)
# vip → treatment of undefined traffic and of pings (UndefinedCode, EchoCode below), padding
VIPS = MapSpec("vips", MapType.HASH, "=4s", "=BBxx", limits.SERVICES)
# 0 → a bit for each hash of an address (bpf/vip.h): if it is 0, the address is no VIP
VIP_FILTER = MapSpec("vip_filter", MapType.ARRAY, "=I", "=8192s", 1)
# id (0 is never used) → address, port (0: the service's target port), state (EndpointRowState below), padding
ENDPOINTS = MapSpec("endpoints", MapType.ARRAY, "=I", "=4s2sBx", limits.ENDPOINTS + 1)
# the same for IPv6: vip, port, protocol, padding → as in services; vip → as in vips; id → address of an
# endpoint whose address in `endpoints` is zero
SERVICES6 = MapSpec("services6", MapType.HASH, "=16s2sBx", "=II2sBB", limits.SERVICES, _IPV6)
VIPS6 = MapSpec("vips6", MapType.HASH, "=16s", "=BBxx", limits.SERVICES, _IPV6)
ENDPOINTS6 = MapSpec("endpoints6", MapType.ARRAY, "=I", "=16s", limits.ENDPOINTS + 1, _IPV6)
# index → array of unsigned 32-bit numbers: the count of slots n, then n endpoints; see reconciler/dataplane/slots.py
RINGS = MapSpec("rings", MapType.ARRAY_OF_MAPS, "=I", "=I", 16_384, inner="=I")
# index → a copy of element 0 of the ring
RING_HEADS = MapSpec("ring_heads", MapType.ARRAY, "=I", "=I", RINGS.capacity)
# index of a ring, or 16,384 + index → array with a row for each slot, only while slots of the ring are in transition:
# the endpoint of unknown connections, that of unknown datagrams, and three times in units of 2**30 ns of
# CLOCK_MONOTONIC: the begin of the transition, the end of the time in which datagrams are learnt, the last use of
# another endpoint than the current one
PREVIOUS = MapSpec("previous", MapType.ARRAY_OF_MAPS, "=I", "=I", 2 * RINGS.capacity, _DSR, inner="=5Ixxxx")
# hash → eight flows that began in a transition, each as one number (bpf/remember.h)
REMEMBERED = MapSpec("remembered", MapType.ARRAY, "=I", "=8Q", 131_072, _DSR, is_mmapable=True)
# 0 → the secret of the hashes of `remembered`, made with the map
SEED = MapSpec("seed", MapType.ARRAY, "=I", "=2Q", 1, _DSR)
# id of an endpoint → the way to it; a cache that only the program writes
NEXT_HOPS = MapSpec("next_hops", MapType.ARRAY, "=I", "=IIIHHQQ", 65_536, _DSR)
# index of a ring → number of turns that round-robin has taken
RING_TURNS = MapSpec("ring_turns", MapType.ARRAY, "=I", "=Q", 16_384)
# name of a ring, filled up with zeros → its index; the program has no use for it
RING_NAMES = MapSpec("ring_names", MapType.HASH, "=128s", "=I", 16_384)
# source, destination, source port, destination port, protocol, padding
# → new address, new port, direction, state, endpoint id, index of the service's counters, last seen (ns), the sender's
# last acknowledgement, padding
FLOWS = MapSpec("flows", MapType.LRU_HASH, "=4s4s2s2sBxxx", "=4s2sBBIIQ4sxxxx", limits.FLOW_ROWS, _NAT)
# index → connections, request packets, request bytes, reply packets, reply bytes
SERVICE_COUNTERS = MapSpec("service_counters", MapType.PERCPU_ARRAY, "=I", "=5Q", limits.SERVICES)
ENDPOINT_COUNTERS = MapSpec("endpoint_counters", MapType.PERCPU_ARRAY, "=I", "=5Q", limits.ENDPOINTS + 1)
# Verdict below → packets
VERDICTS = MapSpec("verdicts", MapType.PERCPU_ARRAY, "=I", "=Q", 64)
# 0 → source of IPv4 tunnels, the bits of it that a hash of the flow replaces, the same two for IPv6, treatment of
# packets that are too big for their way (TooBigCode below), padding
SETTINGS = MapSpec("settings", MapType.ARRAY, "=I", "=4s4s16s16sBxxx", 1)
# ifindex of a trunk, tag, padding → ifindex of the interface that stands for the VLAN; `trunks` is the reverse
VLANS = MapSpec("vlans", MapType.HASH, "=IHxx", "=I", 4_096, ("VLAN",))
TRUNKS = MapSpec("trunks", MapType.HASH, "=I", "=IHxx", 4_096, ("VLAN",))
# on endpoints: a VIP whose packets the program unpacks, filled up with zeros; version of IP, padding → padding
UNPACKED = MapSpec("unpacked", MapType.HASH, "=16sBxxx", "=4x", 16_384, features=("DECAPSULATE",))
# ifindex → next hop of packets that come in there and go to no network of the node (IPv4: 4 bytes), whether it is IPv6
GATEWAYS = MapSpec("gateways", MapType.HASH, "=I", "=16sBxxx", 1_024, ("GATEWAY",))
# only in the program that explains: the values looked up for a packet, in this order; all ones: not looked up
EXPLANATION = (
    "bytes", "vip", "service", "flow", "rings", "slots", "slot", "previous", "holder", "memory", "endpoint", "fib",
    "egress",
)  # fmt: skip
EXPLAINED = MapSpec("explained", MapType.ARRAY, "=I", "=13I", 1, ("EXPLAIN",))

# index → number of the inner array at this index. Only user space reads these: before Linux 6.8, a process that reads
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
    RETIRED = 2      # no manifest names the endpoint any more; its connections go on
    DISABLED = 3     # its connections end


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


class Direction(IntEnum):
    REQUEST = 0      # client to VIP: the flow's new address is the endpoint's and replaces the destination
    REPLY = 1        # endpoint to client: the flow's new address is the VIP and replaces the source


class FlowState(IntEnum):
    OPENING = 0      # the client has sent nothing but SYNs
    OPEN = 1
    CLOSING = 2      # after a FIN or a RST; a SYN starts afresh


class Memory(IntEnum):
    """How the endpoint is chosen for a flow whose slot is in transition."""

    BEGINS = 0       # the flow begins: it gets the slot's current endpoint and is remembered
    REMEMBERED = 1
    PREVIOUS = 2     # the flow is unknown: it gets the slot's former endpoint
    CURRENT = 3      # the flow is unknown, and new (UDP) or its former endpoint dead: it gets the current one


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
    FRAGMENT = 5, "dropped: an IP fragment has no ports to balance by"
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
    ERROR_RELAYED = 23, "a router's error that packets in a tunnel are too big, relayed to the client"
    IMPOSSIBLE_SOURCE = 24, "dropped: from an address that no other host can have: loopback, multicast, the VIP itself"
    LINK_BROADCAST = 25, "dropped: the packet is for one VIP, its frame for many hosts (broadcast or multicast)"
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
