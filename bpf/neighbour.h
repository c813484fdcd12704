// SPDX-License-Identifier: GPL-2.0-only
/*
 * Packets that make the kernel ask for an unknown MAC. The kernel would keep a packet to a VIP for itself, since the
 * VIP is an address of this node, so another packet takes its place.
 */

/* Becomes an ICMP echo reply without a request: routers forward it, and hosts ignore it and never answer. */
static __always_inline int ask_for_neighbour(struct xdp_md *ctx, __be32 address)
{
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct icmphdr icmp;
	} __attribute__((packed)) *frame;
	if (bpf_xdp_adjust_tail(ctx, (int)sizeof(*frame) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	new_header(&frame->ip, 0, sizeof(frame->ip) + sizeof(frame->icmp), IPPROTO_ICMP, frame->ip.saddr, address);
	frame->icmp = (struct icmphdr){ .type = ICMP_ECHOREPLY, .checksum = 0xffff };
	return count(VERDICT_NEIGHBOUR_UNKNOWN, XDP_PASS);
}

#ifdef IPV6
/* Becomes a packet without a next header, which hosts ignore: RFC 8200, section 4.7. */
static __always_inline int ask_for_neighbour6(struct xdp_md *ctx, const struct address6 *address)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
	} __attribute__((packed)) *frame;

	if (bpf_xdp_adjust_tail(ctx, (int)sizeof(*frame) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
	frame->ip.payload_len = 0;
	frame->ip.nexthdr = IPPROTO_NONE;
	frame->ip.hop_limit = NEW_TTL;
	__builtin_memcpy(&frame->ip.daddr, address, sizeof(*address));
	return count(VERDICT_NEIGHBOUR_UNKNOWN, XDP_PASS);
}
#endif

#ifdef GATEWAY
/* The same for the gateway of the interface. The frame is of the gateway's family already. */
static __always_inline int ask_for_gateway(struct xdp_md *ctx, const struct packet *packet)
{
	u32 ingress = packet->ingress;
	struct gateway *gateway = gateways.lookup(&ingress);

	if (!gateway)
		return drop(VERDICT_NEIGHBOUR_UNKNOWN);
#ifdef IPV6
	if (gateway->is_ipv6)
		return ask_for_neighbour6(ctx, (const struct address6 *)gateway->address);
#endif
	return ask_for_neighbour(ctx, gateway->address[0]);
}
#endif
