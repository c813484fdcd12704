// SPDX-License-Identifier: GPL-2.0-only
/* The way out. The program asks for the kernel's own routes and neighbours with each packet. */

static __always_inline void decrement_ttl(struct iphdr *ip)
{
	/* The checksum sums 16-bit words; TTL and protocol are one of them. */
	__be16 *word = (__be16 *)&ip->ttl;
	__be16 before = *word;

	ip->ttl--;
	ip->check = checksum_update(ip->check, checksum_change16(before, *word));
}

/* Send a frame out of an interface: by XDP_TX if it came in there, else by a redirect. */
static __always_inline int put_on_wire(struct xdp_md *ctx, struct packet *packet, u32 ifindex, enum verdict verdict)
{
	NOTE(egress, ifindex);
#ifdef VLAN
	ifindex = find_trunk(packet, ifindex);
#endif
	if (ifindex == ctx->ingress_ifindex)
		return count(verdict, XDP_TX);
	return count(verdict, bpf_redirect(ifindex, 0));
}

/*
 * Send a packet that has its new addresses to its next hop. The caller has made sure that its TTL allows for one
 * more hop.
 *
 * A packet that the FIB won't forward is dropped and never passed on: the kernel would not forward it either, or
 * would take a rewritten packet for its own.
 */
static __always_inline int forward(struct xdp_md *ctx, struct packet *packet, enum verdict verdict)
{
	struct ethhdr *eth = packet->eth;
	struct iphdr *ip = packet->ip;
	struct bpf_fib_lookup route = {
		.family = AF_INET,
		.tos = ip->tos,
		.l4_protocol = ip->protocol,
		.sport = packet->tcp->source,
		.dport = packet->tcp->dest,
		.tot_len = packet->ip_bytes,	/* makes the lookup check the route's MTU */
		.ipv4_src = ip->saddr,
		.ipv4_dst = ip->daddr,
		.ifindex = packet->ingress,
	};
	u32 flags = 0;
	int answer;
#ifdef GATEWAY
	struct gateway *gateway = find_gateway(ctx, packet, ip->daddr, NULL);

	if (gateway) {
		flags = BPF_FIB_LOOKUP_OUTPUT;
		route.ipv4_dst = gateway->address[0];
	}
#endif

	answer = bpf_fib_lookup(ctx, &route, sizeof(route), flags);
	NOTE(fib, answer);
	switch (answer) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
#ifdef GATEWAY
		if (gateway)
			return ask_for_gateway(ctx, packet);
#endif
		/* The kernel routes the packet again, asks for the MAC and decrements the TTL. */
		return count(VERDICT_VIA_KERNEL, XDP_PASS);
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return drop(VERDICT_TOO_BIG);
	default:
		return drop(VERDICT_NO_ROUTE);
	}

	decrement_ttl(ip);
	__builtin_memcpy(eth->h_source, route.smac, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, route.dmac, ETH_ALEN);
	return put_on_wire(ctx, packet, route.ifindex, verdict);
}
