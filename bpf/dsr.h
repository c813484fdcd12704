// SPDX-License-Identifier: GPL-2.0-only
/*
 * Direct server return: the packet reaches the endpoint with the client's and the VIP's addresses, through a tunnel
 * (dsr-l3) or by another MAC alone (dsr-l2), and the reply goes past the balancer. Outside of transitions nothing is
 * remembered: a ring that stands still gives a client the same endpoint each time.
 */

static __always_inline bool is_dsr(const struct service *service)
{
	return HAS_DSR && (service->mode == MODE_DSR_L2 || service->mode == MODE_DSR_L3);
}

/* Have a packet go to an endpoint, whose row is known. */
static __always_inline int dsr_to(const struct packet *packet, u32 id, const struct endpoint *endpoint,
				  struct forwarding *it)
{
	u64 has_ipv6 = 0;

	it->endpoint = id;
	it->to.words[0] = endpoint->address;
	if (HAS(IPV6) && !endpoint->address) {
		struct address6 *address = endpoints6.lookup(&id);

		if (!address)
			return drop(VERDICT_NO_ENDPOINT);
		it->to = read_address(address, true);
		has_ipv6 = 1;
	}
	OPAQUE(has_ipv6);	/* else the compiler tests endpoint->address instead, and the verifier can't follow */
	it->to.is_ipv6 = HAS(IPV6) && has_ipv6;
	if (is_ipv6(packet) && !it->to.is_ipv6)
		return drop(VERDICT_NO_ENDPOINT);	/* IPv6 packets have no use for IPv4 endpoints */
	if (it->change == CHANGE_NOTHING && it->to.is_ipv6 && !is_ipv6(packet))
		return drop(VERDICT_OFF_LINK);	/* an IPv4 packet can't go to the MAC of an IPv6 neighbour */
	return GO_ON;
}

/* Choose the endpoint for a client's packet, or for an error about one of its endpoint's. */
static __always_inline int dsr_request(const struct packet *packet, enum packet_kind kind, const struct service *service,
				       const struct client *client, struct forwarding *it)
{
	struct endpoint *endpoint = NULL;
	int action;
	u32 id;

	NOTE(service, service->index);
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
	if (has_impossible_source(packet))
		return drop(VERDICT_IMPOSSIBLE_SOURCE);
	if (ttl_of(packet) <= 1)
		return drop(VERDICT_TTL_EXPIRED);

	it->change = HAS(DSR_L3) && (!HAS(DSR_L2) || service->mode == MODE_DSR_L3) ? CHANGE_TUNNEL : CHANGE_NOTHING;
	it->verdict = kind == PACKET_ICMP_ERROR ? VERDICT_ICMP_ERROR :
		      kind == PACKET_ECHO ? VERDICT_ECHO_FORWARDED : VERDICT_REQUEST;
	it->service = service->index;
	it->is_error = kind == PACKET_ICMP_ERROR;
	it->begins = packet->opens;
	id = find_endpoint(service, client, packet, kind, &endpoint);
	if (!endpoint)
		return drop(VERDICT_NO_ENDPOINT);
	action = dsr_to(packet, id, endpoint, it);
	if (action == GO_ON && is_tunnelled(it))
		it->hash = hash_for_tunnel(client);
	return action;
}
