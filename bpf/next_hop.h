// SPDX-License-Identifier: GPL-2.0-only
/*
 * The way to an endpoint. The program asks the kernel's FIB and keeps the answer for a moment: one lookup in the FIB
 * costs more than all the rest of a packet.
 *
 * So that one answer fits all packets to an endpoint, the question is always the same: from the source of
 * tunnels, without ports and type of service. Rules of policy routing that need these don't apply.
 *
 * Rows are written without a lock. Each word of a row carries a tag of the question that it answers. If two CPUs write
 * a row at once, the tags differ and nobody uses the row.
 */

/* How long an answer is good: 32 ticks of the kernel's clock, which are 32 to 320 ms. */
#define MOMENT_SHIFT 5

#define NEXT_HOPS 65536
#define MAC_BITS 48
/* Bits of next_hop.ifindex. */
#define OFF_LINK (1U << 31)	/* the way leads through a router */
#define BY_GATEWAY (1U << 30)	/* this router is the gateway of the interface */
#define IFINDEX_MASK (BY_GATEWAY - 1)

enum way {
	WAY_KNOWN,
	WAY_UNRESOLVED,		/* nobody knows the MAC of the next hop */
	WAY_TOO_NARROW,		/* the packet is longer than the MTU */
	WAY_NONE,
};

static __always_inline u64 tagged_mac(const void *mac, u16 tag)
{
	const u16 *words = mac;

	return words[0] | (u64)words[1] << 16 | (u64)words[2] << 32 | (u64)tag << MAC_BITS;
}

static __always_inline void write_mac(void *mac, u64 tagged)
{
	u16 *words = mac;

	words[0] = tagged;
	words[1] = tagged >> 16;
	words[2] = tagged >> 32;
}

/* Ask the kernel for the way of `bytes` to `address6`, or to `address` if `address6` is NULL. */
static __always_inline enum way ask_for_way(struct xdp_md *ctx, const struct packet *packet, __be32 address,
					    const struct address6 *address6, u32 bytes, struct next_hop *hop)
{
	struct bpf_fib_lookup route = { .ifindex = packet->ingress, .tot_len = bytes };
	u32 row = 0, flags = 0;
	struct settings *set = settings.lookup(&row);
#ifdef GATEWAY
	struct gateway *gateway;
#endif
	bool is_on_link;
	int answer;

	if (address6) {
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_dst, address6, sizeof(*address6));
		if (set)
			__builtin_memcpy(route.ipv6_src, set->tunnel_source6, sizeof(route.ipv6_src));
	} else {
		route.family = AF_INET;
		route.ipv4_dst = address;
		route.ipv4_src = set ? set->tunnel_source : 0;
	}
#ifdef GATEWAY
	gateway = find_gateway(ctx, packet, address, address6);
	if (gateway) {
		flags = BPF_FIB_LOOKUP_OUTPUT;	/* the way must leave by this interface */
		if (address6)
			__builtin_memcpy(route.ipv6_dst, gateway->address, sizeof(route.ipv6_dst));
		else
			route.ipv4_dst = gateway->address[0];
	}
#endif
	answer = bpf_fib_lookup(ctx, &route, sizeof(route), flags);
	NOTE(fib, answer);
	hop->mtu = route.mtu_result;
	if (answer == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return WAY_TOO_NARROW;
	if (answer != BPF_FIB_LKUP_RET_SUCCESS && answer != BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_NONE;
	/* The lookup has replaced the destination by the address of the next hop. */
	is_on_link = route.ipv4_dst == address;
	if (address6)
		is_on_link = route.ipv6_dst[0] == address6->words[0] && route.ipv6_dst[1] == address6->words[1] &&
			     route.ipv6_dst[2] == address6->words[2] && route.ipv6_dst[3] == address6->words[3];
	hop->ifindex = route.ifindex | (is_on_link ? 0 : OFF_LINK);
#ifdef GATEWAY
	if (gateway)
		hop->ifindex |= BY_GATEWAY;
#endif
	if (answer == BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_UNRESOLVED;
	hop->destination = tagged_mac(route.dmac, hop->tag);
	hop->source = tagged_mac(route.smac, hop->tag);
	return WAY_KNOWN;
}

/*
 * Find the way of `bytes` to an endpoint and write it into `hop`. WAY_TOO_NARROW leaves the MTU there, WAY_UNRESOLVED
 * the interface.
 */
static __always_inline enum way find_way(struct xdp_md *ctx, const struct packet *packet, u32 endpoint,
					 __be32 address, const struct address6 *address6, u32 bytes,
					 struct next_hop *hop)
{
	u32 ingress = packet->ingress;
	u32 moment = bpf_jiffies64() >> MOMENT_SHIFT;
	u32 who = address6 ? address6->words[3] : address;	/* an id may pass to another address */
	u16 tag = endpoint * 31 + moment * 7 + ingress + who + (who >> 16);
	u32 index = (endpoint + ingress * 97) % NEXT_HOPS;
	struct next_hop *row = next_hops.lookup(&index);
	enum way way;

	if (!row)
		return WAY_NONE;
	*hop = *row;
	if (hop->endpoint == endpoint && hop->moment == moment && hop->tag == tag &&
	    hop->destination >> MAC_BITS == tag && hop->source >> MAC_BITS == tag)
		return bytes > hop->mtu ? WAY_TOO_NARROW : WAY_KNOWN;

	hop->endpoint = endpoint;
	hop->moment = moment;
	hop->tag = tag;
	way = ask_for_way(ctx, packet, address, address6, bytes, hop);
	if (way == WAY_KNOWN)
		*row = *hop;
	return way;
}

/* Put a frame on its way. */
static __always_inline int leave(struct xdp_md *ctx, struct packet *packet, struct ethhdr *eth,
				 const struct next_hop *hop, enum verdict verdict)
{
	u32 ifindex = hop->ifindex & IFINDEX_MASK;

	write_mac(eth->h_dest, hop->destination);
	write_mac(eth->h_source, hop->source);
	return put_on_wire(ctx, packet, ifindex, verdict);
}
