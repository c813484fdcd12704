// SPDX-License-Identifier: GPL-2.0-only
/*
 * The way of a packet: the kernel's FIB and neighbours know it, or the gateway of the interface that it came in by.
 *
 * One lookup in the FIB costs more than all the rest of a packet, so the program keeps the answer about an endpoint for a
 * moment. So that one answer fits all packets to an endpoint, the question is always the same: from the source of
 * tunnels, without ports and type of service. Rules of policy routing that need these don't apply.
 *
 * Each CPU keeps its own answers, beside its counters of the endpoint, so they need no lock.
 */

/* How long an answer is good: 32 ticks of the kernel's clock, which are 32 to 320 ms. */
#define MOMENT_SHIFT 5
#define ANSWERED (1U << 31)	/* in each moment, so that a line of zeros is no answer */

/* Bits of the answer's `ifindex`. */
#define OFF_LINK (1U << 31)	/* the way leads through a router */
#define BY_GATEWAY (1U << 30)	/* this router is the gateway of the interface */
#define IFINDEX_MASK (BY_GATEWAY - 1)

enum way {
	WAY_KNOWN,
	WAY_UNRESOLVED,		/* nobody knows the MAC of the next hop */
	WAY_TOO_NARROW,		/* the packet is longer than the MTU */
	WAY_NONE,
};

struct next_hop {
	u32 ifindex;
	u32 mtu;
	struct macs macs;
};

/* The MACs of an answer as they stand in a frame, which has the destination first. */
static __always_inline struct macs macs_of(const struct bpf_fib_lookup *route)
{
	const u16 *source = (void *)route->smac, *destination = (void *)route->dmac;

	return (struct macs){ {
		destination[0] | (u32)destination[1] << 16,
		destination[2] | (u32)source[0] << 16,
		source[1] | (u32)source[2] << 16,
	} };
}

/*
 * Ask the kernel for the way to an address. `route` has all the rest of the question: where the packet comes from and
 * how long it is; `gateway` is that for the address, NULL if the kernel's routes decide. `hop` gets the interface and, if
 * the way is known, the MACs; if it is too narrow, its MTU.
 */
static __always_inline enum way ask_for_way(struct xdp_md *ctx, const struct packet *packet,
					    struct bpf_fib_lookup *route, const struct gateway *gateway,
					    const struct address *to, struct next_hop *hop)
{
	u32 flags = 0;
	int answer;

	route->family = to->is_ipv6 ? AF_INET6 : AF_INET;
	route->ifindex = packet->ingress;
	__builtin_memcpy(route->ipv6_dst, to->words, sizeof(route->ipv6_dst));
	if (gateway) {
		flags = BPF_FIB_LOOKUP_OUTPUT;	/* the way must leave by this interface */
		__builtin_memcpy(route->ipv6_dst, gateway->address, sizeof(route->ipv6_dst));
	}
	answer = bpf_fib_lookup(ctx, route, sizeof(*route), flags);
	NOTE(fib, answer);
	hop->mtu = route->mtu_result;
	if (answer == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return WAY_TOO_NARROW;
	if (answer != BPF_FIB_LKUP_RET_SUCCESS && answer != BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_NONE;
	/* The lookup has replaced the destination by the address of the next hop. */
	hop->ifindex = route->ifindex | (is_same_words(route->ipv6_dst, to->words) ? 0 : OFF_LINK) |
		       (gateway ? BY_GATEWAY : 0);
	if (answer == BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_UNRESOLVED;
	hop->macs = macs_of(route);
	return WAY_KNOWN;
}

/* Find the way of `bytes` to the address of an endpoint, from the source of tunnels. `hop` is as for ask_for_way(). */
static __always_inline enum way find_way(struct xdp_md *ctx, const struct packet *packet, u32 endpoint,
					 const struct address *to, u32 bytes, struct next_hop *hop)
{
	struct bpf_fib_lookup route = {};
	u32 moment = bpf_jiffies64() >> MOMENT_SHIFT | ANSWERED;
	u32 who = to->words[0] ^ to->words[3];	/* an id may pass to another address */
	u16 asked = packet->ingress * 97 + who + (who >> 16);
	struct endpoint_line *line = find_endpoint_line(endpoint);
	struct gateway *gateway;
	struct settings *set;
	u32 row = 0;
	enum way way;

	if (!line)
		return WAY_NONE;
	if (!((line->moment ^ moment) | (u32)(line->asked ^ asked))) {
		hop->ifindex = line->ifindex;
		hop->mtu = line->mtu;
		hop->macs = *(struct macs *)line->macs;
		return bytes > hop->mtu ? WAY_TOO_NARROW : WAY_KNOWN;
	}

	gateway = find_gateway(ctx, packet, to, &route);
	route.tot_len = bytes;
	set = settings.lookup(&row);
	if (set && to->is_ipv6)
		__builtin_memcpy(route.ipv6_src, set->tunnel_source6, sizeof(route.ipv6_src));
	else if (set)
		route.ipv4_src = set->tunnel_source;
	way = ask_for_way(ctx, packet, &route, gateway, to, hop);
	if (way == WAY_KNOWN) {
		line->moment = moment;
		line->ifindex = hop->ifindex;
		line->mtu = hop->mtu;
		line->asked = asked;
		*(struct macs *)line->macs = hop->macs;
	}
	return way;
}

/* Send a frame to its next hop: by XDP_TX if that is where it came in, else by a redirect. */
static __always_inline int leave(struct xdp_md *ctx, struct packet *packet, struct ethhdr *eth,
				 const struct next_hop *hop, enum verdict verdict)
{
	u32 ifindex = hop->ifindex & IFINDEX_MASK;

	*(struct macs *)eth = hop->macs;
	NOTE(egress, ifindex);
	ifindex = find_trunk(packet, ifindex);
	if (ifindex == ctx->ingress_ifindex)
		return count(verdict, XDP_TX);
	return count(verdict, bpf_redirect(ifindex, 0));
}
