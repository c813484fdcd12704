// SPDX-License-Identifier: GPL-2.0-only
/*
 * The headers of a packet. No packet is judged here: a broken one is dropped only if it is for a VIP, and only the
 * lookups tell.
 */

/* Bits of the field with the fragment offset. net/ip.h defines them, but is no UAPI header. */
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define IP_DONT_FRAGMENT 0x4000

enum packet_kind {
	PACKET_NOT_IP,		/* ARP, a VLAN tag (but see vlan.h), another version of IP, or an IP header cut off */
	PACKET_TCP,		/* the headers of all layers are whole and plausible */
	PACKET_DATAGRAM,	/* the same for UDP and SCTP */
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
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN_COMPLETE 14

struct packet {
	struct ethhdr *eth;
	union {
		struct iphdr *ip;
		struct ipv6hdr *ip6;
	};
	union {			/* PACKET_ICMP_ERROR only */
		struct iphdr *quoted;
		struct ipv6hdr *quoted6;
	};
	u8 quoted_protocol;	/* PACKET_ICMP_ERROR only: the protocol of the quoted ports */
	struct ports *ports;	/* PACKET_TCP, PACKET_DATAGRAM; PACKET_ICMP_ERROR: the quoted ports */
	union {
		struct tcphdr *tcp;	/* PACKET_TCP only */
		struct icmphdr *icmp;	/* PACKET_ECHO and PACKET_ICMP_ERROR only */
		struct icmp6hdr *icmp6;
	};
	u32 ip_bytes;
	u32 ingress;		/* the interface that the packet came in by; in a VLAN, the VLAN's interface */
#ifdef VLAN
	u32 tci;		/* of the tag that the packet came with, or leaves with; see vlan.h */
#endif
	bool opens;		/* the packet asks for a new connection of TCP, or association of SCTP */
	bool closes;		/* the packet ends one */
};

/* Whether a segment asks for a new connection. */
static __always_inline bool is_opening(const struct tcphdr *tcp)
{
	return tcp->syn && !tcp->ack && !tcp->fin && !tcp->rst;
}

/*
 * Whether the source is an address that no other host can have: 0.0.0.0/8, the loopback, multicast or above, or the
 * VIP itself (RFC 1122, section 3.2.1.3).
 */
static __always_inline bool is_impossible_source(const struct iphdr *ip)
{
	u32 first = bpf_ntohl(ip->saddr) >> 24;

	return first == 0 || first == 127 || first >= 224 || ip->saddr == ip->daddr;
}

/* Whether a frame is for all or several hosts of the link: broadcast or multicast. */
static __always_inline bool is_for_many(const struct ethhdr *eth)
{
	return eth->h_dest[0] & 1;
}

#ifdef ECHO
/* The code may be any: the kernel answers all, too. */
static __always_inline bool is_echo(const struct packet *packet, u32 bytes, void *end)
{
	return (void *)(packet->icmp + 1) <= end && bytes >= sizeof(*packet->icmp) && packet->icmp->type == ICMP_ECHO;
}
#endif

#ifdef DSR
/*
 * ICMP errors about a packet that an endpoint sent: RFC 792. A router may have cut off the quote anywhere, so the
 * quoted lengths aren't checked.
 */
static __always_inline enum packet_kind parse_icmp(struct packet *packet, u32 bytes, void *end)
{
	struct icmphdr *icmp = (void *)packet->ports;
	struct iphdr *quoted = (void *)(icmp + 1);
	struct ports *ports = (void *)(quoted + 1);

	/* All errors quote the eight bytes that hold the ports. */
	if ((void *)(ports + 2) > end || bytes < sizeof(*icmp) + sizeof(*quoted) + 8)
		return PACKET_OTHER;
	if (icmp->type != ICMP_DEST_UNREACH && icmp->type != ICMP_TIME_EXCEEDED && icmp->type != ICMP_PARAMETERPROB)
		return PACKET_OTHER;
	if (quoted->version != 4 || quoted->ihl != 5 || quoted->frag_off & bpf_htons(IP_FRAGMENT_OFFSET) ||
	    quoted->saddr != packet->ip->daddr)
		return PACKET_OTHER;
	packet->quoted = quoted;
	packet->quoted_protocol = quoted->protocol;
	packet->ports = ports;
	return PACKET_ICMP_ERROR;
}
#endif

/* Parse the header behind the IP header, with `bytes` up to the end of the packet; `end` is the end of the frame. */
static __always_inline enum packet_kind parse_transport(struct packet *packet, u8 protocol, u32 bytes, void *end)
{
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = packet->tcp;

		if ((void *)(tcp + 1) > end || tcp->doff < 5 || bytes < tcp->doff * 4)
			return PACKET_MALFORMED;
		packet->opens = is_opening(tcp);
		packet->closes = tcp->fin || tcp->rst;
		return PACKET_TCP;
	}
#ifdef UDP
	if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = (void *)packet->ports;

		if ((void *)(udp + 1) > end || bpf_ntohs(udp->len) < sizeof(*udp) || bytes < bpf_ntohs(udp->len))
			return PACKET_MALFORMED;
		return PACKET_DATAGRAM;
	}
#endif
#ifdef SCTP
	if (protocol == IPPROTO_SCTP) {
		struct sctp *sctp = (void *)packet->ports;

		u8 *chunk = (void *)(sctp + 1);

		if ((void *)chunk > end || bytes < sizeof(*sctp))
			return PACKET_MALFORMED;
		if ((void *)(chunk + 1) <= end && bytes > sizeof(*sctp)) {
			packet->opens = *chunk == SCTP_INIT;
			packet->closes = *chunk == SCTP_ABORT || *chunk == SCTP_SHUTDOWN_COMPLETE;
		}
		return PACKET_DATAGRAM;
	}
#endif
	return PACKET_OTHER;
}

static __always_inline enum packet_kind parse(struct xdp_md *ctx, struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return PACKET_NOT_IP;

	packet->eth = eth;
	packet->ip = ip;
	packet->ports = (void *)(ip + 1);
	packet->tcp = (void *)(ip + 1);
	packet->ip_bytes = bpf_ntohs(ip->tot_len);

	/* The frame may be longer than the packet: Ethernet pads to 60 bytes. */
	if (ip->version != 4 || ip->ihl < 5 || packet->ip_bytes < ip->ihl * 4 ||
	    packet->ip_bytes > data_end - (void *)ip)
		return PACKET_MALFORMED;
	if (ip->ihl > 5)
		return PACKET_OPTIONS;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return PACKET_FRAGMENT;
#ifdef ECHO
	if (ip->protocol == IPPROTO_ICMP && is_echo(packet, packet->ip_bytes - sizeof(*ip), data_end))
		return PACKET_ECHO;
#endif
#ifdef DSR
	if (ip->protocol == IPPROTO_ICMP)
		return parse_icmp(packet, packet->ip_bytes - sizeof(*ip), data_end);
#endif
	return parse_transport(packet, ip->protocol, packet->ip_bytes - sizeof(*ip), data_end);
}
