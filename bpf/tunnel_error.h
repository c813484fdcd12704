// SPDX-License-Identifier: GPL-2.0-only
/*
 * Errors of routers between the balancer and an endpoint: a packet was too big in its tunnel. Such an error is about
 * the outer packet and comes to the outer source. The client must hear of it, or sends the same packet again for ever:
 * RFC 2003, section 4; RFC 2473, section 8.
 *
 * If a router quotes only the eight bytes of RFC 792, the error doesn't tell which client it concerns. The kernel gets
 * such errors, as all others.
 */

/* Whether an error quotes a packet that may have left in a tunnel. */
static __always_inline bool is_about_tunnel(const struct packet *packet)
{
	if (!is_ipv6(packet))
		return packet->quoted->protocol == IPPROTO_IPIP;
	return packet->quoted6->nexthdr == IPPROTO_IPV6 || packet->quoted6->nexthdr == IPPROTO_IPIP;
}

/* Whether an address is a source of this balancer's tunnels. */
static __always_inline bool is_tunnel_source(const __be32 *address, bool is_ipv6, const struct settings *set)
{
	__be32 differs = 0;
	u32 i;

	if (!is_ipv6)
		return !((address[0] ^ set->tunnel_source) & ~set->tunnel_spread);
#pragma unroll
	for (i = 0; i < 4; i++)
		differs |= (address[i] ^ set->tunnel_source6[i]) & ~set->tunnel_spread6[i];
	return !differs;
}

/* The MTU that a router complains about; 0 if it complains about anything else. */
static __always_inline u32 complained_mtu(const struct packet *packet)
{
	const struct icmphdr *icmp = packet->icmp;

	if (is_ipv6(packet))
		return icmp->type == ICMPV6_PKT_TOOBIG ? bpf_ntohl(icmp->un.gateway) : 0;
	return icmp->type == ICMP_DEST_UNREACH && icmp->code == ICMP_FRAG_NEEDED ? bpf_ntohl(icmp->un.gateway) & 0xffff : 0;
}

/* A sum of words, folded to 17 bits, so that more of them can be added. */
static __always_inline u32 fold_sum(u32 sum)
{
	return (sum & 0xffff) + (sum >> 16);
}

/*
 * Send the error on to the client of the inner packet, in the name of the VIP. The frame keeps the quote of the inner
 * packet and gets new headers. If the kernel has to find the next hop, the sender is the router that complained, since
 * the kernel forwards no packet whose source is one of its own addresses.
 */
static __always_inline int relay_error(struct xdp_md *ctx, struct packet *packet)
{
	u64 is_outer6 = is_ipv6(packet), is_inner6 = is_outer6 && packet->quoted6->nexthdr == IPPROTO_IPV6;
	u32 outer_bytes = ip_header_bytes(is_outer6), inner_bytes;
	struct icmphdr *icmp = packet->icmp;
	struct iphdr *ip = (void *)packet->quoted + outer_bytes;
	struct ipv6hdr *ip6 = (void *)ip;
	struct ports *ports;
	struct bpf_fib_lookup route = {};
	struct next_hop hop = {};
	u32 row = 0, mtu = complained_mtu(packet), bytes, sum;
	struct settings *set = settings.lookup(&row);
	struct gateway *gateway;
	struct service *service;
	struct address vip, client;
	struct ethhdr *eth = packet->eth, former;
	enum way way;

	OPAQUE(is_inner6);	/* else the compiler reads the quote again for each use, and the verifier can't follow */
	is_inner6 = HAS(IPV6) && is_inner6;
	inner_bytes = ip_header_bytes(is_inner6);
	ports = (void *)ip + inner_bytes;
	if ((void *)(ports + 2) > (void *)(long)ctx->data_end ||
	    packet->ip_bytes < 2 * outer_bytes + sizeof(*icmp) + inner_bytes + 8)
		return XDP_PASS;
	bytes = packet->ip_bytes - 2 * outer_bytes + inner_bytes;
	if (mtu < outer_bytes + MIN_MTU || mtu > 0xffff)
		return XDP_PASS;
	mtu -= outer_bytes;
	if (is_inner6 && mtu < MIN_MTU6)
		mtu = MIN_MTU6;		/* the least that IPv6 allows: RFC 2473, section 7.1 */
	if (!set || set->too_big != TOO_BIG_ANSWER || !is_tunnel_source(destination_of(packet), is_outer6, set))
		return XDP_PASS;
	if (is_inner6 ? ip6->version != 6 : ip->version != 4 || ip->ihl != 5)
		return XDP_PASS;

	vip = read_address(is_inner6 ? (void *)&ip6->daddr : (void *)&ip->daddr, is_inner6);
	client = read_address(is_inner6 ? (void *)&ip6->saddr : (void *)&ip->saddr, is_inner6);
	service = look_up_service(vip.words, is_inner6, ports->destination, is_inner6 ? ip6->nexthdr : ip->protocol);
	if (!service || service->mode != MODE_DSR_L3)
		return XDP_PASS;

	NOTE(service, service->index);
	/* The sum of the quoted inner packet: the sum of the whole error less that of all else. */
	sum = bpf_csum_diff((__be32 *)packet->quoted, outer_bytes, NULL, 0, (u16)~icmp->checksum);
	sum = bpf_csum_diff((__be32 *)&icmp->un, sizeof(icmp->un), NULL, 0, sum);
	if (is_outer6) {
		sum = bpf_csum_diff(packet->ip6->saddr.s6_addr32, 2 * sizeof(packet->ip6->saddr), NULL, 0, sum);
		sum = fold_sum(sum) + (u16)~packet->ip6->payload_len + (u16)~bpf_htons(IPPROTO_ICMPV6);
	}
	sum = fold_sum(sum) + (u16)~*(__be16 *)&icmp->type + bpf_htons(mtu);
	sum += is_inner6 ? bpf_htons(ICMPV6_PKT_TOOBIG << 8) : bpf_htons(ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED);

	gateway = find_gateway(ctx, packet, &client, &route);
	route.tot_len = bytes;
	__builtin_memcpy(route.ipv6_src, vip.words, sizeof(route.ipv6_src));
	way = ask_for_way(ctx, packet, &route, gateway, &client, &hop);
	if (way == WAY_UNRESOLVED) {
		/* An IPv6 router has no address that could be the source of an IPv4 packet. */
		if (is_outer6 != is_inner6)
			return drop(VERDICT_NO_ROUTE);
		if (HAS(GATEWAY) && hop.ifindex & BY_GATEWAY)
			return ask_for_gateway(ctx, packet);
		vip = read_address(source_of(packet), is_outer6);	/* the router */
	} else if (way != WAY_KNOWN) {
		return drop(VERDICT_NO_ROUTE);
	}
	if (is_inner6)	/* the pseudo-header */
		sum += sum_words(vip.words, sizeof(vip.words)) + sum_words(client.words, sizeof(client.words)) +
		       bpf_htons(bytes - inner_bytes) + bpf_htons(IPPROTO_ICMPV6);

	former = *eth;
	if (bpf_xdp_adjust_head(ctx, 2 * outer_bytes - inner_bytes))
		return drop(VERDICT_MALFORMED);
	eth = (void *)(long)ctx->data;
	icmp = (void *)(eth + 1) + inner_bytes;
	if ((void *)(icmp + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_MALFORMED);
	*eth = former;
	*icmp = (struct icmphdr){
		.type = is_inner6 ? ICMPV6_PKT_TOOBIG : ICMP_DEST_UNREACH,
		.code = is_inner6 ? 0 : ICMP_FRAG_NEEDED,
		.checksum = ~fold_sum(fold_sum(sum)),
	};
	icmp->un.gateway = bpf_htonl(mtu);
	if (is_inner6) {
		eth->h_proto = bpf_htons(ETH_P_IPV6);
		new_header6((void *)(eth + 1), 0, bytes - inner_bytes, IPPROTO_ICMPV6, vip.words, client.words);
	} else {
		eth->h_proto = bpf_htons(ETH_P_IP);
		new_header((void *)(eth + 1), ICMP_TOS, bytes, IPPROTO_ICMP, vip.words[0], client.words[0]);
	}
	if (way == WAY_UNRESOLVED)
		return count(VERDICT_ERROR_RELAYED, XDP_PASS);
	return leave(ctx, packet, eth, &hop, VERDICT_ERROR_RELAYED);
}
