// SPDX-License-Identifier: GPL-2.0-only
/*
 * The headers of a packet. No packet is judged here: a broken one is dropped only if it is for a VIP, and only the
 * lookups tell.
 *
 * The extension headers of IPv6 (RFC 8200) are treated like the options and fragments of IPv4: the transport header must
 * follow the IP header at once.
 */

/* Bits of the field with the fragment offset. net/ip.h defines them, but is no UAPI header. */
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define IP_DONT_FRAGMENT 0x4000

enum packet_kind {
	PACKET_NOT_IP,		/* ARP, a VLAN tag (but see vlan.h), another version of IP, or an IP header cut off */
	PACKET_TRANSPORT,	/* of TCP, UDP or SCTP: the headers of all layers are whole and plausible */
	PACKET_ICMP_ERROR,	/* an error that quotes a packet with its ports */
	PACKET_ECHO,		/* a ping */
	PACKET_OTHER,		/* other ICMP, or another protocol */
	PACKET_MALFORMED,	/* its lengths contradict each other, or a header is cut off */
	PACKET_OPTIONS,		/* IP options or IPv6 extension headers: the ports are not in their usual place */
	PACKET_FRAGMENT,	/* a part of a packet: only the first part has ports */
};

/* The headers of TCP, UDP and SCTP begin with these. */
struct ports {
	__be16 source;
	__be16 destination;
};

/* The common header, RFC 9260, section 3.1. */
struct sctp {
	struct ports ports;
	__be32 tag;
	__le32 checksum;
};

/* Types of chunks, sections 3.2 and 3.3. */
#define SCTP_INIT 1
#define SCTP_INIT_ACK 2
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN 7
#define SCTP_SHUTDOWN_ACK 8
#define SCTP_COOKIE_ECHO 10
#define SCTP_COOKIE_ACK 11
#define SCTP_SHUTDOWN_COMPLETE 14

/* Types of ICMPv6 that neighbour discovery has: RFC 4861. */
#define NDISC_FIRST 133
#define NDISC_LAST 137

/* RFC 8200, section 4.5. */
struct fragment {
	u8 next;
	u8 reserved;
	__be16 offset;		/* with flags in the lowest three bits */
	__be32 id;
};

#define FRAGMENT_OFFSET 0xfff8
#define FRAGMENT_MORE 0x0001

struct packet {
	struct ethhdr *eth;
	union {
		struct iphdr *ip;
		struct ipv6hdr *ip6;
	};
	union {				/* what follows the IP header */
		void *transport;
		struct tcphdr *tcp;
		struct udphdr *udp;
		struct sctp *sctp;
		struct icmphdr *icmp;	/* ICMPv6 has the same fields in the same places */
	};
	union {				/* PACKET_ICMP_ERROR only */
		struct iphdr *quoted;
		struct ipv6hdr *quoted6;
	};
	struct ports *ports;		/* PACKET_TRANSPORT; PACKET_ICMP_ERROR: the quoted ports */
	u32 ip_bytes;
	u32 ingress;	/* the interface that the packet came in by; in a VLAN, the VLAN's interface */
	u32 tci;	/* VLAN only: of the tag that the packet came with, or leaves with; see vlan.h */
	u8 protocol;	/* of the packet; PACKET_ICMP_ERROR: of the quoted one */
	bool has_ipv6;
	bool opens;	/* the packet asks for a new connection of TCP, or association of SCTP */
	bool closes;	/* the packet ends one */
	u8 flags;	/* of TCP, as the next two; 0 for all else */
	__be32 sequence;
	__be32 acknowledged;
};

static __always_inline bool is_ipv6(const struct packet *packet)
{
	return HAS(AS_NAT6) || (HAS(IPV6) && packet->has_ipv6);
}

static __always_inline u32 ip_header_bytes(bool is_ipv6)
{
	return is_ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Where the addresses lie that a packet comes from and goes to. */
static __always_inline void *source_of(const struct packet *packet)
{
	return is_ipv6(packet) ? (void *)&packet->ip6->saddr : (void *)&packet->ip->saddr;
}

static __always_inline void *destination_of(const struct packet *packet)
{
	return is_ipv6(packet) ? (void *)&packet->ip6->daddr : (void *)&packet->ip->daddr;
}

static __always_inline bool is_icmp(const struct packet *packet)
{
	return is_ipv6(packet) ? packet->ip6->nexthdr == IPPROTO_ICMPV6 : packet->ip->protocol == IPPROTO_ICMP;
}

/* Whether a protocol, of a packet or of a quoted one, is UDP, where that is compiled in. */
static __always_inline bool is_udp(u8 protocol)
{
	return HAS(UDP) && protocol == IPPROTO_UDP;
}

static __always_inline u8 ttl_of(const struct packet *packet)
{
	return is_ipv6(packet) ? packet->ip6->hop_limit : packet->ip->ttl;
}

/* The type of service, or traffic class. */
static __always_inline u8 tos_of(const struct packet *packet)
{
	return is_ipv6(packet) ? bpf_ntohl(*(const __be32 *)packet->ip6) >> 20 : packet->ip->tos;
}

static __always_inline void set_ttl(const struct packet *packet, u8 ttl)
{
	struct iphdr *ip = packet->ip;

	if (is_ipv6(packet)) {
		packet->ip6->hop_limit = ttl;
		return;
	}
	ip->check = checksum_update(ip->check, checksum_change8(ip->ttl, ttl));
	ip->ttl = ttl;
}

/* Whether a packet says that it comes from the address that it goes to. */
static __always_inline bool is_from_destination(const struct packet *packet)
{
	if (is_ipv6(packet))
		return is_same_words(source_of(packet), destination_of(packet));
	return packet->ip->saddr == packet->ip->daddr;
}

/* Whether the source is an address that no other host can have, or the VIP itself. */
static __always_inline bool has_impossible_source(const struct packet *packet)
{
	const __be32 *source = source_of(packet);

	/* No packet has an IPv4-mapped address (RFC 4291). */
	if (is_ipv6(packet) && !source[0] && !source[1] && source[2] == bpf_htonl(0xffff))
		return true;
	return is_no_single_host(source, is_ipv6(packet)) || is_from_destination(packet);
}

/* Whether a frame is for all or several hosts of the link: broadcast or multicast. */
static __always_inline bool is_for_many(const struct ethhdr *eth)
{
	return eth->h_dest[0] & 1;
}

/* The flags of TCP that open and close connections: RFC 9293, section 3.1. */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline u8 flags_of(const struct tcphdr *tcp)
{
	return ((const u8 *)tcp)[13];
}

/* Whether a segment asks for a new connection. */
static __always_inline bool is_opening(const struct tcphdr *tcp)
{
	return !is_some((flags_of(tcp) & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) ^ TCP_SYN);
}

/* Whether a segment ends its connection, or one direction of it. */
static __always_inline bool is_ending(const struct tcphdr *tcp)
{
	return is_some(flags_of(tcp) & (TCP_FIN | TCP_RST));
}

/* Whether an ICMP message is an error about a packet: RFC 792; types 1 to 4 of RFC 4443. */
static __always_inline bool is_error(u8 type, bool is_ipv6)
{
	if (is_ipv6)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/*
 * ICMP: pings, and errors about a packet that their receiver sent. A router may have cut off the quote anywhere, so the quoted
 * lengths aren't checked; but all errors quote the eight bytes that hold the ports.
 */
static __always_inline enum packet_kind parse_icmp(struct packet *packet, u32 bytes, void *end)
{
	const u32 quoted_bytes = ip_header_bytes(is_ipv6(packet));
	struct icmphdr *icmp = packet->icmp;
	void *quoted = icmp + 1;
	struct ports *ports = quoted + quoted_bytes;
	struct fragment *fragment = (void *)ports;
	u64 skipped = 0;

	if ((void *)(icmp + 1) > end || bytes < sizeof(*icmp))
		return PACKET_OTHER;
	/* The code may be any: the kernel answers all, too. */
	if (HAS(ECHO) && icmp->type == (is_ipv6(packet) ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
		return PACKET_ECHO;
	if ((!HAS_DSR && !HAS_TRANSLATION) || !is_error(icmp->type, is_ipv6(packet)))
		return PACKET_OTHER;
	if ((void *)(ports + 2) > end || bytes < sizeof(*icmp) + quoted_bytes + 8)
		return PACKET_OTHER;
	packet->quoted = quoted;
	packet->ports = ports;
	if (!is_ipv6(packet)) {
		packet->protocol = packet->quoted->protocol;
		if (packet->quoted->version != 4 || packet->quoted->ihl != 5 ||
		    packet->quoted->frag_off & bpf_htons(IP_FRAGMENT_OFFSET) ||
		    packet->quoted->saddr != packet->ip->daddr)
			return PACKET_OTHER;
		return PACKET_ICMP_ERROR;
	}
	/* Only a first fragment has ports. Other extension headers count as a protocol, and no service has it. */
	packet->protocol = packet->quoted6->nexthdr;
	if (packet->protocol == IPPROTO_FRAGMENT) {
		if ((void *)(fragment + 1) > end || bytes < sizeof(*icmp) + quoted_bytes + sizeof(*fragment) + 8 ||
		    fragment->offset & bpf_htons(FRAGMENT_OFFSET))
			return PACKET_OTHER;
		packet->protocol = fragment->next;
		skipped = sizeof(*fragment);
	}
	/* With and without: the verifier needn't follow both. */
	packet->protocol = forgotten(packet->protocol, *(u64 *)ports);
	skipped = forgotten(skipped, *(u64 *)ports) & sizeof(*fragment);
	packet->ports = (void *)ports + skipped;
	if ((void *)(packet->ports + 2) > end)
		return PACKET_OTHER;
	if (packet->quoted6->version != 6 ||
	    !is_same_words(packet->quoted6->saddr.s6_addr32, packet->ip6->daddr.s6_addr32))
		return PACKET_OTHER;
	return PACKET_ICMP_ERROR;
}

/* What follows the IP header, with `bytes` up to the end of the packet; `end` is the end of the frame. */
static __always_inline enum packet_kind parse_transport(struct packet *packet, u32 bytes, void *end)
{
	if (packet->protocol == (is_ipv6(packet) ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return parse_icmp(packet, bytes, end);
	packet->ports = packet->transport;
	if (!HAS(AS_SCTP) && packet->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = packet->tcp;

		if ((void *)(tcp + 1) > end || tcp->doff < 5 || bytes < tcp->doff * 4)
			return PACKET_MALFORMED;
		packet->opens = is_opening(tcp);
		packet->closes = is_ending(tcp);
		packet->flags = flags_of(tcp);
		packet->sequence = tcp->seq;
		packet->acknowledged = tcp->ack_seq;
		return PACKET_TRANSPORT;
	}
	if (HAS(UDP) && packet->protocol == IPPROTO_UDP) {
		struct udphdr *udp = packet->udp;
		u64 zero;

		if ((void *)(udp + 1) > end || bpf_ntohs(udp->len) < sizeof(*udp) || bytes < bpf_ntohs(udp->len))
			return PACKET_MALFORMED;
		/* A datagram opens, closes and numbers nothing. The verifier needn't know: it follows one way for all protocols. */
		zero = forgotten(0, *(u64 *)udp);
		packet->opens = packet->closes = zero & 1;
		packet->flags = zero;
		packet->sequence = packet->acknowledged = zero;
		return PACKET_TRANSPORT;
	}
	if (HAS(SCTP) && packet->protocol == IPPROTO_SCTP) {
		u8 *chunk = (void *)(packet->sctp + 1);

		if ((void *)chunk > end || bytes < sizeof(*packet->sctp))
			return PACKET_MALFORMED;
		if ((void *)(chunk + 1) <= end && bytes > sizeof(*packet->sctp)) {
			packet->opens = !is_some(*chunk ^ SCTP_INIT);
			packet->closes = !is_some((*chunk ^ SCTP_ABORT) * (*chunk ^ SCTP_SHUTDOWN_COMPLETE));
		}
		return PACKET_TRANSPORT;
	}
	return PACKET_OTHER;
}

/* The frame may be longer than the packet: Ethernet pads to 60 bytes. PACKET_OTHER if the header is as it should be. */
static __always_inline enum packet_kind parse_ipv4(struct packet *packet, void *end)
{
	struct iphdr *ip = packet->ip;

	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	packet->protocol = ip->protocol;
	packet->transport = ip + 1;
	if (ip->version != 4 || ip->ihl < 5 || packet->ip_bytes < ip->ihl * 4 || packet->ip_bytes > end - (void *)ip)
		return PACKET_MALFORMED;
	if (ip->ihl > 5)
		return PACKET_OPTIONS;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return PACKET_FRAGMENT;
	return PACKET_OTHER;
}

static __always_inline bool is_extension(u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_AH || next == IPPROTO_ESP || next == IPPROTO_MH || next == 139 || next == 140;
}

static __always_inline enum packet_kind parse_ipv6(struct packet *packet, void *end)
{
	struct ipv6hdr *ip = packet->ip6;

	if ((void *)(ip + 1) > end)
		return PACKET_NOT_IP;
	packet->ip_bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	packet->protocol = ip->nexthdr;
	packet->transport = ip + 1;
	if (ip->version != 6 || packet->ip_bytes > end - (void *)ip)
		return PACKET_MALFORMED;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return PACKET_FRAGMENT;
	return is_extension(ip->nexthdr) ? PACKET_OPTIONS : PACKET_OTHER;
}

/*
 * Let the verifier forget what it knows about the protocol of a packet: it would follow all that comes once for each. The
 * pointers are made anew, and what is behind the ports must be checked again; the protocol is read again.
 */
static __always_inline enum packet_kind forget_protocol(struct xdp_md *ctx, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;

	packet->eth = (void *)(long)ctx->data;
	packet->ip = (void *)(packet->eth + 1);
	packet->transport = (void *)packet->ip + ip_header_bytes(is_ipv6(packet));
	packet->ports = packet->transport;
	if ((void *)(packet->ports + 2) > end)
		return PACKET_NOT_IP;
	packet->protocol = is_ipv6(packet) ? *(volatile u8 *)&packet->ip6->nexthdr : *(volatile u8 *)&packet->ip->protocol;
	return PACKET_TRANSPORT;
}

/* Let the verifier forget what it learned when it was asked what a packet of any protocol does. */
static __always_inline void forget_signs(struct packet *packet, u64 any)
{
	packet->protocol = forgotten(packet->protocol, any);
	packet->opens = forgotten(packet->opens, any) & 1;
	packet->closes = forgotten(packet->closes, any) & 1;
	packet->flags = forgotten(packet->flags, any);
}

/* The headers up to that of IP. PACKET_OTHER if they are as they should be, and the rest is to be read. */
static __always_inline enum packet_kind parse_network(struct xdp_md *ctx, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	enum packet_kind kind = PACKET_NOT_IP;
	u64 has_ipv6;

	packet->eth = (void *)(long)ctx->data;
	packet->ip = (void *)(packet->eth + 1);
	if ((void *)(packet->ip + 1) > end)
		return PACKET_NOT_IP;
	if (HAS(VLAN))
		packet->tci = forgotten(packet->tci, *(u64 *)packet->eth);
	if (HAS(AS_NAT6) && packet->eth->h_proto != bpf_htons(ETH_P_IPV6))
		return PACKET_NOT_IP;
	has_ipv6 = packet->eth->h_proto == bpf_htons(ETH_P_IPV6);
	OPAQUE(has_ipv6);	/* else the compiler tests h_proto again and again, and the verifier can't follow */
	packet->has_ipv6 = has_ipv6;
	if (is_ipv6(packet))
		kind = parse_ipv6(packet, end);
	else if (packet->eth->h_proto == bpf_htons(ETH_P_IP))
		kind = parse_ipv4(packet, end);
	return kind;
}

/* What follows a header of IP that is as it should be. */
static __always_inline enum packet_kind parse_rest(struct xdp_md *ctx, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	enum packet_kind kind = parse_transport(packet, packet->ip_bytes - ip_header_bytes(is_ipv6(packet)), end);

	return kind == PACKET_TRANSPORT ? forget_protocol(ctx, packet) : kind;
}

static __always_inline enum packet_kind parse(struct xdp_md *ctx, struct packet *packet)
{
	enum packet_kind kind = parse_network(ctx, packet);

	return kind == PACKET_OTHER ? parse_rest(ctx, packet) : kind;
}
