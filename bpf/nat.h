// SPDX-License-Identifier: GPL-2.0-only
/*
 * NAT of TCP and UDP over IPv4: the endpoint's address and port become the destination of requests, the VIP's the source of
 * replies.
 */

/* Whether a packet can belong to a connection of NAT, or be an error about one. */
static __always_inline bool can_translate(const struct packet *packet, enum packet_kind kind)
{
	bool has_ports = packet->protocol == IPPROTO_TCP || is_udp(packet->protocol);

	if (!HAS(NAT) || is_ipv6(packet) || !has_ports)
		return false;
	return kind == PACKET_TRANSPORT || kind == PACKET_ICMP_ERROR;
}

/*
 * Choose an endpoint for a new connection, fill in the rest of `flow` and make both halves, the one for replies
 * first. Returns VERDICT_REQUEST, or the reason to drop the packet.
 */
static __always_inline enum verdict open_connection(const struct service *service, struct flow_key *key,
						    struct flow *flow, const struct packet *packet)
{
	enum verdict failure = VERDICT_NO_ENDPOINT;
	__be32 first = packet->opens ? bpf_htonl(bpf_ntohl(packet->sequence) + 1) : 0;
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
 * so connections survive the loss of the flow table; with round-robin, only a SYN may, or a datagram.
 */
static __always_inline bool may_open(const struct service *service, const struct packet *packet)
{
	return service->algorithm != ALGORITHM_ROUND_ROBIN || may_begin(packet);
}

/*
 * Whether the other program, if there is one, may know better what a packet belongs to: this one knows no connection, or
 * one that is over, after which another one may have begun with the same addresses and ports.
 */
static __always_inline bool may_be_others(const struct flow *flow, const struct packet *packet)
{
	if (packet->opens)
		return false;
	return !flow || (flow->state == FLOW_CLOSING && is_over(flow, packet->protocol, bpf_ktime_get_coarse_ns()));
}

/*
 * Have the other program handle a packet, which it must see as it came in; goes on if there is none. False if the packet
 * is lost thereby, which can't happen.
 */
static __always_inline bool ask_other(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind)
{
	if (HAS(VLAN) && packet->tci & TAGGED) {
		bool has_tag = put_on_tag(ctx, packet->tci);

		if (has_tag)
			other.call(ctx, 0);
		return (!has_tag || take_off(ctx)) && parse(ctx, packet) == kind;
	}
	other.call(ctx, 0);
	return true;
}

/* A client's packet, which belongs to the connection `flow` or, if that is NULL, may open one. */
static __always_inline int nat_request(struct packet *packet, const struct service *service, struct flow_key *key,
				       struct flow *flow, struct forwarding *it)
{
	struct flow fresh = {};

	/* Any SYN may be forged, so it moves no connection but one that is over. */
	if (flow && may_begin(packet) && is_over(flow, packet->protocol, bpf_ktime_get_coarse_ns()))
		flow = NULL;

	if (flow) {
		NOTE(flow, flow->state);
		NOTE(endpoint, flow->endpoint);
		follow(key, flow, packet);
	} else {
		enum verdict verdict;

		if (!may_open(service, packet))
			return count(VERDICT_CONNECTION_UNKNOWN, XDP_PASS);
		fresh.direction = DIRECTION_REQUEST;
		fresh.state = may_begin(packet) ? FLOW_OPENING : packet->closes ? FLOW_CLOSING : FLOW_OPEN;
		fresh.service = service->index;
		fresh.last_seen = bpf_ktime_get_coarse_ns();
		verdict = open_connection(service, key, &fresh, packet);
		if (verdict != VERDICT_REQUEST)
			return drop(verdict);
		flow = &fresh;
	}

	it->change = CHANGE_DESTINATION;
	it->verdict = VERDICT_REQUEST;
	it->service = service->index;
	it->endpoint = flow->endpoint;
	it->to.words[0] = it->address = flow->address;
	it->port = flow->port;
	return GO_ON;
}

/* An endpoint's packet of a connection. */
static __always_inline int nat_reply(struct packet *packet, struct flow_key *key, struct flow *flow,
				     struct forwarding *it)
{
	if (!is_served(flow->endpoint, key->source)) {
		forget(key, flow);
		return drop(VERDICT_ENDPOINT_DISABLED);
	}
	if (is_no_reply(flow, packet, bpf_ktime_get_coarse_ns())) {
		forget(key, flow);
		return XDP_PASS;
	}

	follow(key, flow, packet);
	it->change = CHANGE_SOURCE;
	it->verdict = VERDICT_REPLY;
	it->service = flow->service;
	it->endpoint = flow->endpoint;
	it->to.words[0] = packet->ip->daddr;
	it->address = flow->address;
	it->port = flow->port;
	return GO_ON;
}

/*
 * An error about a packet of a connection. The quoted packet has the addresses of those that its receiver gets the other
 * way round, so the error goes where the quoted packet came from before it was translated: to the endpoint, about a
 * reply, or to the client, about a request. Nothing about the connection changes: an error may be forged.
 */
static __always_inline int nat_error(struct packet *packet, const struct flow_key *key, const struct flow *flow,
				     struct forwarding *it)
{
	bool is_about_reply = flow->direction == DIRECTION_REQUEST;

	if (!is_served(flow->endpoint, is_about_reply ? flow->address : key->source))
		return NOBODYS;
	it->change = is_about_reply ? CHANGE_DESTINATION : CHANGE_SOURCE;
	it->verdict = is_about_reply ? VERDICT_ICMP_ERROR : VERDICT_ERROR_RELAYED;
	it->is_error = true;
	it->service = flow->service;
	it->endpoint = flow->endpoint;
	it->to.words[0] = is_about_reply ? flow->address : packet->ip->daddr;
	it->address = flow->address;
	it->port = flow->port;
	return GO_ON;
}

/* What a connection is found by: the addresses of a packet, or those of a quoted one the other way round. */
static __always_inline struct flow_key key_of(const struct packet *packet, enum packet_kind kind)
{
	struct flow_key key = { .protocol = packet->protocol };

	if (kind == PACKET_ICMP_ERROR) {
		key.source = packet->quoted->daddr;
		key.destination = packet->quoted->saddr;
		key.source_port = packet->ports->destination;
		key.destination_port = packet->ports->source;
		APART;
	} else {
		key.source = packet->ip->saddr;
		key.destination = packet->ip->daddr;
		key.source_port = packet->ports->source;
		key.destination_port = packet->ports->destination;
	}
	return key;
}

/* Forget the connection that a client's packet belongs to, if there is one: its client may no longer use the service. */
static __always_inline void end_connection(const struct packet *packet, enum packet_kind kind)
{
	struct flow_key key = key_of(packet, kind);
	struct flow *flow = flows.lookup(&key);

	if (flow && flow->direction == DIRECTION_REQUEST)
		forget(&key, flow);
}

/*
 * Find the connection that a packet belongs to, or open one. `service` is what the packet is for, NULL if that is no
 * service. A reply that is a fragment or has IP options doesn't come this far: its ports are unknown. The kernel forwards
 * it as it is, and the client, which knows no such connection, ignores it.
 */
static __always_inline int nat(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind,
			       const struct service *service, struct forwarding *it)
{
	bool is_request = service && service->mode == MODE_NAT && kind != PACKET_ICMP_ERROR;
	struct flow_key key = key_of(packet, kind);
	struct flow *flow;

	if (is_request) {
		NOTE(service, service->index);
		if (is_for_many(packet->eth))
			return drop(VERDICT_LINK_BROADCAST);
		if (has_impossible_source(packet))
			return drop(VERDICT_IMPOSSIBLE_SOURCE);
		if (ttl_of(packet) <= 1)
			return drop(VERDICT_TTL_EXPIRED);
	}
	flow = flows.lookup(&key);
	if (is_request && flow && flow->direction != DIRECTION_REQUEST)
		flow = NULL;	/* the client claims to have a VIP's address */
	if (is_request && flow && !is_served(flow->endpoint, flow->address)) {
		forget(&key, flow);
		flow = NULL;
	}
	if (may_be_others(flow, packet) && !ask_other(ctx, packet, kind))
		return drop(VERDICT_MALFORMED);
	if (is_request)
		return nat_request(packet, service, &key, flow, it);
	if (!flow || (kind != PACKET_ICMP_ERROR && flow->direction != DIRECTION_REPLY))
		return NOBODYS;

	NOTE(service, flow->service);
	NOTE(flow, flow->state);
	NOTE(endpoint, flow->endpoint);
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (ttl_of(packet) <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	if (kind == PACKET_ICMP_ERROR)
		return nat_error(packet, &key, flow, it);
	return nat_reply(packet, &key, flow, it);
}
