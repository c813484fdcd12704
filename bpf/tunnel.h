// SPDX-License-Identifier: GPL-2.0-only
/* Tunnels to endpoints: IP in IP (RFC 2003). */

/* The hash that chooses the outer addresses of a flow's packets: always the same for one flow. */
static __always_inline u32 hash_for_tunnel(const struct client *client)
{
	return mix(mix(client->address) + ((u32)client->port << 8 | client->protocol));
}

/* The outer source of a flow's packets. Zero if there is none. */
static __always_inline __be32 tunnel_source(u32 hash)
{
	u32 row = 0;
	struct settings *set = settings.lookup(&row);

	if (!set)
		return 0;
	return (set->tunnel_source & ~set->tunnel_spread) | (bpf_htonl(hash) & set->tunnel_spread);
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
 * The type of service is copied, and with it the ECN field (RFC 6040, normal mode).
 */
static __always_inline struct ethhdr *encapsulate(struct xdp_md *ctx, const struct packet *packet, __be32 source,
						  __be32 destination)
{
	u16 bytes = packet->ip_bytes + sizeof(struct iphdr);
	u8 tos = packet->ip->tos;
	struct ethhdr *eth = make_room(ctx, sizeof(struct iphdr));

	if (!eth)
		return NULL;
	new_header((void *)(eth + 1), tos, bytes, IPPROTO_IPIP, source, destination);
	return eth;
}
