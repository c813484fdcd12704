// SPDX-License-Identifier: GPL-2.0-only
/* New headers, for tunnels and for answers. */

#define NEW_TTL 64

/*
 * Write an IPv4 header without options. The packet can't be fragmented on its way, so it needs no
 * identification (RFC 6864, section 4.1).
 */
static __always_inline void new_header(struct iphdr *ip, u8 tos, u16 bytes, u8 protocol, __be32 source,
				       __be32 destination)
{
	/* Summed from the arguments and the constants below: cheaper than to read the header back. */
	u32 sum = bpf_htons(0x4500 | tos) + bpf_htons(bytes) + bpf_htons(IP_DONT_FRAGMENT) +
		  bpf_htons(NEW_TTL << 8 | protocol) + (source >> 16) + (u16)source + (destination >> 16) +
		  (u16)destination;

	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = tos,
		.tot_len = bpf_htons(bytes),
		.frag_off = bpf_htons(IP_DONT_FRAGMENT),
		.ttl = NEW_TTL,
		.protocol = protocol,
		.saddr = source,
		.daddr = destination,
	};
	ip->check = checksum_update(0xffff, sum);
}

/* Write an IPv6 header. The packet has `bytes` behind it; `first` is the traffic class and flow label. */
static __always_inline void new_header6(struct ipv6hdr *ip, u32 first, u16 bytes, u8 next, const __be32 *source,
					const __be32 *destination)
{
	*(__be32 *)ip = bpf_htonl(6 << 28 | first);
	ip->payload_len = bpf_htons(bytes);
	ip->nexthdr = next;
	ip->hop_limit = NEW_TTL;
	__builtin_memcpy(&ip->saddr, source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, destination, sizeof(ip->daddr));
}

/* Cut a frame off, or make it longer, so that it has so many bytes. False if the driver can't. */
static __always_inline bool resize(struct xdp_md *ctx, u32 bytes)
{
	u64 before = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	OPAQUE(before);		/* else the compiler calculates in another order, with pointers that must not be */
	return !bpf_xdp_adjust_tail(ctx, (int)bytes - (int)before);
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

/* Swap both addresses of a packet. */
static __always_inline void swap_addresses(const struct packet *packet)
{
	struct address source = read_address(source_of(packet), is_ipv6(packet));

	if (is_ipv6(packet)) {
		packet->ip6->saddr = packet->ip6->daddr;
		__builtin_memcpy(&packet->ip6->daddr, source.words, sizeof(source.words));
	} else {
		packet->ip->saddr = packet->ip->daddr;
		packet->ip->daddr = source.words[0];
	}
}

/* The sum of whole 16-bit words, whatever they are part of. */
static __always_inline u32 sum_words(const void *data, u32 bytes)
{
	const __be16 __attribute__((may_alias)) *words = data;
	u32 sum = 0, i;

#pragma unroll
	for (i = 0; i < bytes / sizeof(*words); i++)
		sum += words[i];
	return sum;
}
