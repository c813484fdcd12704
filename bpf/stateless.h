// SPDX-License-Identifier: GPL-2.0-only
/*
 * NAT over IPv4 that remembers nothing. While a ring that hashes its clients stands still, it gives a client the same
 * endpoint each time, as for direct server return. And the source of a reply says which service it belongs to, since no
 * other one has this endpoint's address and port: map `served`. While slots of the ring are in transition, flows are
 * remembered as for direct server return (transition.h).
 *
 * On the way from the table to this a service is settling: the table is asked first, and the ring for all that it doesn't
 * know. On the way back it is leaving: the table is asked first, and what it doesn't know goes by the ring unless it opens
 * a connection, which gets an entry. In both, replies that the table doesn't know go by their source.
 */

/* How long a row of `served` that was given up lasts after a reply: as an open connection may be silent (connection.h). */
static __always_inline u32 served_idle(u8 protocol)
{
	return is_udp(protocol) ? UDP_IDLE : TCP_IDLE;
}

static __always_inline bool is_stateless(const struct service *service)
{
	return HAS(STATELESS) && service->mode == MODE_NAT_STATELESS;
}

static __always_inline bool is_settling(const struct service *service)
{
	return HAS(STATELESS) && service->mode == MODE_NAT_SETTLING;
}

static __always_inline bool is_leaving(const struct service *service)
{
	return HAS(STATELESS) && service->mode == MODE_NAT_LEAVING;
}

static __always_inline bool is_nat(const struct service *service)
{
	return service->mode == MODE_NAT || is_stateless(service) || is_settling(service) || is_leaving(service);
}

/* A client's packet, or an error about one of its endpoint's, goes to the endpoint that the ring says. */
static __always_inline int request_by_ring(const struct packet *packet, enum packet_kind kind,
					   const struct service *service, const struct sought *sought,
					   struct forwarding *it)
{
	struct client client = {
		.address = sought->key >> WHO_CLIENT_SHIFT,
		.port = sought->key >> WHO_PORT_SHIFT,
		.protocol = packet->protocol,
	};
	struct endpoint *endpoint = NULL;
	u32 id = find_endpoint(service, &client, packet, kind, &endpoint);

	if (!endpoint || !endpoint->address)
		return drop(VERDICT_NO_ENDPOINT);
	it->change = CHANGE_DESTINATION;
	it->is_error = kind == PACKET_ICMP_ERROR;
	it->verdict = it->is_error ? VERDICT_ICMP_ERROR : VERDICT_REQUEST;
	it->begins = packet->opens && !it->is_error;
	it->service = service->index;
	it->endpoint = id;
	it->to = read_address(&endpoint->address, false);
	copy_address(it->handed->translated, &endpoint->address);
	it->port = endpoint->port ?: service->target_port ?: sought->port;
	return GO_ON;
}

/* What the source of an endpoint's packet, or of the one that an error quotes, says about it. */
struct source {
	struct served *row;	/* NULL: no service has this source to itself */
	u32 service;		/* the index */
	bool is_enough;		/* no entry of the table has this source */
};

static __always_inline void find_source(const struct sought *sought, struct source *source)
{
	struct service_key asked = { .vip = *sought->address, .port = sought->port, .protocol = sought->protocol };
	struct served *row = served.lookup(&asked);
	struct service service = {};

	if (!row || (row->until && row->until < connection_now()))
		return;
	if (!find_service(&row->vip, false, row->port, sought->protocol, &service) || !is_nat(&service))
		return;
	source->row = row;
	source->service = service.index;
	source->is_enough = is_stateless(&service);
}

/*
 * An endpoint's packet, or an error about one for it, goes to its client with the VIP's address. Since nothing is known of
 * the client, it may as well be the node itself, which asked the endpoint directly: that is left to the kernel.
 */
static __always_inline int reply_by_source(const struct packet *packet, enum packet_kind kind, const struct source *source,
					   struct forwarding *it)
{
	u32 until = connection_now() + served_idle(packet->protocol);
	struct served *row = source->row;

	if (is_for_many(packet->eth) || ttl_of(packet) <= 1)
		return NOBODYS;
	NOTE(service, source->service);
	NOTE(endpoint, row->endpoint);
	it->is_unsure = true;
	it->is_error = kind == PACKET_ICMP_ERROR;
	it->change = CHANGE_SOURCE;
	it->verdict = it->is_error ? VERDICT_ERROR_RELAYED : VERDICT_REPLY;
	it->service = source->service;
	it->endpoint = row->endpoint;
	it->to = read_address(destination_of(packet), false);
	copy_address(it->handed->translated, &row->vip);
	it->port = row->port;
	if (row->until && row->until != until)
		*(volatile u32 *)&row->until = until;
	if (!find_alive(it->endpoint))
		return it->is_error ? NOBODYS : drop(VERDICT_ENDPOINT_DISABLED);
	return GO_ON;
}

/* Whether a client's packet that the table knows nothing of, or only of a connection that is over, goes by the ring. */
static __always_inline bool goes_by_ring(const struct packet *packet, const struct service *service)
{
	return is_stateless(service) || is_settling(service) || (is_leaving(service) && !packet->opens);
}
