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

static __always_inline void swap_macs(struct ethhdr *eth)
{
	u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}
