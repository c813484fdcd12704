// SPDX-License-Identifier: GPL-2.0-only
/*
 * The maps and what their rows mean.
 *
 * reconciler/dataplane/rows.py and layout.py declare the same for user space; tests/packets/test_layout.py compares them.
 * Addresses and ports are in network byte order, as packets carry them (__be32, __be16); everything else is
 * in host byte order. Padding is named and always zero, since keys are compared byte by byte.
 *
 * Every map has one row here. lbctl makes the maps before it loads the program, and chooses their capacities; those that
 * a program with its features never looks anything up in are not made.
 */

enum mode {
	MODE_NAT = 1,
	MODE_DSR_L2 = 2,
	MODE_DSR_L3 = 3,
	MODE_FULLNAT = 4,
	MODE_NAT_STATELESS = 5,	/* stateless.h */
	MODE_NAT_SETTLING = 6,	/* on the way there */
	MODE_NAT_LEAVING = 7,	/* and back */
};

enum algorithm {
	ALGORITHM_ROUND_ROBIN = 1,
	ALGORITHM_SOURCE_HASH = 2,
	ALGORITHM_MAGLEV = 3,
	ALGORITHM_LEAST_CONNECTIONS = 4,
};

struct service_key {
	__be32 vip;
	__be16 port;
	u8 protocol;
	u8 pad;
};

struct service {
	u32 index;		/* of the service's counters */
	u32 ring;
	__be16 target_port;	/* 0: the port that the client asked for */
	u8 mode;
	u8 algorithm;
	u16 sources;		/* the list of those who may use it, 0: everybody; allow.h */
	u16 levels;		/* of that list: a bit for each that its nodes are on */
};

BPF_HASH(services, struct service_key, struct service, 1);

struct address6 {
	__be32 words[4];
};

/* IPv6 has maps of its own, so that the keys of IPv4 stay short. */
struct service6_key {
	__be32 vip[4];
	__be16 port;
	u8 protocol;
	u8 pad;
};

BPF_HASH(services6, struct service6_key, struct service, 1);

/* How often user space has changed rows of services or VIPs; one row. It counts after it has written a row. */
BPF_ARRAY(service_changes, u64, 1);

/*
 * What a CPU has found in the tables of services and VIPs: one line of a processor's cache with all of a service, or of a
 * VIP, found without a call (vip.h). By CPU and a hash of VIP, port and protocol, as `service_counters` below is by the
 * service's index.
 */
struct known_service {
	u64 stamp;		/* when it was found: a line is good for a moment, unless a row changes meanwhile */
	u32 index;		/* from here on as in struct service */
	u32 ring;
	__be16 target_port;
	u8 mode;
	u8 algorithm;
	u16 sources;
	u16 levels;
	__be32 vip[4];		/* an IPv4 address is the first word */
	__be16 port;
	u8 protocol;
	u8 is_ipv6;
	u8 pad[20];
};

BPF_ARRAY(known_services, struct known_service, 1);

/*
 * Lists of sources, in nodes: see allow.h. A node of level n stands for the first n bytes of an address; `bits` say which
 * values of the next byte are allowed.
 */
struct source_key {
	u32 list;
	u32 node;		/* the address, with zeros behind the bytes that count; its last byte is the level */
};

struct source6_key {
	u32 list;
	__be32 node[4];
};

struct source_node {
	u64 bits[4];
};

BPF_HASH(sources, struct source_key, struct source_node, 1);
BPF_HASH(sources6, struct source6_key, struct source_node, 1);

/* How the program treats packets to a VIP that belong to none of its services. */
enum undefined {
	UNDEFINED_DROP = 0,
	UNDEFINED_PASS = 1,
	UNDEFINED_REJECT = 2,	/* drop the packet and tell the sender */
};

/* How the program treats pings of a VIP. */
enum echo {
	ECHO_REPLY = 0,		/* the program answers */
	ECHO_ENDPOINT = 1,	/* an endpoint of the service with protocol ICMP (or ICMPv6) and port 0 answers */
	ECHO_DROP = 2,
};

struct vip {
	u8 undefined;
	u8 echo;
	u8 pad[2];
};

BPF_HASH(vips, __be32, struct vip, 1);

/* A bit for each 16-bit hash of an address: if the bit is 0, the address is no VIP. See vip.h. */
struct vip_filter {
	u8 bits[8192];
};

BPF_ARRAY(vip_filter, struct vip_filter, 1);

BPF_HASH(vips6, struct address6, struct vip, 1);

enum endpoint_state {
	ENDPOINT_FREE = 0,
	ENDPOINT_USABLE = 1,
	ENDPOINT_RETIRED = 2,	/* gets no new connections; its open ones go on */
	ENDPOINT_DISABLED = 3,	/* its connections end */
	ENDPOINT_DEAD = 4,	/* gets no new connections; its open ones go on, but datagrams and INITs of NAT go elsewhere */
};

struct endpoint {
	__be32 address;		/* zero: endpoints6 has the endpoint's address */
	__be16 port;		/* 0: the target port of the service */
	u8 state;
	u8 pad;
};

/* By endpoint id. Id 0 is never an endpoint. */
BPF_ARRAY(endpoints, struct endpoint, 1);

/* By endpoint id, too. User space writes this row before the one in `endpoints`. */
BPF_ARRAY(endpoints6, struct address6, 1);

/*
 * A bit for each hash of an address, in lines of a processor's cache: if the bit is 0, no endpoint has the address. Eight
 * bits for each endpoint that there is room for. User space writes a bit before an endpoint. See filter.h.
 */
struct endpoint_filter {
	u64 bits[8];
};

BPF_ARRAY(endpoint_filter, struct endpoint_filter, 1);

/*
 * The order in which a pool's endpoints are chosen, made by user space: a ring of slots, each with an endpoint in its
 * lower bits and a highest bit that says whether the slot is in transition (transition.h).
 *
 * Rings are the part of memory that a processor's cache holds the least of. So a slot has four bytes, two or one, as few
 * as the ids of its ring's endpoints allow for. It holds how much an id is above the ring's base; 0 is no endpoint.
 *
 * All rings lie in a few large arrays, their chunks. An element of a chunk is a line: 16, 32 or 64 slots or 8 rows, one
 * line of a processor's cache. A ring begins with a line of its own. All chunks have the same size, which spares a
 * look-up a call.
 *
 * While slots of a ring are in transition, rows follow in the lines behind the slots, one for each slot. Slots that pass
 * from one endpoint to another at the same time have the same row, so there are few that differ. So where slots have one
 * byte, rows are shared, and the head says so: a line has 32 slots, and in its other half for each the number of its row;
 * behind them are as many rows as a byte can tell apart. So a slot in transition needs one line that is hardly ever in a
 * processor's cache, and another that mostly is.
 *
 * By index of the ring, `rings` says where it lies and how many slots of which size it has. A ring is written to lines
 * that nobody uses, and this word then leads to it in one step. User space waits until no program is under way that may have read
 * an earlier word before it uses the former lines again.
 */
#define SLOT_ID_MASK 0x1ffff
#define SLOT_IN_TRANSITION (1U << 31)
#define WORDS_A_LINE 16		/* of 32 bits: a word has one slot, two or four */
#define WORDS_A_LINE_SHIFT 4
#define ROWS_A_LINE 8
#define SLOTS_OF_SHARED 32	/* in a line where rows are shared */
#define RING_SLOTS(ring) ((u32)(ring) & 0x7ffff)
#define RING_BASE(ring) (((u32)(ring) >> 19 & 0xfff) << 5)
#define RING_LINE(ring) ((u32)((ring) >> 32) & 0xffff)
#define RING_CHUNK(ring) ((u32)((ring) >> 48) & 0xfff)
#define RING_SHARES_ROWS(ring) ((u32)((ring) >> 60) & 1)
#define RING_SHIFT(ring) ((u32)((ring) >> 62))	/* 0, 1, 2: slots of four bytes, two, one */

BPF_ARRAY(rings, u64, 1);

struct line {
	u64 words[8];
};

BPF_ARRAY(chunk_template, struct line, 1);
BPF_ARRAY_OF_MAPS(ring_chunks, "chunk_template", 1);

/* By index of the ring: how many turns of round-robin it has given. */
BPF_ARRAY(ring_turns, u64, 1);

/*
 * By id of the endpoint: how many connections it has, as the sum of two numbers, either of which may be negative. The
 * program adds what begins and ends, and can't see what ends in silence; user space looks through the table now and then
 * and sets the other number so that the sum is right. See load.h.
 */
struct endpoint_load {
	u32 since;
	u32 counted;
	u32 weight;		/* among the endpoints of its pool; 0: no algorithm asks for it */
	u32 pad;
};

BPF_ARRAY(loads, struct endpoint_load, 1);

/*
 * The endpoints of a ring whose services have affinity, a row for each and one for number 0: so an endpoint is known to be
 * one of the ring's without looking for it there. The value is the same in all rows of a ring. When the last such service
 * goes, so do the rows; the next ones have another value, by which nobody is known who was known before. See affinity.h.
 */
struct member {
	u32 ring;
	u32 endpoint;
};

BPF_HASH(members, struct member, u32, 1);

/* Flows that began in a slot in transition: remember.h. One bucket is one line of a processor's cache. */
struct bucket {
	u64 flows[8];
};

BPF_ARRAY(remembered, struct bucket, 1);

/* The endpoints that clients had, for affinity; they are no flows, but have the same place. */
BPF_ARRAY(bound, struct bucket, 1);

/* A secret for the hashes of flows and connections, so that no attacker can tell which ones share a bucket. */
struct seed {
	u64 words[2];
};

BPF_ARRAY(seed, struct seed, 1);

/* How the program treats a packet that, with its tunnel's header, is longer than the MTU of its way. */
enum too_big {
	TOO_BIG_ANSWER = 0,	/* tell the sender how big a packet may be (RFC 1191) */
	TOO_BIG_DROP = 1,
};

/*
 * The settings of the whole node; one row.
 *
 * The outer source address of a tunnel is `tunnel_source` with bits of a hash of the flow where
 * `tunnel_spread` has ones. Network cards choose a receive queue by the outer addresses alone, so with one
 * source all packets to an endpoint land on one of its CPUs. Networks that check sources drop packets from
 * addresses that are nobody's, so spreading needs a prefix that is routed to the balancer; without one,
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

struct vlan {
	u32 trunk;
	u16 tag;		/* 1 to 4094 */
	u8 pad[2];
};

/* From the VLAN of a trunk to the interface that stands for it, and from the interface to the VLAN; see vlan.h. */
BPF_HASH(vlans, struct vlan, u32, 1);
BPF_HASH(trunks, u32, struct vlan, 1);

/* By interface: the next hop of packets that come in there for no network of the node, see gateway.h. */
struct gateway {
	__be32 address[4];	/* an IPv4 address is the first word */
	u8 is_ipv6;
	u8 pad[3];
};

BPF_HASH(gateways, u32, struct gateway, 1);

/*
 * Who checks endpoints through their VIPs, see check.h; one row. All zeros: nobody. Its sockets have marks: an endpoint's
 * id in the lowest bits, as slots of rings have it, and the bit MARK_TUNNEL for an endpoint that is reached by dsr-l3.
 */
#define MARK_TUNNEL (1U << 17)

struct prober {
	u32 ifindex;		/* of the interface behind which it is */
	__be32 address;		/* its own addresses; zero: it has none of this family */
	__be32 address6[4];
	u8 mac[6];
	u8 pad[2];
};

BPF_ARRAY(prober, struct prober, 1);

/* On endpoints: the VIPs whose packets the program unpacks from tunnels. */
struct unpacked_key {
	__be32 address[4];	/* an IPv4 address is the first word; the others are zero */
	u8 version;
	u8 pad[3];
};

struct unpacked {
	u8 pad[4];
};

BPF_HASH(unpacked, struct unpacked_key, struct unpacked, 1);

/*
 * The connections of NAT over IPv4, see connection.h. A bucket is a line of a processor's cache and has four places, each
 * of two words:
 *
 *         63                32 31           16 15      14 13    11 10     0
 *   who   | client's address  | client's port | protocol | state  | seen   |
 *
 *         63       47 46         29  28  27               14 13                 0
 *   where | endpoint | service     |   | client's numbers   | endpoint's numbers |
 *
 * Addresses and ports are numbers here. `service` is the index of the service's front. "Numbers" are the upper bits of
 * the last acknowledgement number of that side; of SCTP, the lower bits of the tag that it chose (association.h). A place
 * whose `who` is 0 is empty.
 */
enum connection_state {
	CONNECTION_OPENING = 0,		/* the client has sent nothing but SYNs; UDP: the endpoint has not answered; SCTP: no cookie yet */
	CONNECTION_OPEN = 1,
	CONNECTION_CLIENT_CLOSED = 2,	/* after the client's FIN */
	CONNECTION_ENDPOINT_CLOSED = 3,
	CONNECTION_OVER = 4,		/* after a RST, or a FIN of each side; a SYN opens a new one */
};

struct connections {
	u64 who[4];
	u64 where[4];
};

BPF_ARRAY(connections, struct connections, 1);

/*
 * The connections of NAT over IPv6: the same two words, with 32 bits of a hash of the client's address (fold_address) in
 * `who`, and the addresses themselves, four words for each place.
 */
struct connections6 {
	u64 who[4];
	u64 where[4];
	__be32 addresses[16];
};

BPF_ARRAY(connections6, struct connections6, 1);

/*
 * The connections of fullnat over IPv4, see fullnat.h: `who` and `where` as above, and the way of each to its endpoint:
 *
 *         63                32 31         16  15   14        0
 *   way   | source's address  | source's port | ends | pool    |
 *
 * "Source" is what the endpoint takes for the client: an address of the balancer. `ends`: the endpoint closed the
 * connection before the client did. `pool` is the number of the pool that the port is from, in `pool_ports`.
 */
struct translated {
	u64 who[4];
	u64 where[4];
	u64 way[4];
	u64 spare[4];
};

BPF_ARRAY(translated, struct translated, 1);

/* The same over IPv6. It begins as `connections6`; of the source, `way` has a hash (fold_address). */
struct translated6 {
	u64 who[4];
	u64 where[4];
	__be32 addresses[16];
	u64 way[4];
	u64 spare[4];
};

BPF_ARRAY(translated6, struct translated6, 1);

/*
 * Where replies find their connections in `translated`. A bucket is a line of a processor's cache and has eight words, each
 * in either of two buckets; 0 is an empty one:
 *
 *       57     43 42            27 26          0
 *       | pool   | source's port  | place + 1   |
 */
struct returns {
	u64 words[8];
};

BPF_ARRAY(returns, struct returns, 1);

/* The same for `translated6`. */
BPF_ARRAY(returns6, struct returns, 1);

/*
 * The ports of one source address towards one server: its address, port and protocol. No two connections of a pool have
 * the same port. Two endpoints may be the same server, so this is not by the endpoint's id.
 */
struct port_pool {
	__be32 source;
	__be32 address;
	__be16 port;
	u8 protocol;
	u8 pad;
};

/* From pools to their numbers. The program makes a pool when the first connection needs it. */
BPF_HASH(port_pools, struct port_pool, u32, 1);

/* The same over IPv6. Both versions share the numbers. */
struct port_pool6 {
	__be32 source[4];
	__be32 address[4];
	__be16 port;
	u8 protocol;
	u8 pad;
};

BPF_HASH(port_pools6, struct port_pool6, u32, 1);

/* The source of a pool over IPv6, by the pool's number. */
BPF_ARRAY(pool_sources6, struct address6, 1);

/* A pool by its number: see ports.h. */
struct pool_ports {
	__be32 source;		/* as in struct port_pool; zeros over IPv6 */
	__be32 address;
	__be16 port;
	u8 protocol;
	u8 pad;
	u32 cursor;		/* the port after the one that was taken last */
	u64 used;		/* how many are taken */
	u64 unrested;		/* how many were taken although they were tired */
	u64 refused;		/* how often there was none */
	u64 hand;		/* the port that is looked at next for one whose connection is no more */
	u64 full[16];		/* a bit for each word that has no port left */
	u64 words[4096];	/* a struct port_word for each 64 ports */
};

BPF_ARRAY(pool_ports, struct pool_ports, 1);

/* The numbers of pools that are in use, a bit each; one row. */
struct pool_numbers {
	u64 words[512];
	u64 full[8];		/* a bit for each word all of whose numbers are in use */
};

BPF_ARRAY(pool_numbers, struct pool_numbers, 1);

#define MOST_SOURCES 8

/* What fullnat has for sources; one row. */
struct snat {
	__be32 sources[8];
	u32 used;		/* how many of these there are */
	u16 first_port;
	u16 ports;		/* how many from that one on */
};

BPF_ARRAY(snat, struct snat, 1);

/* The same over IPv6. It begins as `snat`, without addresses there. */
struct snat6 {
	__be32 none[8];
	u32 used;
	u16 first_port;
	u16 ports;
	__be32 sources[32];
};

BPF_ARRAY(snat6, struct snat6, 1);

/* What a connection of fullnat that is about to open asks of the stage that takes ports, and its answer (fullnat.h). */
struct lease {
	u32 client;		/* the client's address and port, as numbers */
	u16 client_port;
	u8 protocol;
	u8 is_answered;
	__be32 address[4];	/* the endpoint's */
	__be16 port;
	u16 verdict;
	u32 endpoint;
	u32 pool;
	u8 pad[4];
	u64 way;
};

BPF_PERCPU_ARRAY(lease, struct lease, 1);

/* From which bucket of `translated` the sweep goes on, and how many places it has cleared; one row. */
struct swept {
	u64 next;
	u64 cleared;
};

BPF_ARRAY(swept, struct swept, 1);

/* The same of `translated6`. */
BPF_ARRAY(swept6, struct swept, 1);

/* What the other connections of a client look like while one is opened, see connection.h; nothing outlives a packet. */
struct looks {
	u64 places[8];
};

BPF_PERCPU_ARRAY(looks, struct looks, 1);

/*
 * What clients of nat and fullnat see of a service, by index of the service. User space writes it before the service, and
 * it outlives the service as long as connections have its index. All zeros: none.
 */
struct front {
	__be32 vip[4];		/* an IPv4 address is the first word */
	__be16 port;
	__be16 target_port;	/* 0: the same */
	u16 idle;		/* how long an open connection may be silent, in units of connection.h; 0: as the protocol has it */
	u8 protocol;
	u8 version;
	u32 idle_s;		/* the same in seconds, as it was asked for; for user space alone */
	u32 affinity_s;		/* for how many seconds a client keeps its endpoint, 0: for none; affinity.h */
};

BPF_ARRAY(fronts, struct front, 1);

/*
 * By endpoint id: how many SYNs were sent again by clients of nat and fullnat, since nobody had answered. User space
 * compares it with what it was a moment ago, and may start at any number.
 */
BPF_ARRAY(unanswered, u64, 1);

/*
 * The services of NAT that remember nothing, by the address, port and protocol that their replies come from: see
 * stateless.h. `until` is 0 while a service has the endpoint; else it was given up, and the row lasts until then, in units
 * of connection.h since the machine started: its connections may go on.
 */
struct served {
	__be32 vip;
	__be16 port;
	u8 pad[2];
	u32 endpoint;		/* its id */
	u32 until;
};

BPF_HASH(served, struct service_key, struct served, 1);

/* Tables for the checksum of SCTP, which user space writes once; one row. See crc32c.h. */
struct crc32c {
	u32 words[65536];
};

BPF_ARRAY(crc32c, struct crc32c, 1);

/* The stages of a main program, by number: stage.h. */
enum stage {
	STAGE_NAT4 = 0,
	STAGE_NAT6 = 1,
	STAGE_FULLNAT4 = 2,
	STAGE_PORTS = 3,
	STAGE_SWEEP = 4,
	STAGE_SCTP4 = 5,
	STAGE_FULLNAT6 = 6,
	STAGE_FRAGMENTS = 7,
	STAGE_PORTS6 = 8,
	STAGE_SWEEP6 = 9,
	STAGE_FIRST4 = 10,
};

BPF_PROG_ARRAY(stages, 1);

/* A packet that came in fragments: RFC 791, section 2.3; RFC 8200, section 4.5. */
struct fragment_key {
	__be32 source[4];	/* an IPv4 address is the first word */
	__be32 destination[4];
	__be32 id;		/* of IPv4 two bytes */
	u8 protocol;
	u8 is_ipv6;
	u8 pad[2];
};

/* Where the first of them went, see fragment.h. */
struct fragment_way {
	u32 moment;
	u32 endpoint;
	u32 service;		/* index of the service's counters */
	u32 hash;		/* spreads flows over outer addresses */
	u32 change;		/* enum change */
	__be32 translated;	/* nat: the new address */
};

BPF_TABLE("lru_hash", struct fragment_key, struct fragment_way, fragment_ways, 1);

/*
 * What a main program knows about a packet that it hands to a stage, and what the stage has no room for on its stack;
 * nothing outlives a packet.
 */
struct handed {
	u32 index;		/* of the service that it is for, as in struct service; the mode is 0 if there is none */
	u32 ring;
	__be16 target_port;
	u8 mode;
	u8 algorithm;
	u16 sources;
	u16 levels;
	u32 ingress;		/* as in struct packet */
	u32 tci;
	u8 is_from_main;	/* 0: another program asks the stage */
	u8 is_refused;		/* the service turns the client away */
	u8 pad[6];
	__be32 client[4];	/* its address */
	__be32 peer[4];		/* the other end: the VIP of a request, the endpoint of a reply */
	__be32 translated[4];	/* what takes the peer's place */
	__be32 source[4];	/* fullnat: what takes the source's place */
	__be32 route[16];	/* struct bpf_fib_lookup */
};

BPF_PERCPU_ARRAY(handed_over, struct handed, 1);

/*
 * While one program takes over from another that has its connections in another table, each finds the other one here,
 * to ask it about connections that it does not know: first its main program, by which user space knows it, then its stages.
 * Empty at all other times.
 */
#define OTHER_STAGES 1

BPF_PROG_ARRAY(other, 1);

/* The program that gets every packet while somebody watches, see watch.h; empty at all other times. */
BPF_PROG_ARRAY(watchers, 1);

struct traffic {
	u64 connections;
	u64 request_packets;
	u64 request_bytes;	/* of IP packets, without the link's header */
	u64 reply_packets;
	u64 reply_bytes;
};

/*
 * What a CPU counts of an endpoint, and the FIB's last answer about the way to it (next_hop.h): one line of a processor's
 * cache, all that a packet needs of an endpoint beside its row in `endpoints`.
 */
struct endpoint_line {
	u64 connections;	/* as in struct traffic */
	u64 request_packets;
	u64 request_bytes;
	u64 reply_packets;
	u64 reply_bytes;
	u32 moment;
	u32 ifindex;
	u16 mtu;
	u16 asked;
	u8 macs[12];		/* as they stand in a frame */
};

/*
 * By CPU and index of the service, or id of the endpoint: first all rows of CPU 0, then those of CPU 1 (count.h). The
 * kernel's own per-CPU arrays lie apart from lines of the cache, and behind one more look-up.
 */
BPF_ARRAY(service_counters, struct traffic, 1);
BPF_ARRAY(endpoint_counters, struct endpoint_line, 1);

/* The reasons for the fates of packets to and from VIPs; one counter each. */
enum verdict {
	VERDICT_REQUEST = 0,		/* forwarded to an endpoint */
	VERDICT_REPLY = 1,		/* forwarded to a client */
	VERDICT_VIA_KERNEL = 2,		/* rewritten; the kernel asks for the next hop's MAC and forwards the packet */
	VERDICT_CONNECTION_UNKNOWN = 3,	/* opens no connection and belongs to none: the kernel resets it */
	VERDICT_UNDEFINED = 4,		/* dropped, as all up to 17: belongs to none of the VIP's services */
	VERDICT_FRAGMENT = 5,
	VERDICT_IP_OPTIONS = 6,
	VERDICT_TTL_EXPIRED = 7,
	VERDICT_MALFORMED = 8,
	VERDICT_NO_ENDPOINT = 9,
	VERDICT_NO_ROUTE = 10,
	VERDICT_TOO_BIG = 11,
	VERDICT_ADDRESS_CLASH = 12,	/* every endpoint tried already talks to this client address and port */
	VERDICT_ENDPOINT_DISABLED = 13,	/* a reply of an endpoint that is disabled */
	VERDICT_TOO_BIG_ANSWERED = 14,	/* dropped, and the sender was told */
	VERDICT_NO_HEADROOM = 15,	/* the driver left no room for another header */
	VERDICT_NEIGHBOUR_UNKNOWN = 16,	/* dropped, but the kernel asks for the next hop's MAC */
	VERDICT_OFF_LINK = 17,		/* dsr-l2 can't reach an endpoint behind a router */
	VERDICT_ICMP_ERROR = 18,	/* an error about a flow, forwarded to the flow's endpoint */
	VERDICT_REJECTED = 19,		/* undefined and dropped, and the sender was told */
	VERDICT_ECHO_ANSWERED = 20,	/* a ping of a VIP, answered by the program */
	VERDICT_ECHO_FORWARDED = 21,	/* a ping of a VIP, forwarded to an endpoint */
	VERDICT_ECHO_DROPPED = 22,
	VERDICT_ERROR_RELAYED = 23,	/* an error about a packet on its way to an endpoint, relayed to the client */
	VERDICT_IMPOSSIBLE_SOURCE = 24,	/* the source is an address that no other host can have */
	VERDICT_LINK_BROADCAST = 25,	/* the frame is for many hosts, its packet for one VIP */
	VERDICT_NOT_ALLOWED = 26,	/* the client is none of those who may use the service */
	VERDICT_NOT_ALLOWED_ANSWERED = 27,	/* the same, and the client was told */
	VERDICT_TABLE_FULL = 28,	/* there is no place for another connection */
	VERDICT_STAGE_MISSING = 29,	/* the program that translates is gone */
	VERDICT_CHECK = 30,		/* a check of an endpoint through its VIP, forwarded to the endpoint */
	VERDICT_CHECK_ANSWERED = 31,	/* a packet for the prober */
	VERDICT_TTL_EXPIRED_ANSWERED = 32,	/* dropped, and the sender is told */
	VERDICT_NO_PORT = 33,		/* no source of fullnat has a port left towards the endpoint */

	/* On endpoints whose program unpacks tunnels. All but the first and the last pass the packet on untouched. */
	VERDICT_DECAPSULATED = 48,
	VERDICT_NOT_FOR_VIP = 49,	/* the inner packet is for no VIP of the endpoint */
	VERDICT_TUNNEL_ELSEWHERE = 50,	/* the tunnel ends at another node */
	VERDICT_TUNNEL_UNUSUAL = 51,	/* the outer packet is a fragment, has options or contradicts itself */
	VERDICT_CONGESTED = 52,		/* dropped: marked for congestion, and its sender knows no such mark */
};

BPF_PERCPU_ARRAY(verdicts, u64, 1);

/* How the program chooses the endpoint of a flow whose slot is in transition. */
enum memory {
	MEMORY_BEGINS = 0,	/* the flow begins: it gets the slot's current endpoint and is remembered */
	MEMORY_REMEMBERED = 1,
	MEMORY_PREVIOUS = 2,	/* the flow is unknown: it gets the slot's former endpoint */
	MEMORY_CURRENT = 3,	/* the flow is unknown, and new (UDP) or its former endpoint dead: the current one */
	MEMORY_AFFINITY = 4,	/* no matter of a slot: the client had this endpoint before */
};

/* The values looked up for a packet; all ones: not looked up. Indexes of arrays have the name of their map. */
struct explained {
	u32 bytes;		/* of the frame that the program sees */
	u32 vip;		/* the VIP's treatment of undefined traffic: enum undefined */
	u32 service;		/* index of the service's counters */
	u32 flow;		/* the state of a connection in `connections` */
	u32 rings;
	u32 ring_chunks;
	u32 slots;
	u32 slot;
	u32 holder;		/* the current endpoint of a slot in transition */
	u32 memory;
	u32 endpoint;
	u32 fib;		/* what bpf_fib_lookup() returned */
	u32 egress;		/* index of the interface */
	u32 verdict;
};

BPF_ARRAY(explained, struct explained, 1);

/* Which packets are watched: from a client to a VIP, and to the client. `limit` is how many may be reported in all. */
struct watch_filter {
	__be32 client[4];	/* an IPv4 address is the first word */
	__be32 vip[4];
	u64 until;		/* ns of CLOCK_MONOTONIC */
	u64 taken;		/* how many were reported */
	u64 limit;
	__be16 client_port;	/* 0: any */
	__be16 vip_port;	/* 0: any */
	u8 is_ipv6;
	u8 has_vip;		/* 0: any */
	u8 pad[2];
};

BPF_ARRAY(watch_filter, struct watch_filter, 1);

/* A packet that was watched. `sequence` is its number, from 1 on, and is written last. */
struct watched {
	u64 sequence;
	u64 time;		/* ns of CLOCK_MONOTONIC */
	u64 missed;		/* in `watching` only: how many were above the limit */
	u32 is_on;
	u32 action;
	u32 bytes;		/* of the frame as it came in */
	u32 bytes_after;
	u32 ingress;		/* index of the interface */
	u32 pad;
	u8 seen[56];		/* struct explained */
	u8 before[128];		/* the frame's beginning as it came in */
	u8 after[128];		/* and as the program left it */
};

BPF_PERCPU_ARRAY(watching, struct watched, 1);
BPF_ARRAY(watch_reports, struct watched, 1);
