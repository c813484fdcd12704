// SPDX-License-Identifier: GPL-2.0-only
/*
 * The maps and what their rows mean.
 *
 * reconciler/kernel/layout.py declares the same for user space; tests/packets/test_layout.py compares them.
 * Addresses and ports are in network byte order, as packets carry them (__be32, __be16); everything else is
 * in host byte order. Padding is named and always zero, since keys are compared byte by byte.
 *
 * Every map has one row here. Whoever loads the program makes the maps and chooses their capacities.
 */

enum mode {
	MODE_NAT = 1,
	MODE_DSR_L2 = 2,
	MODE_DSR_L3 = 3,
};

enum algorithm {
	ALGORITHM_ROUND_ROBIN = 1,
	ALGORITHM_SOURCE_HASH = 2,
	ALGORITHM_MAGLEV = 3,
};

struct service_key {
	__be32 vip;
	__be16 port;
	u8 protocol;
	u8 pad;
};

struct service {
	u32 index;		/* of its counters */
	u32 ring;
	__be16 target_port;	/* 0: the port that the client asked for */
	u8 mode;
	u8 algorithm;
};

BPF_HASH(services, struct service_key, struct service, 1);

struct address6 {
	__be32 words[4];
};

#ifdef IPV6
/* The same for IPv6 in maps of their own: the keys of IPv4 stay as short as they are. */
struct service6_key {
	__be32 vip[4];
	__be16 port;
	u8 protocol;
	u8 pad;
};

BPF_HASH(services6, struct service6_key, struct service, 1);
#endif

/* What becomes of packets to a VIP that belong to none of its services. */
enum undefined {
	UNDEFINED_DROP = 0,
	UNDEFINED_PASS = 1,
	UNDEFINED_REJECT = 2,	/* dropped, and the sender is told */
};

/* What becomes of pings of a VIP. */
enum echo {
	ECHO_REPLY = 0,		/* answered right here */
	ECHO_ENDPOINT = 1,	/* for the endpoints of the service with protocol ICMP (or ICMPv6) and port 0 */
	ECHO_DROP = 2,
};

struct vip {
	u8 undefined;
	u8 echo;
	u8 pad[2];
};

BPF_HASH(vips, __be32, struct vip, 1);

/* A bit for each 16-bit hash of an address: where it is not set, no VIP has the address. See vip.h. */
struct vip_filter {
	u8 bits[8192];
};

BPF_ARRAY(vip_filter, struct vip_filter, 1);

#ifdef IPV6
BPF_HASH(vips6, struct address6, struct vip, 1);
#endif

enum endpoint_state {
	ENDPOINT_FREE = 0,
	ENDPOINT_USABLE = 1,
	ENDPOINT_RETIRED = 2,	/* gets no new connections; those that it has go on */
	ENDPOINT_DISABLED = 3,	/* its connections end */
};

struct endpoint {
	__be32 address;		/* zero: the endpoint has an IPv6 address, which is in endpoints6 */
	__be16 port;		/* 0: the target port of the service */
	u8 state;
	u8 pad;
};

/* By endpoint id. Id 0 is never an endpoint. */
BPF_ARRAY(endpoints, struct endpoint, 1);

#ifdef IPV6
/* By endpoint id, too. Written before the row in `endpoints` that says so. */
BPF_ARRAY(endpoints6, struct address6, 1);
#endif

/*
 * The order in which a pool's endpoints are chosen, made by user space: element 0 is the count of slots n,
 * elements 1 to n are endpoint ids. Each ring has its own size; this one only gives BCC the shape.
 *
 * A slot has the id in its lowest bits, then the generation of the ring, and whether it is in transition (see
 * `previous`). Element 0 has the count, then the generation, which is another one whenever the count is.
 */
#define SLOT_ID_MASK 0x1ffff
#define SLOT_GENERATION(slot) ((slot) >> 17 & 0x1fff)
#define SLOT_IN_TRANSITION (1U << 31)
#define HEAD_SLOTS(head) ((head) & 0x7ffff)
#define HEAD_GENERATION(head) ((head) >> 19)
#define RINGS 16384

BPF_ARRAY(ring_template, u32, 1);
BPF_ARRAY_OF_MAPS(rings, "ring_template", 1);

/*
 * Element 0 of each ring once more, since it is cheaper to read here. Rings are swapped one by one, and this is
 * written afterwards, so it is right only for slots of the same generation.
 */
BPF_ARRAY(ring_heads, u32, 1);

/* By index of the ring: how many connections were scheduled by it in turn. */
BPF_ARRAY(ring_turns, u64, 1);

#ifdef DSR
/*
 * What is known of a slot in transition, by index of the ring (and RINGS, if its generation is odd, so that a ring
 * of another size comes with its rows in one step) and number of the slot, counted from 0: who had it before. Times are in units of 2^30 ns of CLOCK_MONOTONIC, a little more than a second.
 *
 * A ring that stands still has no such array.
 */
struct previous {
	u32 stream;		/* the endpoint of connections that are not remembered */
	u32 datagram;		/* the endpoint of datagrams that are not remembered, until `learnt` */
	u32 began;		/* what is remembered from before is of an earlier transition */
	u32 learnt;
	u32 used;		/* when anybody but the current endpoint was last chosen */
	u8 pad[4];
};

BPF_ARRAY(previous_template, struct previous, 1);
BPF_ARRAY_OF_MAPS(previous, "previous_template", 1);

/* Flows that began in a slot in transition: remember.h. One bucket is one line of a processor's cache. */
struct bucket {
	u64 flows[8];
};

BPF_ARRAY(remembered, struct bucket, 1);

/* A secret, so that nobody can tell which flows share a bucket. */
struct seed {
	u64 words[2];
};

BPF_ARRAY(seed, struct seed, 1);

/* What the FIB said about the way to an endpoint, see next_hop.h. */
struct next_hop {
	u32 endpoint;
	u32 moment;
	u32 ifindex;
	u16 mtu;
	u16 tag;
	u64 destination;	/* a MAC, and the tag above it */
	u64 source;
};

BPF_ARRAY(next_hops, struct next_hop, 1);
#endif

/* What is done with a packet that fits no more once it is encapsulated. */
enum too_big {
	TOO_BIG_ANSWER = 0,	/* the sender is told how big it may be (RFC 1191) */
	TOO_BIG_DROP = 1,
};

/*
 * What holds for the whole node; one row.
 *
 * The outer source address of a tunnel is `tunnel_source` with bits of a hash of the flow where
 * `tunnel_spread` has ones. Network cards choose a receive queue by the outer addresses alone, so with one
 * source all packets to an endpoint land on one of its CPUs. Addresses that are nobody's are dropped by
 * networks that check sources, so spreading needs a prefix that is routed to the balancer; without one,
 * `tunnel_source` is an address of the balancer and `tunnel_spread` zero. No source, no tunnel.
 */
struct settings {
	__be32 tunnel_source;
	__be32 tunnel_spread;
	__be32 tunnel_source6[4];
	__be32 tunnel_spread6[4];
	u8 too_big;
	u8 pad[3];
};

BPF_ARRAY(settings, struct settings, 1);

#ifdef VLAN
struct vlan {
	u32 trunk;
	u16 tag;		/* 1 to 4094 */
	u8 pad[2];
};

/* The interface that stands for a VLAN of a trunk, and the other way round; see vlan.h. */
BPF_HASH(vlans, struct vlan, u32, 1);
BPF_HASH(trunks, u32, struct vlan, 1);
#endif

#ifdef GATEWAY
/* By interface: the next hop of what comes in there and is for no network of the node, see gateway.h. */
struct gateway {
	__be32 address[4];	/* of IPv4 the first word */
	u8 is_ipv6;
	u8 pad[3];
};

BPF_HASH(gateways, u32, struct gateway, 1);
#endif

#ifdef DECAPSULATE
/* Of endpoints: the VIPs that a program takes packets out of tunnels for. */
struct unpacked_key {
	__be32 address[4];	/* of IPv4 the first word; the others are zero */
	u8 version;
	u8 pad[3];
};

struct unpacked {
	u8 pad[4];
};

BPF_HASH(unpacked, struct unpacked_key, struct unpacked, 1);
#endif

#ifdef NAT
enum direction {
	DIRECTION_REQUEST = 0,	/* client to VIP: the new address is the endpoint's, for the destination */
	DIRECTION_REPLY = 1,	/* endpoint to client: the new address is the VIP, for the source */
};

enum flow_state {
	FLOW_OPENING = 0,	/* nothing but SYNs */
	FLOW_OPEN = 1,
	FLOW_CLOSING = 2,	/* a FIN or a RST came by; a SYN starts afresh once nothing else follows */
};

/* The addresses of a packet as it comes in. */
struct flow_key {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	u8 protocol;
	u8 pad[3];
};

/* One half of a connection; the other half has the opposite direction and the same state. */
struct flow {
	__be32 address;		/* what replaces the destination (request) or the source (reply) */
	__be16 port;
	u8 direction;
	u8 state;
	u32 endpoint;
	u32 service;		/* index of the service's counters */
	u64 last_seen;		/* ns of CLOCK_MONOTONIC, a second late at most */
	__be32 acknowledged;	/* by the sender of these packets, so where the other side's go on; 0: unknown */
	u8 pad[4];
};

BPF_TABLE("lru_hash", struct flow_key, struct flow, flows, 1);
#endif

struct traffic {
	u64 connections;
	u64 request_packets;
	u64 request_bytes;	/* of IP packets, without the link's header */
	u64 reply_packets;
	u64 reply_bytes;
};

BPF_PERCPU_ARRAY(service_counters, struct traffic, 1);
BPF_PERCPU_ARRAY(endpoint_counters, struct traffic, 1);

/* Why a packet to or from a VIP went where it went; one counter each. */
enum verdict {
	VERDICT_REQUEST = 0,		/* forwarded to an endpoint */
	VERDICT_REPLY = 1,		/* forwarded to a client */
	VERDICT_VIA_KERNEL = 2,		/* rewritten; the kernel finds out the next hop's MAC and forwards it */
	VERDICT_CONNECTION_UNKNOWN = 3,	/* opens no connection and belongs to none: the kernel resets it */
	VERDICT_UNDEFINED = 4,		/* dropped from here on */
	VERDICT_FRAGMENT = 5,
	VERDICT_IP_OPTIONS = 6,
	VERDICT_TTL_EXPIRED = 7,
	VERDICT_MALFORMED = 8,
	VERDICT_NO_ENDPOINT = 9,
	VERDICT_NO_ROUTE = 10,
	VERDICT_TOO_BIG = 11,
	VERDICT_ADDRESS_CLASH = 12,	/* the endpoints tried already talk to this client address and port */
	VERDICT_ENDPOINT_DISABLED = 13,	/* a reply of an endpoint that was cut off */
	VERDICT_TOO_BIG_ANSWERED = 14,	/* dropped, too, but the sender knows why */
	VERDICT_NO_HEADROOM = 15,	/* the driver left no room for another header */
	VERDICT_NEIGHBOUR_UNKNOWN = 16,	/* dropped, but the kernel asks for the next hop's MAC */
	VERDICT_OFF_LINK = 17,		/* the endpoint of dsr-l2 is behind a router */
	VERDICT_ICMP_ERROR = 18,	/* about a flow, forwarded to the endpoint that has it */
	VERDICT_REJECTED = 19,		/* undefined, and the sender knows */
	VERDICT_ECHO_ANSWERED = 20,	/* a ping of a VIP */
	VERDICT_ECHO_FORWARDED = 21,	/* to an endpoint */
	VERDICT_ECHO_DROPPED = 22,
	VERDICT_ERROR_RELAYED = 23,	/* of a router on the way to an endpoint, about a tunnel */
	VERDICT_IMPOSSIBLE_SOURCE = 24,	/* an address that no other host can have */
	VERDICT_LINK_BROADCAST = 25,	/* in a frame for many, although its packet is for one */

	/* Of endpoints, where a program unpacks tunnels: what became of each that came in. */
	VERDICT_DECAPSULATED = 48,
	VERDICT_NOT_FOR_VIP = 49,	/* what is inside; passed on untouched, as all but the last one here */
	VERDICT_TUNNEL_ELSEWHERE = 50,	/* the tunnel ends at another node */
	VERDICT_TUNNEL_UNUSUAL = 51,	/* the outer packet is a fragment, has options or contradicts itself */
	VERDICT_CONGESTED = 52,		/* dropped: marked for congestion, which the sender would not understand */
};

BPF_PERCPU_ARRAY(verdicts, u64, 1);

#ifdef EXPLAIN
/* Where the endpoint of a flow comes from whose slot is in transition. */
enum memory {
	MEMORY_BEGINS = 0,	/* the flow begins: the slot's current endpoint, which is remembered */
	MEMORY_REMEMBERED = 1,
	MEMORY_PREVIOUS = 2,	/* the flow is unknown: the endpoint that had the slot before */
	MEMORY_CURRENT = 3,	/* unknown, too, but nobody had the slot before or is alive */
};

/* What was looked up for a packet, all ones where it never was. Indexes of arrays have the name of their map. */
struct explained {
	u32 bytes;		/* of the frame, as far as the program can see it */
	u32 vip;		/* what becomes of undefined traffic to it */
	u32 service;		/* index of its counters */
	u32 flow;		/* its state, of one that is in `flows` */
	u32 rings;
	u32 slots;
	u32 slot;
	u32 previous;
	u32 holder;		/* the endpoint that holds the slot, where that is in transition */
	u32 memory;
	u32 endpoint;
	u32 fib;		/* what bpf_fib_lookup() returned */
	u32 egress;		/* index of the interface */
};

BPF_ARRAY(explained, struct explained, 1);
#endif
