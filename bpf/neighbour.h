// SPDX-License-Identifier: GPL-2.0-only
/*
 * Packets that make the kernel ask for an unknown MAC. The kernel would keep a packet to a VIP for itself, since the
 * VIP is an address of this node, so another packet takes its place.
 */

/*
 * For a neighbour of the packet's own family. An IPv4 packet becomes an ICMP echo reply without a request: routers
 * forward it, and hosts ignore it and never answer. An IPv6 packet becomes one without a next header, which hosts ignore
 * (RFC 8200, section 4.7).
 */
static __always_inline int ask_for_neighbour(struct xdp_md *ctx, const struct address *neighbour)
{
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct icmphdr icmp;
	} __attribute__((packed)) *frame;
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
	} __attribute__((packed)) *frame6;
	u32 bytes = neighbour->is_ipv6 ? sizeof(*frame6) : sizeof(*frame);

	if (!resize(ctx, bytes))
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame = (void *)(long)ctx->data;
	frame6 = (void *)(long)ctx->data;
	if ((void *)frame + bytes > (void *)(long)ctx->data_end)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	if (neighbour->is_ipv6) {
		frame6->ip.payload_len = 0;
		frame6->ip.nexthdr = IPPROTO_NONE;
		frame6->ip.hop_limit = NEW_TTL;
		__builtin_memcpy(&frame6->ip.daddr, neighbour->words, sizeof(frame6->ip.daddr));
	} else {
		new_header(&frame->ip, 0, sizeof(frame->ip) + sizeof(frame->icmp), IPPROTO_ICMP, frame->ip.saddr,
			   neighbour->words[0]);
		frame->icmp = (struct icmphdr){ .type = ICMP_ECHOREPLY, .checksum = 0xffff };
	}
	return count(VERDICT_NEIGHBOUR_UNKNOWN, XDP_PASS);
}

/* The same for the gateway of the interface. The frame is of the gateway's family already. */
static __always_inline int ask_for_gateway(struct xdp_md *ctx, const struct packet *packet)
{
	u32 ingress = packet->ingress;
	struct gateway *gateway = gateways.lookup(&ingress);
	struct address neighbour;

	if (!gateway)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	neighbour = read_address(gateway->address, HAS(IPV6) && gateway->is_ipv6);
	return ask_for_neighbour(ctx, &neighbour);
}
