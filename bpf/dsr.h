// SPDX-License-Identifier: GPL-2.0-only
/*
 * Direct server return: the packet reaches the endpoint as the client sent it, and the reply goes past the
 * balancer. There is no memory: as long as a ring stands still, it gives a client the same endpoint each time.
 */

#ifdef DSR_L2
/*
 * Have the kernel ask for the MAC of an endpoint. The packet itself can't be what it sends there, since it is
 * for an address of this node. In its place goes an ICMP echo reply that nobody asked for: routers forward it,
 * and hosts make nothing of it and never answer.
 */
static __always_inline int ask_for_neighbour(struct xdp_md *ctx, const struct packet *packet, __be32 address)
{
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct icmphdr icmp;
	} __attribute__((packed)) *frame;
	__be32 source = packet->ip->saddr;

	if (bpf_xdp_adjust_tail(ctx, (int)sizeof(*frame) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	new_header(&frame->ip, 0, sizeof(frame->ip) + sizeof(frame->icmp), IPPROTO_ICMP, source, address);
	frame->icmp = (struct icmphdr){ .type = ICMP_ECHOREPLY, .checksum = 0xffff };
	return count(VERDICT_NEIGHBOUR_UNKNOWN, XDP_PASS);
}
#endif

/*
 * Forward a packet to the endpoint that its client has: through a tunnel, or by nothing but another MAC. The
 * verdict says what it is: VERDICT_REQUEST or VERDICT_ICMP_ERROR.
 *
 * Its TTL is decremented in both cases (for tunnels: RFC 2003, section 3.1), so what an endpoint sends back by
 * mistake doesn't go round for ever.
 */
static __always_inline int dsr(struct xdp_md *ctx, struct packet *packet, const struct service *service,
			       const struct client *client, enum verdict verdict)
{
	bool tunnelled = is_tunnelled(service), via_kernel = false;
	u32 bytes = packet->ip_bytes, id;
	struct endpoint *endpoint = NULL;
	struct ethhdr *eth = packet->eth;
	struct bpf_fib_lookup route = {};
	__be32 address;

	if (packet->ip->ttl <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	id = find_endpoint(service, client, &endpoint);
	if (!endpoint)
		return drop(VERDICT_NO_ENDPOINT);
#ifdef IPV6
	if (!endpoint->address)
		return dsr_to6(ctx, packet, false, service, client, id, verdict);
#endif
	address = endpoint->address;

	route.family = AF_INET;
	route.tos = packet->ip->tos;
	route.ipv4_dst = address;
	route.ifindex = ctx->ingress_ifindex;
	route.tot_len = bytes;
	if (tunnelled) {
		route.ipv4_src = tunnel_source(client);
		route.l4_protocol = IPPROTO_IPIP;
		if (!route.ipv4_src)
			return drop(VERDICT_NO_ROUTE);
		if (bytes + TUNNEL_BYTES > 0xffff)
			return drop(VERDICT_TOO_BIG);
		route.tot_len += TUNNEL_BYTES;
	} else {
		route.ipv4_src = packet->ip->saddr;
		route.l4_protocol = packet->ip->protocol;
		if (verdict == VERDICT_REQUEST) {
			route.sport = packet->ports->source;
			route.dport = packet->ports->destination;
		}
	}

	switch (bpf_fib_lookup(ctx, &route, sizeof(route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		via_kernel = true;
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		if (verdict == VERDICT_ICMP_ERROR)
			return drop(VERDICT_TOO_BIG);
		return too_big(ctx, packet, route.mtu_result - (tunnelled ? TUNNEL_BYTES : 0));
	default:
		return drop(VERDICT_NO_ROUTE);
	}

#ifdef DSR_L2
	if (!tunnelled) {
		/* The lookup leaves the address of the next hop. A router would send it back to the VIP. */
		if (route.ipv4_dst != address)
			return drop(VERDICT_OFF_LINK);
		if (via_kernel)
			return ask_for_neighbour(ctx, packet, address);
	}
#endif
	decrement_ttl(packet->ip);
#ifdef DSR_L3
	if (tunnelled) {
		/*
		 * The kernel routes what has no MAC yet once more and asks for it. It takes nothing from
		 * outside that has one of its own addresses for a source, so this packet has the client's.
		 */
		eth = encapsulate(ctx, packet, via_kernel ? packet->ip->saddr : tunnel_source(client), address);
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
