// SPDX-License-Identifier: GPL-2.0-only
/*
 * Checks of endpoints through their VIPs. The prober has a network namespace of its own, where no VIP is local, and an
 * address of its own; a pair of veth interfaces joins it to the node. Each of its packets says which endpoint it is for
 * (mark.c), and goes from here on the way of a client's packet, whatever the rings say and whatever the endpoint's state
 * is. What comes back for the prober is handed to it here, since the kernel drops packets from its own addresses: VIPs.
 */

/* The source MAC of a packet of the prober ends with the mark of its socket. */
static __always_inline u32 mark_of(const struct ethhdr *eth)
{
	const __be16 *words = (const void *)eth->h_source;

	return (u32)bpf_ntohs(words[1]) << 16 | bpf_ntohs(words[2]);
}

static __always_inline int send_check(const struct packet *packet, const struct prober *prober, struct forwarding *it)
{
	u32 mark = mark_of(packet->eth), id = mark & (MARK_TUNNEL - 1);
	struct endpoint *endpoint = endpoints.lookup(&id);

	__builtin_memcpy(packet->eth->h_source, prober->mac, ETH_ALEN);	/* that is where errors go */
	NOTE(endpoint, id);
	if (!id || !endpoint || endpoint->state == ENDPOINT_FREE)
		return drop(VERDICT_NO_ENDPOINT);
	if (ttl_of(packet) <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	it->change = HAS(DSR_L3) && (!HAS(DSR_L2) || mark & MARK_TUNNEL) ? CHANGE_TUNNEL : CHANGE_NOTHING;
	it->verdict = VERDICT_CHECK;
	it->is_check = true;
	it->hash = mix(id);
	return dsr_to(packet, id, endpoint, it);
}

/* Whether a packet is for the prober. Questions for its MAC are not: the kernel answers them. */
static __always_inline bool is_for_prober(struct xdp_md *ctx, const struct packet *packet, const struct prober *prober)
{
	const struct icmphdr *icmp = packet->icmp;
	const __be32 *words;
	u64 differs;

	if (!is_ipv6(packet))
		return prober->address && packet->ip->daddr == prober->address;
	words = packet->ip6->daddr.s6_addr32;
	differs = (words[0] ^ prober->address6[0]) | (words[1] ^ prober->address6[1]) |
		  (words[2] ^ prober->address6[2]) | (words[3] ^ prober->address6[3]);
	OPAQUE(differs);
	if (differs)
		return false;
	return packet->protocol != IPPROTO_ICMPV6 || (void *)(icmp + 1) > (void *)(long)ctx->data_end ||
	       icmp->type < NDISC_FIRST || icmp->type > NDISC_LAST;
}

/* Who checks, NULL if nobody does. */
static __always_inline struct prober *find_prober(void)
{
	u32 row = 0;
	struct prober *found = prober.lookup(&row);

	return found && found->ifindex ? found : NULL;
}

static __always_inline int take_check(struct packet *packet, const struct prober *prober)
{
	__builtin_memcpy(packet->eth->h_dest, prober->mac, ETH_ALEN);
	packet->tci = 0;	/* it leaves without a tag */
	return count(VERDICT_CHECK_ANSWERED, bpf_redirect(prober->ifindex, 0));
}
