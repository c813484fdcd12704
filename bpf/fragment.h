// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fragments, in the modes of direct server return and, of datagrams over IPv4, in nat: a stage of its own (stage.h).
 *
 * The first fragment of a packet has its ports, and goes where the whole packet would go. The others follow it by a row of
 * `fragment_ways`, which is good for half a minute, as long as Linux waits for the missing ones. A fragment that comes
 * before the first one is dropped. There are few rows, and the oldest go first, so a flood of first fragments may cost
 * the fragments of others, but no packet that is whole.
 */

/* Times count 2^30 ns, about a second. */
#define FRAGMENT_TIME_SHIFT 30
#define FRAGMENT_TIME 28

/* What a fragment says about its place in the packet. */
struct part {
	bool is_first;
	bool is_last;
};

/* Read which packet a fragment is a part of, and which part. False if its headers are cut off. */
static __always_inline bool read_part(struct xdp_md *ctx, struct packet *packet, struct fragment_key *key, struct part *part)
{
	void *end = (void *)(long)ctx->data_end;
	struct fragment *header = packet->transport;
	u16 offset;
	struct address source = read_address(source_of(packet), is_ipv6(packet));
	struct address destination = read_address(destination_of(packet), is_ipv6(packet));

	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->source, source.words, sizeof(key->source));
	__builtin_memcpy(key->destination, destination.words, sizeof(key->destination));
	key->is_ipv6 = is_ipv6(packet);
	if (is_ipv6(packet)) {
		if ((void *)(header + 1) > end || packet->ip_bytes < sizeof(struct ipv6hdr) + sizeof(*header))
			return false;
		packet->protocol = header->next;
		packet->transport = header + 1;
		key->id = header->id;
		offset = bpf_ntohs(header->offset);
		part->is_first = !(offset & FRAGMENT_OFFSET);
		part->is_last = !(offset & FRAGMENT_MORE);
		APART;
	} else {
		key->id = packet->ip->id;
		offset = bpf_ntohs(packet->ip->frag_off);
		part->is_first = !(offset & IP_FRAGMENT_OFFSET);
		part->is_last = !(offset & IP_MORE_FRAGMENTS);
	}
	key->protocol = packet->protocol;
	return true;
}

/*
 * What the first fragment says about its flow. False if it lacks ports, or flags of TCP, which none does that is sent in
 * good faith (RFC 1858, section 3.2).
 */
static __always_inline bool read_flow(struct xdp_md *ctx, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	u8 *chunk = (void *)(packet->sctp + 1);

	packet->ports = packet->transport;
	if ((void *)(packet->ports + 2) > end)
		return false;
	if (packet->protocol == IPPROTO_TCP) {
		if ((void *)(packet->tcp + 1) > end)
			return false;
		packet->opens = is_opening(packet->tcp);
		packet->closes = is_ending(packet->tcp);
		packet->sequence = packet->tcp->seq;
		packet->acknowledged = packet->tcp->ack_seq;
	} else if (HAS(SCTP) && packet->protocol == IPPROTO_SCTP) {
		if ((void *)(chunk + 1) > end)
			return false;
		packet->opens = !is_some(*chunk ^ SCTP_INIT);
		packet->closes = !is_some((*chunk ^ SCTP_ABORT) * (*chunk ^ SCTP_SHUTDOWN_COMPLETE));
	}
	return true;
}

/* What becomes of a fragment that belongs to no packet that is known. One of a reply may be nothing to us. */
static __always_inline int unknown_part(const struct packet *packet)
{
	return find_vip(packet) ? drop(VERDICT_FRAGMENT) : XDP_PASS;
}

/* Choose the endpoint of a packet by its first fragment, and note it for the others. NAT does both in a stage of its own. */
static __always_inline int place_first(struct xdp_md *ctx, struct packet *packet, const struct fragment_key *key, bool is_last,
				       struct forwarding *it)
{
	struct client client = {
		.address = fold_address(source_of(packet), is_ipv6(packet)),
		.port = bpf_ntohs(packet->ports->source),
		.protocol = packet->protocol,
		.is_ipv6 = is_ipv6(packet),
		.words = source_of(packet),
	};
	struct service service = {};
	struct fragment_way way = {};
	int action;

	find_service(destination_of(packet), is_ipv6(packet), packet->ports->destination, packet->protocol, &service);
	if (HAS(ALLOWED_SOURCES) && service.mode && !is_allowed(&service, &client))
		return drop(VERDICT_NOT_ALLOWED);
	if (can_translate_parts(packet) && !is_dsr(&service) && service.mode != MODE_FULLNAT)
		return hand_over(ctx, packet, &service, false, false);
	if (!is_dsr(&service))
		return unknown_part(packet);
	action = dsr_request(packet, PACKET_TRANSPORT, &service, &client, it);
	if (action != GO_ON || is_last)
		return action;
	way.endpoint = it->endpoint;
	way.service = it->service;
	way.hash = it->hash;
	way.change = it->change;
	way.moment = bpf_ktime_get_coarse_ns() >> FRAGMENT_TIME_SHIFT;
	fragment_ways.update((struct fragment_key *)key, &way);
	return GO_ON;
}

/* Send a fragment after the first one of its packet. */
static __always_inline int place_next(struct packet *packet, struct fragment_key *key, struct handed *handed,
				      struct forwarding *it)
{
	struct fragment_way *way = fragment_ways.lookup(key);
	u32 now = bpf_ktime_get_coarse_ns() >> FRAGMENT_TIME_SHIFT;
	struct endpoint *endpoint;

	if (!way || now - way->moment > FRAGMENT_TIME)
		return unknown_part(packet);
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (ttl_of(packet) <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	it->change = way->change;
	it->verdict = it->change == CHANGE_SOURCE ? VERDICT_REPLY : VERDICT_REQUEST;
	it->service = way->service;
	it->hash = way->hash;
	endpoint = find_alive(way->endpoint);
	NOTE(service, way->service);
	NOTE(endpoint, way->endpoint);
	if (!endpoint)
		return drop(VERDICT_NO_ENDPOINT);
	if (HAS_DSR && (it->change == CHANGE_TUNNEL || it->change == CHANGE_NOTHING))
		return dsr_to(packet, way->endpoint, endpoint, it);
	it->endpoint = way->endpoint;
	it->handed = handed;
	handed->translated[0] = way->translated;
	it->to = read_address(it->change == CHANGE_SOURCE ? destination_of(packet) : &way->translated, false);
	return GO_ON;
}

/* In the stage of NAT for first fragments: note for the others which address it gets. */
static __always_inline void note_translated(const struct packet *packet, struct handed *handed, const struct forwarding *it)
{
	struct fragment_key *key = (void *)handed->route;	/* nobody has asked for the way yet */
	struct fragment_way way = {
		.moment = bpf_ktime_get_coarse_ns() >> FRAGMENT_TIME_SHIFT,
		.endpoint = it->endpoint,
		.service = it->service,
		.change = it->change,
		.translated = handed->translated[0],
	};

	__builtin_memset(key, 0, sizeof(*key));
	key->source[0] = packet->ip->saddr;
	key->destination[0] = packet->ip->daddr;
	key->id = packet->ip->id;
	key->protocol = packet->protocol;
	fragment_ways.update(key, &way);
}

/* In the main program: hand a fragment for a VIP, or of a reply, to the stage. It comes back only if there is none. */
static __always_inline int hand_over_fragment(struct xdp_md *ctx, const struct packet *packet)
{
	u32 row = 0;
	struct handed *handed = handed_over.lookup(&row);

	if (handed) {
		handed->ingress = packet->ingress;
		handed->tci = packet->tci;
		stages.call(ctx, STAGE_FRAGMENTS);
	}
	return drop(VERDICT_STAGE_MISSING);
}

/* In the stage: what becomes of a fragment for a VIP. */
static __always_inline int place_fragment(struct xdp_md *ctx, struct packet *packet)
{
	u32 row = 0;
	struct handed *handed = handed_over.lookup(&row);
	struct forwarding it = {};
	struct fragment_key *key;
	struct part part = {};
	int action;

	if ((!HAS_DSR && !HAS(NAT)) || !handed)
		return drop(VERDICT_STAGE_MISSING);
	packet->ingress = handed->ingress;
	packet->tci = handed->tci;
	key = (void *)handed->client;	/* which has no other use here, as the fields behind it */
	if (parse_network(ctx, packet) != PACKET_FRAGMENT)
		return drop(VERDICT_FRAGMENT);
	if (!read_part(ctx, packet, key, &part))
		return drop(VERDICT_MALFORMED);
	if (!part.is_first)
		action = place_next(packet, key, handed, &it);
	else if (read_flow(ctx, packet))
		action = place_first(ctx, packet, key, part.is_last, &it);
	else
		return drop(VERDICT_MALFORMED);
	return action == GO_ON ? forward(ctx, packet, &it) : action;
}
