// SPDX-License-Identifier: GPL-2.0-only
/*
 * Direct server return: the packet reaches the endpoint as the client sent it, and the reply goes past the
 * balancer. There is no memory: as long as a ring stands still, it gives a client the same endpoint each time.
 */

/*
 * The id of the endpoint that a client's packets go to, 0 if there is none. A retired one is as good: which
 * packets are new ones' is not known here, and a ring names retired ones only while it is being written.
 */
static __always_inline u32 find_endpoint(const struct service *service, const struct client *client,
					 struct endpoint **found)
{
	u32 try;

	for (try = 0; try < MAX_TRIES; try++) {
		u32 id = choose_endpoint(service, client, try);
		struct endpoint *endpoint = id ? endpoints.lookup(&id) : NULL;

		if (endpoint && (endpoint->state == ENDPOINT_USABLE || endpoint->state == ENDPOINT_RETIRED)) {
			*found = endpoint;
			return id;
		}
	}
	return 0;
}

/*
 * Forward a request to the endpoint that its client has. Its TTL is decremented also where it goes into a
 * tunnel (RFC 2003, section 3.1), so what an endpoint sends back by mistake doesn't go round for ever.
 */
static __always_inline int dsr(struct xdp_md *ctx, struct packet *packet, const struct service *service,
			       const struct client *client)
{
	const u32 overhead = sizeof(struct iphdr);
	struct endpoint *endpoint = NULL;
	struct ethhdr *eth = packet->eth;
	struct bpf_fib_lookup route = {};
	enum verdict verdict = VERDICT_REQUEST;
	__be32 source;
	u32 id;

	if (packet->ip->ttl <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	id = find_endpoint(service, client, &endpoint);
	if (!endpoint)
		return drop(VERDICT_NO_ENDPOINT);
	source = tunnel_source(client);
	if (!source)
		return drop(VERDICT_NO_ROUTE);
	if (packet->ip_bytes + overhead > 0xffff)
		return drop(VERDICT_TOO_BIG);

	route.family = AF_INET;
	route.tos = packet->ip->tos;
	route.l4_protocol = IPPROTO_IPIP;
	route.tot_len = packet->ip_bytes + overhead;
	route.ipv4_src = source;
	route.ipv4_dst = endpoint->address;
	route.ifindex = ctx->ingress_ifindex;
	switch (bpf_fib_lookup(ctx, &route, sizeof(route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		/*
		 * The kernel routes it once more and asks for the MAC. It takes nothing from outside that
		 * has one of its own addresses for a source, so this packet has the client's.
		 */
		verdict = VERDICT_VIA_KERNEL;
		source = packet->ip->saddr;
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return too_big(ctx, packet, route.mtu_result - overhead);
	default:
		return drop(VERDICT_NO_ROUTE);
	}

	decrement_ttl(packet->ip);
	eth = encapsulate(ctx, packet, source, endpoint->address);
	if (!eth)
		return drop(VERDICT_NO_HEADROOM);
	if (packet->opens)
		count_connection(service->index, id);
	count_request(service->index, id, packet->ip_bytes);
	if (verdict == VERDICT_VIA_KERNEL)
		return count(verdict, XDP_PASS);
	return send(ctx, eth, &route, verdict);
}
