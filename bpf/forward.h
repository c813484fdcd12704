// SPDX-License-Identifier: GPL-2.0-only
/* The one way out, for all modes. */

/* What is changed about a packet beside its MACs and its TTL. */
enum change {
	CHANGE_NOTHING,		/* dsr-l2 */
	CHANGE_TUNNEL,		/* dsr-l3: the packet gets an outer header */
	CHANGE_DESTINATION,	/* nat, a request */
	CHANGE_SOURCE,		/* nat, a reply */
	CHANGE_BOTH,		/* fullnat */
};

/* What is to become of a packet that somebody waits for. */
struct forwarding {
	enum change change;
	enum verdict verdict;
	u32 service;		/* index of the service's counters */
	u32 endpoint;
	bool begins;		/* a connection, to be counted */
	bool is_check;		/* of an endpoint, so nobody's traffic */
	bool is_unsure;		/* whether it is a flow's at all: if there is no way, the kernel has a look */
	bool is_asked;		/* by the other program of a takeover, so that one isn't asked */
	bool is_error;		/* an ICMP error about a flow; nat translates the packet that it quotes, too */
	struct address to;	/* where the packet goes, in its tunnel if it gets one */
	u32 hash;		/* CHANGE_TUNNEL: spreads flows over outer addresses */
	struct handed *handed;	/* the modes that translate: has the new address, of CHANGE_BOTH the destination; and its port */
	__be16 port;
	bool is_reply;		/* CHANGE_BOTH: the packet goes to a client */
	__be16 source_port;	/* CHANGE_BOTH: of the new source, which `handed` has */
};

/* What the modes return beside actions of XDP. */
#define GO_ON -1	/* forward() says what becomes of the packet */
#define NOBODYS -2	/* no service and no connection claims the packet */
#define TURNED_AWAY -3	/* its service doesn't want it, for the reason in `verdict` */

static __always_inline bool is_translated(const struct forwarding *it)
{
	return TRANSLATES || (HAS(AS_FRAGMENTS) && HAS(NAT) && it->handed);
}

static __always_inline bool is_tunnelled(const struct forwarding *it)
{
	return HAS(DSR_L3) && it->change == CHANGE_TUNNEL;
}

/*
 * Bring the checksum of TCP or UDP up to date. Returns what that changes in a sum over it. In UDP, 0 says that the sender
 * computed none, and a sum of 0 is written as its other form (RFC 768).
 */
static __always_inline u32 update_sum(__sum16 *place, u32 changes, bool may_be_missing)
{
	__sum16 before = *place, after;

	if (may_be_missing && !before)
		return 0;
	after = checksum_update(before, changes);
	if (may_be_missing && !after)
		after = 0xffff;
	*place = after;
	return checksum_change16(before, after);
}

/* Write a new address where there is another one. Returns what that changes in a sum over it. */
static __always_inline u32 write_address(__be32 *place, const __be32 *address, bool is_ipv6)
{
	u32 changes = checksum_change32(place[0], address[0]);

	place[0] = address[0];
	if (is_ipv6) {
		changes += checksum_change32(place[1], address[1]) + checksum_change32(place[2], address[2]) +
			   checksum_change32(place[3], address[3]);
		place[1] = address[1];
		place[2] = address[2];
		place[3] = address[3];
	}
	return changes;
}

/* The same in an IP header, whose own checksum, which only IPv4 has, is brought up to date. */
static __always_inline u32 translate_address(const struct packet *packet, void *ip, void *place,
					     const struct forwarding *it)
{
	u32 changes = write_address(place, it->handed->translated, is_ipv6(packet));
	__sum16 *check = &((struct iphdr *)ip)->check;

	if (!is_ipv6(packet))
		*check = checksum_update(*check, changes);
	return changes;
}

/*
 * Write the new address and port of a packet of TCP or UDP, or of the packet that an error quotes. Returns what that
 * changes in the sum of the words from the ports on. A checksum of TCP that is cut off, `has_sum` false, is left out. That of
 * SCTP has no addresses in it.
 */
static __always_inline u32 translate_segment(struct xdp_md *ctx, const struct packet *packet, u32 of_address, __be16 *port,
					     bool has_sum, const struct forwarding *it)
{
	struct ports *ports = packet->ports;
	__sum16 *sum = &((struct tcphdr *)ports)->check;
	u32 of_port = checksum_change16(*port, it->port), of_sum = 0;

	if (HAS(AS_SCTP)) {
		u32 bytes = it->is_error ? quoted_bytes_of_sctp(packet) : packet->ip_bytes - ip_header_bytes(false);

		return translate_port_of_sctp(ctx, packet, port, it->port, bytes);
	}
	if (is_udp(packet->protocol)) {
		of_sum = update_sum(&((struct udphdr *)ports)->check, of_address + of_port, true);
		APART;
	} else if (has_sum && (void *)(sum + 1) <= (void *)(long)ctx->data_end) {
		of_sum = update_sum(sum, of_address + of_port, false);
		APART;
	}
	*port = it->port;
	return of_port + of_sum;
}

/*
 * The packet that an error quotes went the other way than the error goes. `of_address` is what the error's own new address
 * changes in its sum, which over IPv6 has the addresses in it.
 */
static __always_inline void translate_error(struct xdp_md *ctx, const struct packet *packet, const struct forwarding *it,
					    u32 of_address)
{
	struct ports *ports = packet->ports;
	u32 before_ports = (void *)ports - (void *)packet->ip;
	bool has_sum = packet->ip_bytes >= before_ports + offsetof(struct tcphdr, check) + sizeof(__sum16);
	u32 changes, of_quoted;
	void *place;

	if (it->change == CHANGE_SOURCE) {
		place = is_ipv6(packet) ? (void *)&packet->quoted6->daddr : (void *)&packet->quoted->daddr;
		of_quoted = translate_address(packet, packet->quoted, place, it);
		changes = translate_segment(ctx, packet, of_quoted, &ports->destination, has_sum, it);
		APART;
	} else {
		place = is_ipv6(packet) ? (void *)&packet->quoted6->saddr : (void *)&packet->quoted->saddr;
		of_quoted = translate_address(packet, packet->quoted, place, it);
		changes = translate_segment(ctx, packet, of_quoted, &ports->source, has_sum, it);
	}
	/* In IPv4 the quoted address changes the error's sum by nothing, since the checksum of its header makes up for it. */
	if (is_ipv6(packet))
		changes += of_quoted + of_address;
	packet->icmp->checksum = checksum_update(packet->icmp->checksum, changes);
}

/* Write a new address and port at one end of a packet of fullnat, or of the packet that an error quotes. */
static __always_inline u32 translate_end(struct xdp_md *ctx, const struct packet *packet, struct iphdr *ip, void *address,
					 const __be32 *new_address, __be16 *port, __be16 new_port, bool has_sum)
{
	struct forwarding end = { .port = new_port };
	u32 of_address = write_address(address, new_address, is_ipv6(packet)), of_segment;

	if (!is_ipv6(packet))
		ip->check = checksum_update(ip->check, of_address);
	of_segment = translate_segment(ctx, packet, of_address, port, has_sum, &end);
	/* In IPv4 the address changes the sum of an error that quotes it by nothing: the header's checksum makes up for it. */
	return is_ipv6(packet) ? of_segment + of_address : of_segment;
}

/* Both ends. The packet that an error quotes went the other way: its source is where the error goes. */
static __always_inline void translate_both(struct xdp_md *ctx, const struct packet *packet, const struct forwarding *it)
{
	struct ports *ports = packet->ports;
	struct iphdr *ip = packet->ip, *quoted = packet->quoted;
	void *quoted_source = is_ipv6(packet) ? (void *)&packet->quoted6->saddr : (void *)&quoted->saddr;
	void *quoted_destination = is_ipv6(packet) ? (void *)&packet->quoted6->daddr : (void *)&quoted->daddr;
	const __be32 *destination = it->handed->translated, *source = it->handed->source;
	u32 before_ports = 2 * ip_header_bytes(is_ipv6(packet)) + sizeof(*packet->icmp), changes;
	bool has_sum = packet->ip_bytes >= before_ports + offsetof(struct tcphdr, check) + sizeof(__sum16);

	if (!it->is_error) {
		translate_end(ctx, packet, ip, destination_of(packet), destination, &ports->destination, it->port, true);
		translate_end(ctx, packet, ip, source_of(packet), source, &ports->source, it->source_port, true);
		return;
	}
	changes = translate_end(ctx, packet, quoted, quoted_source, destination, &ports->source, it->port, has_sum);
	changes += translate_end(ctx, packet, quoted, quoted_destination, source, &ports->destination, it->source_port,
				 has_sum);
	if (is_ipv6(packet)) {
		changes += translate_address(packet, ip, destination_of(packet), it);
		APART;
	} else {
		translate_address(packet, ip, destination_of(packet), it);
	}
	packet->icmp->checksum = checksum_update(packet->icmp->checksum, changes);
}

static __always_inline void translate(struct xdp_md *ctx, const struct packet *packet, const struct forwarding *it,
				      bool via_kernel)
{
	u32 of_address = 0;

	if (HAS(AS_FULLNAT)) {
		translate_both(ctx, packet, it);
		return;
	}
	if (it->change == CHANGE_DESTINATION) {
		of_address = translate_address(packet, packet->ip, destination_of(packet), it);
		if (!it->is_error && !HAS(AS_FRAGMENTS))
			translate_segment(ctx, packet, of_address, &packet->ports->destination, true, it);
		APART;
	} else if (!it->is_error) {
		of_address = translate_address(packet, packet->ip, source_of(packet), it);
		if (!HAS(AS_FRAGMENTS))
			translate_segment(ctx, packet, of_address, &packet->ports->source, true, it);
		APART;
	} else if (!via_kernel || is_ipv6(packet)) {
		/* The kernel forwards no packet of IPv4 whose source is one of its own: it gets that of who complained. */
		of_address = translate_address(packet, packet->ip, source_of(packet), it);
		APART;
	}
	if (it->is_error)
		translate_error(ctx, packet, it, of_address);
}

/* The way of a packet with its new addresses: the kernel is asked anew each time, and its rules see all of the packet. */
static __always_inline enum way find_way_translated(struct xdp_md *ctx, const struct packet *packet,
						    const struct forwarding *it, struct next_hop *hop)
{
	bool is_reply = it->change == CHANGE_SOURCE;
	bool is_both = HAS(AS_FULLNAT) && !it->is_error;
	bool is_bare = it->is_error || HAS(AS_FRAGMENTS);	/* has no ports */
	const void *source = is_both ? it->handed->source : is_reply ? it->handed->translated : source_of(packet);
	struct bpf_fib_lookup *route = (void *)it->handed->route;	/* the stack has no room for it */
	struct gateway *gateway;

	__builtin_memset(route, 0, sizeof(*route));
	gateway = find_gateway(ctx, packet, &it->to, route);
	route->l4_protocol = it->is_error ? is_ipv6(packet) ? IPPROTO_ICMPV6 : IPPROTO_ICMP : packet->protocol;
	route->sport = is_bare ? 0 : is_both ? it->source_port : is_reply ? it->port : packet->ports->source;
	route->dport = is_bare ? 0 : is_reply ? packet->ports->destination : it->port;
	route->tot_len = packet->ip_bytes;	/* makes the lookup check the route's MTU */
	if (is_ipv6(packet)) {
		__builtin_memcpy(route->ipv6_src, source, sizeof(route->ipv6_src));
	} else {
		route->tos = packet->ip->tos;
		route->ipv4_src = *(const __be32 *)source;
	}
	return ask_for_way(ctx, packet, route, gateway, &it->to, hop);
}

/*
 * Send a packet on. Its TTL allows for one more hop.
 *
 * The TTL is decremented in all modes (for tunnels: RFC 2003, section 3.1), so a packet that an endpoint sends back by
 * mistake doesn't go round for ever. A packet that the FIB won't forward is dropped and never passed on: the kernel would
 * not forward it either, or would take it for its own.
 */
static __always_inline int forward(struct xdp_md *ctx, struct packet *packet, const struct forwarding *it)
{
	u32 longer = is_tunnelled(it) ? ip_header_bytes(it->to.is_ipv6) : 0;
	u32 bytes = packet->ip_bytes + longer;
	struct ethhdr *eth = packet->eth;
	struct next_hop hop = {};
	bool via_kernel;
	enum way way;

	if (bytes > 0xffff)
		return drop(VERDICT_TOO_BIG);
	if (is_translated(it))
		way = find_way_translated(ctx, packet, it, &hop);
	else
		way = find_way(ctx, packet, it->endpoint, &it->to, bytes, &hop);
	if (way == WAY_NONE)
		return HAS(STATELESS) && it->is_unsure ? XDP_PASS : drop(VERDICT_NO_ROUTE);
	if (way == WAY_TOO_NARROW && it->is_error)
		return drop(VERDICT_TOO_BIG);	/* no error answers an error */
	if (way == WAY_TOO_NARROW)
		return too_big(ctx, packet, hop.mtu - longer);
	via_kernel = way == WAY_UNRESOLVED;

	if (HAS(DSR_L2) && it->change == CHANGE_NOTHING) {
		if (hop.ifindex & OFF_LINK)	/* a router would send the packet back to the VIP */
			return drop(VERDICT_OFF_LINK);
		if (via_kernel)
			return ask_for_neighbour(ctx, &it->to);
	}
	if (is_tunnelled(it) || !via_kernel)
		set_ttl(packet, ttl_of(packet) - 1);
	if (is_tunnelled(it)) {
		struct address source = tunnel_source(it->to.is_ipv6, it->hash);

		if (!source.words[0] && !source.words[1] && !source.words[2] && !source.words[3])
			return drop(VERDICT_NO_ROUTE);
		/*
		 * The next hop's MAC is unknown: the kernel routes the packet again and asks for the MAC. It drops IPv4
		 * packets from outside whose source is one of the node's own addresses, so this one gets the client's.
		 */
		if (via_kernel && !it->to.is_ipv6)
			source.words[0] = packet->ip->saddr;
		eth = encapsulate(ctx, packet, &source, &it->to, it->hash);
		if (!eth)
			return drop(VERDICT_NO_HEADROOM);
	}
	/* The kernel would take its own route, not the gateway, so it gets a packet for the gateway instead. */
	if (HAS(GATEWAY) && via_kernel && hop.ifindex & BY_GATEWAY)
		return ask_for_gateway(ctx, packet);
	if (is_translated(it))
		translate(ctx, packet, it, via_kernel);

	if (it->begins)
		count_connection(it->service, it->endpoint);
	if (it->change == CHANGE_SOURCE || (HAS(FULLNAT) && it->is_reply))
		count_reply(it->service, it->endpoint, packet->ip_bytes);
	else if (!HAS(CHECKS) || !it->is_check)
		count_request(it->service, it->endpoint, packet->ip_bytes);
	if (via_kernel)
		return count(VERDICT_VIA_KERNEL, XDP_PASS);
	return leave(ctx, packet, eth, &hop, it->verdict);
}
