// SPDX-License-Identifier: GPL-2.0-only
/* Tunnels to endpoints: IP in IP (RFC 2003). */

/* What the outer addresses of a flow's packets are chosen by: always the same for one flow. */
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

/* By words of two bytes: Ethernet headers are aligned to no more, and the compiler would move single bytes. */
static __always_inline void move_header(struct ethhdr *to, const struct ethhdr *from)
{
	const u16 *source = (const void *)from;
	u16 *target = (void *)to;
	u32 i;

#pragma unroll
	for (i = 0; i < sizeof(*to) / sizeof(*target); i++)
		target[i] = source[i];
}

/*
 * Put an outer header before a packet. Returns where the frame begins now, NULL if there is no room for it.
 * The type of service is copied, and with it the ECN field (RFC 6040, normal mode).
 */
static __always_inline struct ethhdr *encapsulate(struct xdp_md *ctx, const struct packet *packet, __be32 source,
						  __be32 destination)
{
	u16 bytes = packet->ip_bytes + sizeof(struct iphdr);
	u8 tos = packet->ip->tos;
	struct ethhdr *eth, *former;
	struct iphdr *outer;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*outer)))
		return NULL;
	eth = (void *)(long)ctx->data;
	outer = (void *)(eth + 1);	/* over the former Ethernet header */
	former = (void *)eth + sizeof(*outer);
	if ((void *)(former + 1) > (void *)(long)ctx->data_end)
		return NULL;
	move_header(eth, former);
	new_header(outer, tos, bytes, IPPROTO_IPIP, source, destination);
	return eth;
}
