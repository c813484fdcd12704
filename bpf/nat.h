// SPDX-License-Identifier: GPL-2.0-only
/*
 * NAT of TCP and UDP, over IPv4 or over IPv6, and of SCTP: each is a stage of its own. The endpoint's address and port
 * become the destination of requests, the VIP's the source of replies.
 */

#define OWN_STAGE (HAS(AS_SCTP) ? STAGE_SCTP4 : HAS(AS_NAT6) ? STAGE_NAT6 : STAGE_NAT4)

/* What a packet, or the one that an error quotes, says about its connection. */
static __always_inline struct sought sought_by(const struct packet *packet, enum packet_kind kind,
					       struct handed *handed)
{
	const struct service *service = service_handed(handed);
	struct sought sought = {
		.client = handed->client,
		.address = handed->peer,
		.protocol = packet->protocol,
		.is_request = HAS(AS_FULLNAT) ? service->mode == MODE_FULLNAT : is_nat(service),
		.service = service->index,
	};
	const void *source, *destination;
	__be16 source_port, destination_port, client_port;

	if (kind == PACKET_ICMP_ERROR) {
		/* The quoted packet has the addresses of those that its receiver gets, the other way round. */
		source = is_ipv6(packet) ? (void *)&packet->quoted6->daddr : (void *)&packet->quoted->daddr;
		destination = is_ipv6(packet) ? (void *)&packet->quoted6->saddr : (void *)&packet->quoted->saddr;
		source_port = packet->ports->destination;
		destination_port = packet->ports->source;
		APART;
	} else {
		source = source_of(packet);
		destination = destination_of(packet);
		source_port = packet->ports->source;
		destination_port = packet->ports->destination;
	}
	if (sought.is_request) {
		copy_address(handed->client, source);
		copy_address(handed->peer, destination);
		client_port = source_port;
		sought.port = destination_port;
		APART;
	} else {
		copy_address(handed->client, destination);
		copy_address(handed->peer, source);
		client_port = destination_port;
		sought.port = source_port;
	}
	sought.key = connection_key(fold_address(handed->client, is_ipv6(packet)), bpf_ntohs(client_port),
				    is_udp(sought.protocol));
	return sought;
}

/* Have a client's packet go to an endpoint with this address. */
static __always_inline void go_to(const __be32 *address, struct forwarding *it)
{
	it->to = read_address(address, HAS(AS_NAT6));
	copy_address(it->handed->translated, address);
}

/* Have a client's packet go to the endpoint of an entry. False if the endpoint may get no more packets. */
static __always_inline bool go_to_endpoint(const struct sought *sought, u64 where, const struct service *service,
					   struct forwarding *it)
{
	u32 index = connection_service(where), id = connection_endpoint(where);
	struct endpoint *endpoint = find_alive(id);
	const __be32 *address;
	struct front *front;

	NOTE(endpoint, id);
	if (!endpoint)
		return false;
	/* A client of UDP doesn't notice that nobody is there, and would send there for ever. */
	if (endpoint->state == ENDPOINT_DEAD && is_udp(sought->protocol))
		return false;
	it->service = index;
	it->endpoint = id;
	address = address_of(id, endpoint);
	if (!address)
		return false;
	go_to(address, it);
	it->port = endpoint->port ?: service->target_port ?: sought->port;
	if (index != service->index) {
		front = fronts.lookup(&index);
		if (!front)
			return false;
		it->port = port_behind(endpoint, front);
	}
	return true;
}

/*
 * Choose an endpoint for a new connection, one whose replies will not look like those of another connection of the client.
 * Returns VERDICT_REQUEST, or the reason to drop the packet.
 */
static __always_inline enum verdict find_server(const struct service *service, const struct sought *sought,
						const struct connection *former, struct forwarding *it,
						struct bond *bond)
{
	enum verdict failure = VERDICT_NO_ENDPOINT;
	struct client client = {
		.address = sought->key >> WHO_CLIENT_SHIFT,
		.port = sought->key >> WHO_PORT_SHIFT,
		.protocol = sought->protocol,
		.is_ipv6 = HAS(AS_NAT6),
		.words = sought->client,
	};
	struct looks *looks = note_all_looks(sought, former, connection_now());
	u64 look;
	u32 try;

	if (!looks)
		return failure;
	find_bond(service, &client, bond);
	for (try = 0; try < MAX_TRIES; try++) {
		u32 id = choose_bound(service, &client, try, bond);
		struct endpoint *endpoint = id ? endpoints.lookup(&id) : NULL;
		const __be32 *address = endpoint ? address_of(id, endpoint) : NULL;

		NOTE(endpoint, id);
		/* NAT has no use for an endpoint of the other version of IP. */
		if (!address || endpoint->state != ENDPOINT_USABLE)
			continue;
		it->endpoint = id;
		go_to(address, it);
		it->port = endpoint->port ?: service->target_port ?: sought->port;
		look = look_of(it->handed->translated, it->port);
		if (!is_among(looks, look)) {
			take_away(former, sought, looks, look);
			return VERDICT_REQUEST;
		}
		failure = VERDICT_ADDRESS_CLASH;
	}
	return failure;
}

/*
 * Make the entry of a new connection whose endpoint is chosen, in the place of one with the same addresses that is over, if
 * there is one.
 */
static __always_inline bool open_connection(const struct service *service, const struct sought *sought,
					    struct connection *former, const struct packet *packet,
					    const struct forwarding *it)
{
	u32 now = connection_now(), expected = bpf_ntohl(packet->sequence) + packet->opens;
	u32 state = may_begin(packet) ? CONNECTION_OPENING : !packet->closes ? CONNECTION_OPEN :
		    packet->flags & TCP_RST ? CONNECTION_OVER : CONNECTION_CLIENT_CLOSED;
	u64 who = with_state(sought->key, state, now);
	u64 where = (u64)it->endpoint << WHERE_ENDPOINT_SHIFT | (u64)service->index << WHERE_SERVICE_SHIFT;

	if (HAS(AS_SCTP)) {
		where |= tags_at_first(&sought->chunk);
		who = with_state(sought->key, state_at_first(&sought->chunk), now);
	} else {
		where |= expected >> NUMBERS_SHIFT;
		if (packet->flags & TCP_ACK)
			where |= (u64)numbers_of(packet->acknowledged) << WHERE_CLIENT_SHIFT;
	}
	return store_connection(former, sought->client, who, where, now);
}

/*
 * Whether a packet without a flow may make one. With a hash, any packet of a connection finds its endpoint again,
 * so connections survive the loss of the flow table; with the other algorithms only a SYN may, or a datagram.
 */
static __always_inline bool may_open(const struct service *service, const struct packet *packet)
{
	bool is_hashed = service->algorithm == ALGORITHM_SOURCE_HASH || service->algorithm == ALGORITHM_MAGLEV;

	return is_hashed || may_begin(packet);
}

/*
 * Whether the other program, if there is one, may know better what a packet belongs to: this one knows no connection, or
 * one that is over, after which another one may have begun with the same addresses and ports.
 */
static __always_inline bool may_be_others(const struct connection *found, const struct packet *packet,
					  const struct forwarding *it)
{
	if (packet->opens || it->is_asked)
		return false;
	return !found->is_there || !found->lives || connection_state_of(found->who) == CONNECTION_OVER;
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
			other.call(ctx, OTHER_STAGES + OWN_STAGE);
		return (!has_tag || take_off(ctx)) && parse(ctx, packet) == kind;
	}
	other.call(ctx, OTHER_STAGES + OWN_STAGE);
	return true;
}

/* Whether a client's packet opens a connection in the place of the one that is found. */
static __always_inline bool starts_afresh(const struct packet *packet, const struct connection *found)
{
	u32 id = connection_endpoint(found->where), state = connection_state_of(found->who);
	struct endpoint *endpoint;

	if (!found->lives)
		return true;
	/*
	 * Any SYN may be forged, so it moves no connection that is open. Nor does an INIT: whose endpoint has lost nothing
	 * deals with it (RFC 9260, section 5.2.2). But nobody tells a client of SCTP that its endpoint is dead.
	 */
	if (!packet->opens || (state == CONNECTION_OPEN && !HAS(AS_SCTP)))
		return false;
	if (state == CONNECTION_OVER)
		return true;
	endpoint = endpoints.lookup(&id);
	if (HAS(AS_SCTP) && state == CONNECTION_OPEN)
		return endpoint && endpoint->state == ENDPOINT_DEAD;
	return endpoint && (endpoint->state == ENDPOINT_RETIRED || endpoint->state == ENDPOINT_DEAD);
}

/* Note in an entry what a packet tells. */
static __always_inline void note_packet(const struct packet *packet, const struct sought *sought, bool is_request,
					const struct connection *found)
{
	if (HAS(AS_SCTP))
		follow_association(&sought->chunk, is_request, found);
	else
		follow(packet, is_request, found);
}

/* A client's packet, which belongs to the connection that is found or, if there is none, may open one. */
static __always_inline int nat_request(struct packet *packet, const struct service *service, struct sought *sought,
				       struct connection *found, struct forwarding *it)
{
	enum verdict verdict;
	struct bond bond = {};

	it->change = CHANGE_DESTINATION;
	it->verdict = VERDICT_REQUEST;
	if (found->is_there && !starts_afresh(packet, found)) {
		NOTE(flow, connection_state_of(found->who));
		if (go_to_endpoint(sought, found->where, service, it)) {
			if (packet->opens && connection_state_of(found->who) == CONNECTION_OPENING)
				count_unanswered(it->endpoint);
			note_packet(packet, sought, true, found);
			return GO_ON;
		}
		forget(found);
	}
	forget_signs(packet, found->first->who[0]);
	found->is_there = forgotten(found->is_there, found->first->who[0]) & 1;
	sought->protocol = packet->protocol;
	if (!may_open(service, packet))
		return count(VERDICT_CONNECTION_UNKNOWN, XDP_PASS);
	verdict = find_server(service, sought, found, it, &bond);
	if (verdict != VERDICT_REQUEST)
		return drop(verdict);
	it->endpoint = forgotten(it->endpoint, found->first->who[0]);
	if (!open_connection(service, sought, found, packet, it))
		return drop(VERDICT_TABLE_FULL);
	it->service = service->index;
	count_connection(service->index, it->endpoint);
	note_load(it->endpoint, 1);
	note_bond(&bond, it->endpoint);
	return GO_ON;
}

/* Have an endpoint's packet, or an error about one for it, go to the client of an entry. */
static __always_inline bool go_to_client(const struct packet *packet, u64 where, struct forwarding *it)
{
	u32 index = connection_service(where);
	struct front *front = fronts.lookup(&index);

	if (!front)
		return false;
	it->change = CHANGE_SOURCE;
	it->service = index;
	it->endpoint = connection_endpoint(where);
	it->to = read_address(destination_of(packet), is_ipv6(packet));
	copy_address(it->handed->translated, front->vip);
	it->port = front->port;
	return true;
}

/* An endpoint's packet of a connection. */
static __always_inline int nat_reply(struct packet *packet, const struct sought *sought, struct connection *found,
				     struct forwarding *it)
{
	bool is_strange = HAS(AS_SCTP) ? is_no_reply_of_sctp(&sought->chunk, found) : is_no_reply(packet, found);

	if (!find_alive(connection_endpoint(found->where))) {
		forget(found);
		return drop(VERDICT_ENDPOINT_DISABLED);
	}
	if (is_strange || !go_to_client(packet, found->where, it)) {
		forget(found);
		return XDP_PASS;
	}
	note_packet(packet, sought, false, found);
	it->verdict = VERDICT_REPLY;
	return GO_ON;
}

/*
 * An error about a packet of a connection. It goes where the quoted packet came from before it was translated: to the
 * endpoint, about a reply, or to the client, about a request. Nothing about the connection changes: an error may be forged.
 */
static __always_inline int nat_error(struct packet *packet, const struct service *service, const struct sought *sought,
				     const struct connection *found, struct forwarding *it)
{
	it->is_error = true;
	if (sought->is_request) {
		it->change = CHANGE_DESTINATION;
		it->verdict = VERDICT_ICMP_ERROR;
		return go_to_endpoint(sought, found->where, service, it) ? GO_ON : NOBODYS;
	}
	it->verdict = VERDICT_ERROR_RELAYED;
	if (!find_alive(connection_endpoint(found->where)) || !go_to_client(packet, found->where, it))
		return NOBODYS;
	return GO_ON;
}

/*
 * Find the connection that a packet belongs to, or open one. A reply that is a fragment or has IP options doesn't come this
 * far: its ports are unknown. The kernel forwards it as it is, and the client, which knows no such connection, ignores it.
 * A client that may no longer use the service loses its connection.
 */
static __always_inline int nat(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind,
			       struct handed *handed, struct forwarding *it)
{
	const struct service *service = service_handed(handed);
	struct sought sought = sought_by(packet, kind, handed);
	bool is_request = sought.is_request && kind != PACKET_ICMP_ERROR;
	bool is_turned_away = HAS(ALLOWED_SOURCES) && handed->is_refused;
	struct connection found = {};
	struct source source = {};

	it->handed = handed;
	if (HAS(AS_SCTP) && kind != PACKET_ICMP_ERROR)
		sought.chunk = first_chunk(ctx, packet);
	is_turned_away = forgotten(is_turned_away, sought.key) & 1;
	if (is_request && !is_turned_away) {
		NOTE(service, service->index);
		if (is_for_many(packet->eth))
			return drop(VERDICT_LINK_BROADCAST);
		if (has_impossible_source(packet))
			return drop(VERDICT_IMPOSSIBLE_SOURCE);
		if (ttl_of(packet) <= 1)
			return expired(ctx, packet);
	}
	if (HAS(STATELESS) && !sought.is_request)
		find_source(&sought, &source);
	if (is_stateless(service) || source.is_enough) {
		if (is_turned_away)
			return TURNED_AWAY;
		goto unknown;
	}
	if (!find_connection(&sought, &found))
		return NOBODYS;
	if (is_turned_away) {
		if (found.is_there)
			forget(&found);
		return TURNED_AWAY;
	}
	if (may_be_others(&found, packet, it) && !ask_other(ctx, packet, kind))
		return drop(VERDICT_MALFORMED);
	if (is_request && (!goes_by_ring(packet, service) || (found.is_there && !starts_afresh(packet, &found))))
		return nat_request(packet, service, &sought, &found, it);
	if (is_request || !found.is_there || !found.lives)
		goto unknown;

	NOTE(service, connection_service(found.where));
	NOTE(flow, connection_state_of(found.who));
	NOTE(endpoint, connection_endpoint(found.where));
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (ttl_of(packet) <= 1) {
		/* The kernel doesn't forward it either, and answers an endpoint by an address of its own. No error gets one. */
		if (kind == PACKET_ICMP_ERROR)
			return drop(VERDICT_TTL_EXPIRED);
		return count(VERDICT_TTL_EXPIRED_ANSWERED, XDP_PASS);
	}
	if (kind == PACKET_ICMP_ERROR)
		return nat_error(packet, service, &sought, &found, it);
	return nat_reply(packet, &sought, &found, it);
unknown:
	if (!HAS(STATELESS))
		return NOBODYS;
	if (sought.is_request)
		return goes_by_ring(packet, service) ? request_by_ring(packet, kind, service, &sought, it) : NOBODYS;
	return source.row ? reply_by_source(packet, kind, &source, it) : NOBODYS;
}
