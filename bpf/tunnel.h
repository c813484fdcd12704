// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tunnels to endpoints: IPv4 in IPv4 (RFC 2003); IPv6 and IPv4 in IPv6 (RFC 2473), without options like the
 * encapsulation limit.
 */

#define FLOW_LABEL 0xfffff

/* The hash that chooses the outer addresses of a flow's packets: always the same for one flow. */
static __always_inline u32 hash_for_tunnel(const struct client *client)
{
	return mix(mix(client->address) + ((u32)client->port << 8 | client->protocol));
}

/* The outer source of a flow's packets, all zeros if there is none. */
static __always_inline struct address tunnel_source(bool is_outer6, u32 hash)
{
	struct address source = { .is_ipv6 = is_outer6 };
	u32 row = 0, i;
	struct settings *set = settings.lookup(&row);

	if (!set)
		return source;
	if (!is_outer6) {
		source.words[0] = (set->tunnel_source & ~set->tunnel_spread) | (bpf_htonl(hash) & set->tunnel_spread);
		return source;
	}
#pragma unroll
	for (i = 0; i < 4; i++) {
		source.words[i] = (set->tunnel_source6[i] & ~set->tunnel_spread6[i]) |
				  (bpf_htonl(hash) & set->tunnel_spread6[i]);
		hash = hash << 7 | hash >> 25;
	}
	return source;
}

/*
 * Move the Ethernet header forward to make room for an outer header of `bytes` behind it. Returns the new start of the
 * frame, NULL if the driver left no room.
 *
 * The loop copies words of two bytes: Ethernet headers are aligned to two bytes only, and the compiler by itself would
 * copy single bytes.
 */
static __always_inline struct ethhdr *make_room(struct xdp_md *ctx, u32 bytes)
{
	struct ethhdr *eth, *former;
	u16 *target, *source;
	u32 i;

	if (bpf_xdp_adjust_head(ctx, -(int)bytes))
		return NULL;
	eth = (void *)(long)ctx->data;
	former = (void *)eth + bytes;
	if ((void *)(former + 1) > (void *)(long)ctx->data_end)
		return NULL;
	target = (void *)eth;
	source = (void *)former;
#pragma unroll
	for (i = 0; i < sizeof(*eth) / sizeof(*target); i++)
		target[i] = source[i];
	return eth;
}

/*
 * Put an outer header before a packet. Returns the new start of the frame, NULL if there is no room for the header.
 *
 * The type of service is copied, and with it the ECN field (RFC 6040, normal mode). Routers and network cards that look
 * at the flow label of IPv6 spread by it (RFC 6438), so it is of the flow's hash.
 */
static __always_inline struct ethhdr *encapsulate(struct xdp_md *ctx, const struct packet *packet,
						  const struct address *source, const struct address *destination, u32 hash)
{
	u32 tos = tos_of(packet), bytes = packet->ip_bytes;
	struct ethhdr *eth = make_room(ctx, ip_header_bytes(destination->is_ipv6));

	if (!eth)
		return NULL;
	if (!destination->is_ipv6) {
		new_header((void *)(eth + 1), tos, bytes + sizeof(struct iphdr), IPPROTO_IPIP, source->words[0],
			   destination->words[0]);
		return eth;
	}
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	new_header6((void *)(eth + 1), tos << 20 | (hash & FLOW_LABEL), bytes,
		    is_ipv6(packet) ? IPPROTO_IPV6 : IPPROTO_IPIP, source->words, destination->words);
	return eth;
}
