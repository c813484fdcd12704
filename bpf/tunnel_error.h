// SPDX-License-Identifier: GPL-2.0-only
/*
 * Errors of routers between the balancer and an endpoint: a packet was too big in its tunnel. Such an error is about
 * the outer packet and comes to the outer source. The client must hear of it, or sends the same packet again for ever:
 * RFC 2003, section 4; RFC 2473, section 8.
 *
 * If a router quotes only the eight bytes of RFC 792, the error doesn't tell which client it concerns. The kernel gets
 * such errors, as all others.
 */

/* Whether an address of `words` of 32 bits is a source of this balancer's tunnels. */
static __always_inline bool is_tunnel_source(const __be32 *address, const __be32 *source, const __be32 *spread, u32 words)
{
	__be32 differs = 0;
	u32 i;

#pragma unroll
	for (i = 0; i < words; i++)
		differs |= (address[i] ^ source[i]) & ~spread[i];
	return !differs;
}

/*
 * Send the error on to the client of the inner packet, in the name of the VIP. The frame keeps the quote of the inner
 * packet and gets new headers. If the kernel has to find the next hop, the sender is the router that complained, since
 * the kernel forwards no packet whose source is one of its own addresses.
 */
static __always_inline int relay_error(struct xdp_md *ctx, struct packet *packet, const bool is_outer6,
				       const bool is_inner6)
{
	const u32 outer_bytes = is_outer6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	const u32 inner_bytes = is_inner6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	void *inner = (void *)packet->quoted + outer_bytes;
	struct icmphdr *icmp = packet->icmp;	/* ICMPv6 has the same fields in the same places */
	struct iphdr *ip = inner, *outer = packet->ip;
	struct ports *ports = inner + inner_bytes;
	struct bpf_fib_lookup route = { .family = AF_INET, .ifindex = packet->ingress };
	u32 row = 0, mtu = bpf_ntohl(icmp->un.gateway), bytes, flags = 0, sum;
	struct settings *set = settings.lookup(&row);
	struct service *service = NULL;
	__be32 addresses[8] = {}, router[4] = {};	/* the first four words are the VIP's, the others the client's */
	struct ethhdr *eth = packet->eth, former;
	bool via_kernel = false;
	long answer;
#ifdef IPV6
	struct ipv6hdr *ip6 = inner, *outer6 = packet->ip6;
#endif
#ifdef GATEWAY
	struct gateway *gateway;
#endif

	if ((void *)(ports + 2) > (void *)(long)ctx->data_end ||
	    packet->ip_bytes < 2 * outer_bytes + sizeof(*icmp) + inner_bytes + 8)
		return XDP_PASS;
	bytes = packet->ip_bytes - 2 * outer_bytes + inner_bytes;
	if (is_outer6 ? icmp->type != ICMPV6_PKT_TOOBIG : icmp->type != ICMP_DEST_UNREACH || icmp->code != ICMP_FRAG_NEEDED)
		return XDP_PASS;
	if (!is_outer6)
		mtu &= 0xffff;
	if (mtu < outer_bytes + MIN_MTU || mtu > 0xffff)
		return XDP_PASS;
	mtu -= outer_bytes;

	if (!set || set->too_big != TOO_BIG_ANSWER)
		return XDP_PASS;
#ifdef IPV6
	if (is_outer6 && !is_tunnel_source(outer6->daddr.s6_addr32, set->tunnel_source6, set->tunnel_spread6, 4))
		return XDP_PASS;
	if (is_inner6) {
		struct service6_key asked = { .port = ports->destination, .protocol = ip6->nexthdr };

		if (mtu < MIN_MTU6)
			mtu = MIN_MTU6;		/* the least that IPv6 allows: RFC 2473, section 7.1 */
		__builtin_memcpy(asked.vip, &ip6->daddr, sizeof(asked.vip));
		__builtin_memcpy(addresses, &ip6->daddr, sizeof(ip6->daddr));
		__builtin_memcpy(addresses + 4, &ip6->saddr, sizeof(ip6->saddr));
		if (ip6->version != 6)
			return XDP_PASS;
		service = services6.lookup(&asked);
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_src, addresses, sizeof(route.ipv6_src));
		__builtin_memcpy(route.ipv6_dst, addresses + 4, sizeof(route.ipv6_dst));
	}
#endif
	if (!is_outer6 && !is_tunnel_source(&outer->daddr, &set->tunnel_source, &set->tunnel_spread, 1))
		return XDP_PASS;
	if (!is_inner6) {
		struct service_key asked = {
			.vip = ip->daddr,
			.port = ports->destination,
			.protocol = ip->protocol,
		};

		addresses[0] = ip->daddr;
		addresses[4] = ip->saddr;
		if (ip->version != 4 || ip->ihl != 5)
			return XDP_PASS;
		service = services.lookup(&asked);
		route.ipv4_src = addresses[0];
		route.ipv4_dst = addresses[4];
	}
	if (!service || !is_dsr(service) || !is_tunnelled(service))
		return XDP_PASS;

	NOTE(service, service->index);
	/* The sum of the quoted inner packet: the sum of the whole error less that of all else. */
	sum = bpf_csum_diff((__be32 *)packet->quoted, outer_bytes, NULL, 0, (u16)~icmp->checksum);
	sum = bpf_csum_diff((__be32 *)&icmp->un, sizeof(icmp->un), NULL, 0, sum);
#ifdef IPV6
	if (is_outer6) {
		sum = bpf_csum_diff(outer6->saddr.s6_addr32, 2 * sizeof(outer6->saddr), NULL, 0, sum);
		sum = (sum & 0xffff) + (sum >> 16) + (u16)~outer6->payload_len + (u16)~bpf_htons(IPPROTO_ICMPV6);
	}
	if (is_inner6) {
		sum = bpf_csum_diff(NULL, 0, addresses, sizeof(addresses), sum);
		sum = (sum & 0xffff) + (sum >> 16) + bpf_htons(bytes - inner_bytes) + bpf_htons(IPPROTO_ICMPV6);
	}
	if (is_outer6 && is_inner6)
		__builtin_memcpy(router, &outer6->saddr, sizeof(router));
#endif
	if (!is_outer6)
		router[0] = outer->saddr;
	sum = (sum & 0xffff) + (sum >> 16) + (u16)~*(__be16 *)&icmp->type + bpf_htons(mtu);
	sum += is_inner6 ? bpf_htons(ICMPV6_PKT_TOOBIG << 8) : bpf_htons(ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);

	route.tot_len = bytes;
#ifdef GATEWAY
	gateway = find_gateway(ctx, packet, addresses[4], is_inner6 ? (struct address6 *)(addresses + 4) : NULL);
	if (gateway) {
		flags = BPF_FIB_LOOKUP_OUTPUT;
		if (is_inner6)
			__builtin_memcpy(route.ipv6_dst, gateway->address, sizeof(route.ipv6_dst));
		else
			route.ipv4_dst = gateway->address[0];
	}
#endif
	answer = bpf_fib_lookup(ctx, &route, sizeof(route), flags);
	NOTE(fib, answer);
	if (answer == BPF_FIB_LKUP_RET_NO_NEIGH) {
		/* An IPv6 router has no address that could be the source of an IPv4 packet. */
		if (is_outer6 != is_inner6)
			return drop(VERDICT_NO_ROUTE);
#ifdef GATEWAY
		if (gateway)
			return ask_for_gateway(ctx, packet);
#endif
		via_kernel = true;
		if (is_inner6) {
			u32 before = bpf_csum_diff(addresses, sizeof(router), router, sizeof(router), sum);

			before = (before & 0xffff) + (before >> 16);
			sum = (before & 0xffff) + (before >> 16);
		}
		__builtin_memcpy(addresses, router, sizeof(router));
	} else if (answer != BPF_FIB_LKUP_RET_SUCCESS) {
		return drop(VERDICT_NO_ROUTE);
	}

	former = *eth;
	if (bpf_xdp_adjust_head(ctx, 2 * outer_bytes - inner_bytes))
		return drop(VERDICT_MALFORMED);
	eth = (void *)(long)ctx->data;
	icmp = (void *)(eth + 1) + inner_bytes;
	if ((void *)(icmp + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_MALFORMED);
	*eth = former;
	*icmp = (struct icmphdr){ .type = ICMP_DEST_UNREACH, .code = ICMP_FRAG_NEEDED, .checksum = ~sum };
	icmp->un.gateway = bpf_htonl(mtu);
#ifdef IPV6
	if (is_inner6) {
		struct ipv6hdr *fresh = (void *)(eth + 1);

		eth->h_proto = bpf_htons(ETH_P_IPV6);
		__builtin_memset(fresh, 0, 8);
		fresh->version = 6;
		fresh->payload_len = bpf_htons(bytes - inner_bytes);
		fresh->nexthdr = IPPROTO_ICMPV6;
		fresh->hop_limit = NEW_TTL;
		__builtin_memcpy(&fresh->saddr, addresses, sizeof(addresses));
		icmp->type = ICMPV6_PKT_TOOBIG;
		icmp->code = 0;
	}
#endif
	if (!is_inner6) {
		eth->h_proto = bpf_htons(ETH_P_IP);
		new_header((void *)(eth + 1), ICMP_TOS, bytes, IPPROTO_ICMP, addresses[0], addresses[4]);
	}
	if (via_kernel)
		return count(VERDICT_ERROR_RELAYED, XDP_PASS);
	__builtin_memcpy(eth->h_source, route.smac, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, route.dmac, ETH_ALEN);
	return put_on_wire(ctx, packet, route.ifindex, VERDICT_ERROR_RELAYED);
}
