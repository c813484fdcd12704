// SPDX-License-Identifier: GPL-2.0-only
/*
 * Direct server return: the packet reaches the endpoint with the client's and the VIP's addresses, its TTL less by
 * one, and the reply goes past the balancer. Outside of transitions nothing is remembered: a ring that stands still
 * gives a client the same endpoint each time.
 */

/*
 * Forward an IPv4 or IPv6 packet to its client's endpoint: through a tunnel, or by another MAC alone.
 *
 * The TTL is decremented in both cases (for tunnels: RFC 2003, section 3.1), so a packet that an endpoint sends back
 * by mistake doesn't go round for ever. IPv6 packets have no use for IPv4 endpoints.
 */
static __always_inline int dsr(struct xdp_md *ctx, struct packet *packet, bool is_ipv6, enum packet_kind kind,
			       const struct service *service, const struct client *client)
{
	bool tunnelled = is_tunnelled(service), via_kernel = false;
	enum verdict verdict = kind == PACKET_ICMP_ERROR ? VERDICT_ICMP_ERROR :
			       kind == PACKET_ECHO ? VERDICT_ECHO_FORWARDED : VERDICT_REQUEST;
	u32 bytes = packet->ip_bytes, longer = 0, id;
	const struct address6 *address6 = NULL;
	struct endpoint *endpoint = NULL;
	struct ethhdr *eth = packet->eth;
	struct next_hop hop;

	NOTE(service, service->index);
	if (is_for_many(packet->eth))
		return drop(VERDICT_LINK_BROADCAST);
#ifdef IPV6
	if (is_ipv6 && is_impossible_source6(packet->ip6))
		return drop(VERDICT_IMPOSSIBLE_SOURCE);
#endif
	if (!is_ipv6 && is_impossible_source(packet->ip))
		return drop(VERDICT_IMPOSSIBLE_SOURCE);
	if ((is_ipv6 ? packet->ip6->hop_limit : packet->ip->ttl) <= 1)
		return drop(VERDICT_TTL_EXPIRED);
	id = find_endpoint(service, client, packet, kind, &endpoint);
	if (!endpoint || (is_ipv6 && endpoint->address))
		return drop(VERDICT_NO_ENDPOINT);
#ifdef IPV6
	if (!endpoint->address) {
		address6 = endpoints6.lookup(&id);
		if (!address6)
			return drop(VERDICT_NO_ENDPOINT);
	}
#endif
	/* Else the compiler tests endpoint->address in place of `address6`, and Linux 6.1's verifier can't follow. */
	asm volatile("" : "+r"(address6));
	if (tunnelled)
		longer = address6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (!tunnelled && address6 && !is_ipv6)
		return drop(VERDICT_OFF_LINK);	/* an IPv4 packet can't go to the MAC of an IPv6 neighbour */
	if (bytes + longer > 0xffff)
		return drop(VERDICT_TOO_BIG);

	switch (find_way(ctx, packet, id, endpoint->address, address6, bytes + longer, &hop)) {
	case WAY_KNOWN:
		break;
	case WAY_UNRESOLVED:
		via_kernel = true;
		break;
	case WAY_TOO_NARROW:
		if (verdict == VERDICT_ICMP_ERROR)
			return drop(VERDICT_TOO_BIG);
#ifdef IPV6
		if (is_ipv6)
			return too_big6(ctx, packet, hop.mtu - longer);
#endif
		return too_big(ctx, packet, hop.mtu - longer);
	default:
		return drop(VERDICT_NO_ROUTE);
	}

#ifdef DSR_L2
	if (!tunnelled) {
		if (hop.ifindex & OFF_LINK)	/* a router would send the packet back to the VIP */
			return drop(VERDICT_OFF_LINK);
#ifdef IPV6
		if (via_kernel && is_ipv6)
			return ask_for_neighbour6(ctx, address6);
#endif
		if (via_kernel)
			return ask_for_neighbour(ctx, endpoint->address);
	}
#endif
#ifdef DSR_L3
	if (tunnelled) {
		u32 hash = hash_for_tunnel(client);

#ifdef IPV6
		if (address6) {
			__be32 source[4];

			if (!tunnel_source6(hash, source))
				return drop(VERDICT_NO_ROUTE);
			if (is_ipv6)
				packet->ip6->hop_limit--;
			else
				decrement_ttl(packet->ip);
			eth = encapsulate6(ctx, packet, is_ipv6, source, hash, address6);
		}
#endif
		if (!address6) {
			__be32 source = tunnel_source(hash);

			if (!source)
				return drop(VERDICT_NO_ROUTE);
			/*
			 * The next hop's MAC is unknown: the kernel routes the packet again and asks for the MAC. It
			 * drops packets from outside whose source is one of the node's own addresses, so this packet
			 * gets the client's.
			 */
			if (via_kernel)
				source = packet->ip->saddr;
			decrement_ttl(packet->ip);
			eth = encapsulate(ctx, packet, source, endpoint->address);
		}
		if (!eth)
			return drop(VERDICT_NO_HEADROOM);
	}
#endif
	if (!tunnelled) {
		if (is_ipv6)
			packet->ip6->hop_limit--;
		else
			decrement_ttl(packet->ip);
	}
#ifdef GATEWAY
	/* The kernel would take its own route, not the gateway, so it gets a packet for the gateway instead. */
	if (via_kernel && hop.ifindex & BY_GATEWAY)
		return ask_for_gateway(ctx, packet);
#endif
	if (packet->opens)
		count_connection(service->index, id);
	count_request(service->index, id, bytes);
	if (via_kernel)
		return count(VERDICT_VIA_KERNEL, XDP_PASS);
	return leave(ctx, packet, eth, &hop, verdict);
}
