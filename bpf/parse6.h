// SPDX-License-Identifier: GPL-2.0-only
/*
 * IPv6: RFC 8200. Extension headers are treated like the options and fragments of IPv4: the transport header must
 * follow the IPv6 header at once.
 */

static __always_inline bool is_extension(u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_AH || next == IPPROTO_ESP || next == IPPROTO_MH || next == 139 || next == 140;
}

static __always_inline bool is_same6(const struct in6_addr *one, const struct in6_addr *two)
{
	return one->s6_addr32[0] == two->s6_addr32[0] && one->s6_addr32[1] == two->s6_addr32[1] &&
	       one->s6_addr32[2] == two->s6_addr32[2] && one->s6_addr32[3] == two->s6_addr32[3];
}

/* As is_impossible_source() in parse.h. No packet has an IPv4-mapped address (RFC 4291). */
static __always_inline bool is_impossible_source6(const struct ipv6hdr *ip)
{
	const __be32 *words = ip->saddr.s6_addr32;

	if (!words[0] && !words[1])
		return words[2] == bpf_htonl(0xffff) || (!words[2] && bpf_ntohl(words[3]) <= 1);
	return ip->saddr.s6_addr[0] == 0xff || is_same6(&ip->saddr, &ip->daddr);
}

#ifdef ECHO
static __always_inline bool is_echo6(const struct packet *packet, u32 bytes, void *end)
{
	return (void *)(packet->icmp6 + 1) <= end && bytes >= sizeof(*packet->icmp6) &&
	       packet->icmp6->icmp6_type == ICMPV6_ECHO_REQUEST;
}
#endif

/* RFC 8200, section 4.5. */
struct fragment {
	u8 next;
	u8 reserved;
	__be16 offset;		/* with flags in the lowest three bits */
	__be32 id;
};

#define FRAGMENT_OFFSET 0xfff8

/* As parse_icmp() in parse.h: ICMPv6 errors are types 1 to 4 (RFC 4443). */
static __always_inline enum packet_kind parse_icmp6(struct packet *packet, u32 bytes, void *end)
{
	struct icmp6hdr *icmp = (void *)packet->ports;
	struct ipv6hdr *quoted = (void *)(icmp + 1);
	struct ports *ports = (void *)(quoted + 1);

	if ((void *)(ports + 2) > end || bytes < sizeof(*icmp) + sizeof(*quoted) + 8)
		return PACKET_OTHER;
	if (icmp->icmp6_type < ICMPV6_DEST_UNREACH || icmp->icmp6_type > ICMPV6_PARAMPROB)
		return PACKET_OTHER;
	/* Only a first fragment has ports. Other extension headers count as a protocol, and no service has it. */
	packet->quoted_protocol = quoted->nexthdr;
	if (quoted->nexthdr == IPPROTO_FRAGMENT) {
		struct fragment *fragment = (void *)(quoted + 1);

		ports = (void *)(fragment + 1);
		if ((void *)(ports + 2) > end || bytes < sizeof(*icmp) + sizeof(*quoted) + sizeof(*fragment) + 8 ||
		    fragment->offset & bpf_htons(FRAGMENT_OFFSET))
			return PACKET_OTHER;
		packet->quoted_protocol = fragment->next;
	}
	if (quoted->version != 6 || !is_same6(&quoted->saddr, &packet->ip6->daddr))
		return PACKET_OTHER;
	packet->quoted6 = quoted;
	packet->ports = ports;
	return PACKET_ICMP_ERROR;
}

static __always_inline enum packet_kind parse6(struct xdp_md *ctx, struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct ipv6hdr *ip = (void *)(eth + 1);
	u32 bytes;

	if ((void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IPV6))
		return PACKET_NOT_IP;

	bytes = bpf_ntohs(ip->payload_len);
	packet->eth = eth;
	packet->ip6 = ip;
	packet->ports = (void *)(ip + 1);
	packet->tcp = (void *)(ip + 1);
	packet->ip_bytes = sizeof(*ip) + bytes;

	if (ip->version != 6 || packet->ip_bytes > data_end - (void *)ip)
		return PACKET_MALFORMED;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return PACKET_FRAGMENT;
	if (is_extension(ip->nexthdr))
		return PACKET_OPTIONS;
#ifdef ECHO
	if (ip->nexthdr == IPPROTO_ICMPV6 && is_echo6(packet, bytes, data_end))
		return PACKET_ECHO;
#endif
	if (ip->nexthdr == IPPROTO_ICMPV6)
		return parse_icmp6(packet, bytes, data_end);
	return parse_transport(packet, ip->nexthdr, bytes, data_end);
}
