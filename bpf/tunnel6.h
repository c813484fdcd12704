// SPDX-License-Identifier: GPL-2.0-only
/* Tunnels to IPv6 endpoints: IPv6 and IPv4 in IPv6 (RFC 2473), without options like the encapsulation limit. */

#define FLOW_LABEL 0xfffff

static __always_inline u8 traffic_class(const struct ipv6hdr *ip)
{
	return bpf_ntohl(*(const __be32 *)ip) >> 20;
}

/* As tunnel_source() in tunnel.h. False if there is no source. */
static __always_inline bool tunnel_source6(u32 hash, __be32 *source)
{
	u32 row = 0, i;
	struct settings *set = settings.lookup(&row);

	if (!set)
		return false;
#pragma unroll
	for (i = 0; i < 4; i++) {
		source[i] = (set->tunnel_source6[i] & ~set->tunnel_spread6[i]) |
			    (bpf_htonl(hash) & set->tunnel_spread6[i]);
		hash = hash << 7 | hash >> 25;
	}
	return source[0] || source[1] || source[2] || source[3];
}

/*
 * As encapsulate() in tunnel.h. Routers and network cards that look at the flow label spread by it (RFC 6438).
 */
static __always_inline struct ethhdr *encapsulate6(struct xdp_md *ctx, const struct packet *packet, bool is_ipv6,
						   const __be32 *source, u32 hash,
						   const struct address6 *destination)
{
	u32 tos = is_ipv6 ? traffic_class(packet->ip6) : packet->ip->tos;
	u16 bytes = packet->ip_bytes;
	struct ethhdr *eth = make_room(ctx, sizeof(struct ipv6hdr));
	struct ipv6hdr *outer;

	if (!eth)
		return NULL;
	outer = (void *)(eth + 1);
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	*(__be32 *)outer = bpf_htonl(6 << 28 | tos << 20 | (hash & FLOW_LABEL));
	outer->payload_len = bpf_htons(bytes);
	outer->nexthdr = is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	outer->hop_limit = NEW_TTL;
	__builtin_memcpy(&outer->saddr, source, sizeof(outer->saddr));
	__builtin_memcpy(&outer->daddr, destination, sizeof(outer->daddr));
	return eth;
}
