// SPDX-License-Identifier: GPL-2.0-only
/* Direct server return to IPv6 endpoints: IPv6 by MAC, IPv6 and IPv4 through IPv6 tunnels (RFC 2473). */

/* How much longer a packet gets. Options like the encapsulation limit are not added. */
#define TUNNEL6_BYTES sizeof(struct ipv6hdr)

#define FLOW_LABEL 0xfffff

/* A client's address as the one number that is hashed. */
static __always_inline u32 fold_address(const struct in6_addr *address)
{
	u32 hash = mix(bpf_ntohl(address->s6_addr32[0]));

	hash = mix(hash + bpf_ntohl(address->s6_addr32[1]));
	hash = mix(hash + bpf_ntohl(address->s6_addr32[2]));
	return hash + bpf_ntohl(address->s6_addr32[3]);
}

static __always_inline u8 traffic_class(const struct ipv6hdr *ip)
{
	return bpf_ntohl(*(const __be32 *)ip) >> 20;
}

/* The outer source of a flow's packets, as tunnel_source() has it for IPv4. False if there is none. */
static __always_inline bool tunnel_source6(u32 hash, __be32 *source)
{
	u32 row = 0, i;
	struct settings *set = settings.lookup(&row);

	if (!set)
		return false;
#pragma unroll
	for (i = 0; i < 4; i++) {
		source[i] = (set->tunnel_source6[i] & ~set->tunnel_spread6[i]) |
			    (bpf_htonl(hash) & set->tunnel_spread6[i]);
		hash = mix(hash + 1);
	}
	return source[0] || source[1] || source[2] || source[3];
}

/* As encapsulate() in tunnel.h. The source and the protocol are those of the route that was looked up. */
static __always_inline struct ethhdr *encapsulate6(struct xdp_md *ctx, const struct bpf_fib_lookup *route,
						   __be32 flowinfo, u16 bytes,
						   const struct address6 *destination)
{
	struct ethhdr *eth, *former;
	struct ipv6hdr *outer;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*outer)))
		return NULL;
	eth = (void *)(long)ctx->data;
	outer = (void *)(eth + 1);	/* over the former Ethernet header */
	former = (void *)eth + sizeof(*outer);
	if ((void *)(former + 1) > (void *)(long)ctx->data_end)
		return NULL;
	*eth = *former;
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	*(__be32 *)outer = bpf_htonl(6 << 28) | flowinfo;
	outer->payload_len = bpf_htons(bytes);
	outer->nexthdr = route->l4_protocol;
	outer->hop_limit = NEW_TTL;
	__builtin_memcpy(&outer->saddr, route->ipv6_src, sizeof(outer->saddr));
	__builtin_memcpy(&outer->daddr, destination, sizeof(outer->daddr));
	return eth;
}

#ifdef DSR_L2
/*
 * As ask_for_neighbour() in dsr.h. Here the packet becomes one that says by itself that there is nothing in
 * it, which hosts ignore: RFC 8200, section 4.7.
 */
static __always_inline int ask_for_neighbour6(struct xdp_md *ctx, const struct address6 *address)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
	} __attribute__((packed)) *frame;

	if (bpf_xdp_adjust_tail(ctx, (int)sizeof(*frame) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame->ip.payload_len = 0;
	frame->ip.nexthdr = IPPROTO_NONE;
	frame->ip.hop_limit = NEW_TTL;
	__builtin_memcpy(&frame->ip.daddr, address, sizeof(*address));
	return count(VERDICT_NEIGHBOUR_UNKNOWN, XDP_PASS);
}
#endif

/* Forward a packet, which is IPv6 itself or not, to an IPv6 endpoint. As dsr() in dsr.h. */
static __always_inline int dsr_to6(struct xdp_md *ctx, struct packet *packet, bool is_ipv6,
				   const struct service *service, const struct client *client, u32 id,
				   enum verdict verdict)
{
	struct address6 *address = endpoints6.lookup(&id);
	bool tunnelled = is_tunnelled(service), via_kernel = false;
	struct bpf_fib_lookup route = {};
	struct ethhdr *eth = packet->eth;
	u32 bytes = packet->ip_bytes, mtu;
	__be32 flowinfo;

	if (!address)
		return drop(VERDICT_NO_ENDPOINT);
	route.family = AF_INET6;
	route.ifindex = ctx->ingress_ifindex;
	route.tot_len = bytes;
	__builtin_memcpy(route.ipv6_dst, address, sizeof(*address));
	if (tunnelled) {
		u32 hash = mix(mix(client->address) + ((u32)client->port << 8 | client->protocol));
		u32 tos = is_ipv6 ? traffic_class(packet->ip6) : packet->ip->tos;

		/* Routers and network cards that look at the flow label spread by it (RFC 6438). */
		flowinfo = bpf_htonl(tos << 20 | (hash & FLOW_LABEL));
		route.l4_protocol = is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
		if (!tunnel_source6(hash, route.ipv6_src))
			return drop(VERDICT_NO_ROUTE);
		if (bytes + TUNNEL6_BYTES > 0xffff)
			return drop(VERDICT_TOO_BIG);
		route.tot_len += TUNNEL6_BYTES;
	} else if (is_ipv6) {
		flowinfo = *(__be32 *)packet->ip6 & bpf_htonl(0x0fffffff);
		route.l4_protocol = packet->ip6->nexthdr;
		__builtin_memcpy(route.ipv6_src, &packet->ip6->saddr, sizeof(route.ipv6_src));
		if (verdict == VERDICT_REQUEST) {
			route.sport = packet->ports->source;
			route.dport = packet->ports->destination;
		}
	} else {
		return drop(VERDICT_OFF_LINK);	/* IPv4 has no next hop by this address */
	}

	route.flowinfo = flowinfo;	/* the lookup writes something else there */
	switch (bpf_fib_lookup(ctx, &route, sizeof(route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		via_kernel = true;
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		if (verdict == VERDICT_ICMP_ERROR)
			return drop(VERDICT_TOO_BIG);
		mtu = route.mtu_result - (tunnelled ? TUNNEL6_BYTES : 0);
		return is_ipv6 ? too_big6(ctx, packet, mtu) : too_big(ctx, packet, mtu);
	default:
		return drop(VERDICT_NO_ROUTE);
	}

#ifdef DSR_L2
	if (!tunnelled) {
		if (!is_same6((struct in6_addr *)route.ipv6_dst, (struct in6_addr *)address))
			return drop(VERDICT_OFF_LINK);
		if (via_kernel)
			return ask_for_neighbour6(ctx, address);
	}
#endif
	if (is_ipv6)
		packet->ip6->hop_limit--;
	else
		decrement_ttl(packet->ip);
#ifdef DSR_L3
	if (tunnelled) {
		eth = encapsulate6(ctx, &route, flowinfo, bytes, address);
		if (!eth)
			return drop(VERDICT_NO_HEADROOM);
	}
#endif
	if (packet->opens)
		count_connection(service->index, id);
	count_request(service->index, id, bytes);
	if (via_kernel)
		return count(VERDICT_VIA_KERNEL, XDP_PASS);
	return send(ctx, eth, &route, verdict);
}

/* An IPv6 packet. Endpoints with IPv4 addresses are none for it. */
static __always_inline int dsr6(struct xdp_md *ctx, struct packet *packet, const struct service *service,
				const struct client *client, enum verdict verdict)
{
	struct endpoint *endpoint = NULL;
	u32 id;

	if (packet->ip6->hop_limit <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	id = find_endpoint(service, client, &endpoint);
	if (!endpoint || endpoint->address)
		return drop(VERDICT_NO_ENDPOINT);
	return dsr_to6(ctx, packet, true, service, client, id, verdict);
}
