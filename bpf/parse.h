// SPDX-License-Identifier: GPL-2.0-only
/*
 * What came in. Nothing is judged here: whether a broken packet is dropped depends on whose it is, and that
 * is known only after the lookups.
 */

/* Of the field that holds the fragment offset. net/ip.h has these, which is no UAPI header. */
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff

enum packet_kind {
	PACKET_NOT_IPV4,	/* ARP, IPv6, a VLAN tag, or too short for an IPv4 header */
	PACKET_TCP,		/* whole Ethernet, IP and TCP headers, and no reason to doubt them */
	PACKET_NOT_TCP,
	PACKET_MALFORMED,	/* lengths that contradict each other, a header that is cut off */
	PACKET_OPTIONS,		/* IP options: the ports are not where they always are */
	PACKET_FRAGMENT,	/* a part of a packet: only the first one has ports */
};

struct packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;	/* of PACKET_TCP only */
	u32 ip_bytes;
};

static __always_inline enum packet_kind parse(struct xdp_md *ctx, struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return PACKET_NOT_IPV4;

	packet->eth = eth;
	packet->ip = ip;
	packet->tcp = tcp;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);

	/* The frame may be longer than the packet: Ethernet pads to 60 bytes. */
	if (ip->version != 4 || ip->ihl < 5 || packet->ip_bytes < ip->ihl * 4 ||
	    packet->ip_bytes > data_end - (void *)ip)
		return PACKET_MALFORMED;
	if (ip->ihl > 5)
		return PACKET_OPTIONS;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return PACKET_FRAGMENT;
	if (ip->protocol != IPPROTO_TCP)
		return PACKET_NOT_TCP;
	if ((void *)(tcp + 1) > data_end || tcp->doff < 5 ||
	    packet->ip_bytes < sizeof(*ip) + tcp->doff * 4)
		return PACKET_MALFORMED;
	return PACKET_TCP;
}
