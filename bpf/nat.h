// SPDX-License-Identifier: GPL-2.0-only
/* NAT: the endpoint's address and port become the destination of requests, the VIP's the source of replies. */

/*
 * Choose an endpoint for a new connection, fill in the rest of `flow` and make both halves, the one for replies
 * first. Returns VERDICT_REQUEST, or the reason to drop the packet.
 */
static __always_inline enum verdict open_connection(const struct service *service, struct flow_key *key,
						    struct flow *flow, const struct tcphdr *tcp)
{
	enum verdict failure = VERDICT_NO_ENDPOINT;
	__be32 first = is_opening(tcp) ? bpf_htonl(bpf_ntohl(tcp->seq) + 1) : 0;
	struct client client = {
		.address = bpf_ntohl(key->source),
		.port = bpf_ntohs(key->source_port),
		.protocol = key->protocol,
	};
	u32 try;

	for (try = 0; try < MAX_TRIES; try++) {
		u32 id = choose_endpoint(service, &client, try);
		struct endpoint *endpoint = id ? endpoints.lookup(&id) : NULL;

		NOTE(endpoint, id);
		/* An endpoint without an IPv4 address has an IPv6 one; NAT has no use for it. */
		if (!endpoint || endpoint->state != ENDPOINT_USABLE || !endpoint->address)
			continue;
		flow->endpoint = id;
		flow->address = endpoint->address;
		flow->port = endpoint->port ?: service->target_port ?: key->destination_port;
		if (claim_replies(key, flow, first) && !flows.update(key, flow)) {
			count_connection(service->index, id);
			return VERDICT_REQUEST;
		}
		failure = VERDICT_ADDRESS_CLASH;
	}
	return failure;
}

/*
 * Whether a packet without a flow may make one. With a hash, any packet of a connection finds its endpoint again,
 * so connections survive the loss of the flow table; with round-robin, only a SYN may.
 */
static __always_inline bool may_open(const struct service *service, const struct tcphdr *tcp)
{
	return service->algorithm != ALGORITHM_ROUND_ROBIN || is_opening(tcp);
}

/* Replace one address and port of a packet, both in place. */
static __always_inline void rewrite(struct packet *packet, __be32 *address, __be16 *port,
				    __be32 new_address, __be16 new_port)
{
	u32 changes = checksum_change32(*address, new_address);

	packet->ip->check = checksum_update(packet->ip->check, changes);
	changes += checksum_change16(*port, new_port);
	packet->tcp->check = checksum_update(packet->tcp->check, changes);
	*address = new_address;
	*port = new_port;
}

/*
 * Whether the other program, if there is one, may know better what a packet belongs to: this one knows no connection, or
 * one that is over, after which another one may have begun with the same addresses and ports.
 */
static __always_inline bool may_be_others(const struct flow *flow, const struct tcphdr *tcp)
{
	if (is_opening(tcp))
		return false;
	return !flow || (flow->state == FLOW_CLOSING && is_over(flow, bpf_ktime_get_coarse_ns()));
}

/*
 * Have the other program handle a packet, which it must see as it came in; goes on if there is none. False if the packet
 * is lost thereby, which can't happen.
 */
static __always_inline bool ask_other(struct xdp_md *ctx, struct packet *packet)
{
#ifdef VLAN
	if (packet->tci & TAGGED) {
		bool has_tag = put_on_tag(ctx, packet->tci);

		if (has_tag)
			other.call(ctx, 0);
		return (!has_tag || take_off(ctx)) && parse(ctx, packet) == PACKET_TCP;
	}
#endif
	other.call(ctx, 0);
	return true;
}

static __always_inline int nat_request(struct xdp_md *ctx, struct packet *packet,
				       const struct service *service, struct flow_key *key)
{
	struct tcphdr *tcp = packet->tcp;
	struct flow fresh = {}, *flow;
	int action;

	NOTE(service, service->index);
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (is_impossible_source(packet->ip))
		return drop(VERDICT_IMPOSSIBLE_SOURCE);
	if (packet->ip->ttl <= 1)
		return drop(VERDICT_TTL_EXPIRED);

	flow = flows.lookup(key);
	if (flow && flow->direction != DIRECTION_REQUEST)
		flow = NULL;	/* the client claims to have a VIP's address */
	if (flow && !is_served(flow->endpoint, flow->address)) {
		forget(key, flow);
		flow = NULL;
	}
	if (may_be_others(flow, tcp)) {
		if (!ask_other(ctx, packet))
			return drop(VERDICT_MALFORMED);
		tcp = packet->tcp;
	}
	/* Any SYN may be forged, so it moves no connection but one that is over. */
	if (flow && is_opening(tcp) && is_over(flow, bpf_ktime_get_coarse_ns()))
		flow = NULL;

	if (flow) {
		NOTE(flow, flow->state);
		NOTE(endpoint, flow->endpoint);
		follow(key, flow, tcp);
	} else {
		enum verdict verdict;

		if (!may_open(service, tcp))
			return count(VERDICT_CONNECTION_UNKNOWN, XDP_PASS);
		fresh.direction = DIRECTION_REQUEST;
		fresh.state = is_opening(tcp) ? FLOW_OPENING : tcp->fin || tcp->rst ? FLOW_CLOSING : FLOW_OPEN;
		fresh.service = service->index;
		fresh.last_seen = bpf_ktime_get_coarse_ns();
		verdict = open_connection(service, key, &fresh, tcp);
		if (verdict != VERDICT_REQUEST)
			return drop(verdict);
		flow = &fresh;
	}

	rewrite(packet, &packet->ip->daddr, &tcp->dest, flow->address, flow->port);
	action = forward(ctx, packet, VERDICT_REQUEST);
	if (action != XDP_DROP)
		count_request(service->index, flow->endpoint, packet->ip_bytes);
	return action;
}

static __always_inline int nat_reply(struct xdp_md *ctx, struct packet *packet, struct flow_key *key,
				     struct flow *flow)
{
	int action;

	NOTE(service, flow->service);
	NOTE(flow, flow->state);
	NOTE(endpoint, flow->endpoint);
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (packet->ip->ttl <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	if (!is_served(flow->endpoint, key->source)) {
		forget(key, flow);
		return drop(VERDICT_ENDPOINT_DISABLED);
	}
	if (is_no_reply(flow, packet->tcp, bpf_ktime_get_coarse_ns())) {
		forget(key, flow);
		return XDP_PASS;
	}

	follow(key, flow, packet->tcp);
	rewrite(packet, &packet->ip->saddr, &packet->tcp->source, flow->address, flow->port);
	action = forward(ctx, packet, VERDICT_REPLY);
	if (action != XDP_DROP)
		count_reply(flow->service, flow->endpoint, packet->ip_bytes);
	return action;
}
