// SPDX-License-Identifier: GPL-2.0-only
/*
 * ICMP errors to the senders of packets that go no further: RFC 1812, RFC 4443.
 *
 * An error goes to the IP address and the MAC that the packet came from, and never answers an ICMP error. The rate
 * of errors isn't limited, since each takes one packet in; a node that must not amplify anything can turn the long
 * ones off.
 */

#define ICMP_TOS 0xc0	/* internetwork control, RFC 1812, section 4.3.2.5 */

/* The least MTU of a link: RFC 791, section 3.2; RFC 8200, section 5. */
#define MIN_MTU 68
#define MIN_MTU6 1280

/*
 * How much of a packet is quoted. RFC 1812 wants as much as fits into 576 bytes; kernels sum up to 512 (MAX_BPF_STACK of
 * bpf_csum_diff()). RFC 4443, section 2.4 (c), wants as much as fits into the least MTU beside the headers.
 */
#define SUM_BYTES 512
#define QUOTED_BYTES (SUM_BYTES - 8)
#define QUOTED_BYTES6 (MIN_MTU6 - 48)

/* What an error quotes at least, beside the IP header: the eight bytes with the ports (RFC 792). */
#define LEAST_QUOTED 8

/*
 * Whether the sender may get an answer: not if its address is that of many hosts or of none (RFC 1812, section
 * 4.3.2.7; RFC 4443, section 2.4 (e)), and not if the frame was for many.
 */
static __always_inline bool may_answer(const struct packet *packet)
{
	return !is_no_single_host(source_of(packet), is_ipv6(packet)) && !is_for_many(packet->eth);
}

/*
 * Turn the frame into an ICMP error that quotes the first `quoted` bytes of its packet, and send it back. The packet
 * has at least so many bytes. `detail` is the second word of the ICMP header.
 */
static __always_inline int answer(struct xdp_md *ctx, const struct packet *packet, u8 type, u8 code, __be32 detail,
				  u32 quoted, enum verdict verdict)
{
	const u32 ip_bytes = ip_header_bytes(is_ipv6(packet));
	const u32 headers = ip_bytes + sizeof(struct icmphdr), bytes = sizeof(struct icmphdr) + quoted;
	struct ethhdr *eth, *former;
	struct icmphdr *icmp;
	void *ip, *old_ip;
	u32 sum = 0, i;		/* the helper returns 32 bits; kernels before 6.13 use all of them */

	/* The new headers stand before the old packet, which becomes the quote. */
	if (bpf_xdp_adjust_head(ctx, -(int)headers))
		return drop(VERDICT_NO_HEADROOM);
	if (!resize(ctx, ETH_HLEN + headers + quoted))
		return drop(VERDICT_NO_HEADROOM);
	eth = (void *)(long)ctx->data;
	former = (void *)eth + headers;
	ip = eth + 1;
	icmp = ip + ip_bytes;
	old_ip = former + 1;
	if ((void *)icmp + bytes > (void *)(long)ctx->data_end)
		return drop(VERDICT_NO_HEADROOM);

	__builtin_memcpy(eth->h_dest, former->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, former->h_dest, ETH_ALEN);
	if (is_ipv6(packet)) {
		struct ipv6hdr *old = old_ip, *new = ip;

		eth->h_proto = bpf_htons(ETH_P_IPV6);
		new_header6(new, 0, bytes, IPPROTO_ICMPV6, old->daddr.s6_addr32, old->saddr.s6_addr32);
		/* The pseudo-header: both addresses (side by side in memory), the length, the protocol. */
		sum = bpf_csum_diff(NULL, 0, new->saddr.s6_addr32, 2 * sizeof(new->saddr),
				    bpf_htons(bytes) + bpf_htons(IPPROTO_ICMPV6));
	} else {
		struct iphdr *old = old_ip;

		eth->h_proto = bpf_htons(ETH_P_IP);
		new_header(ip, ICMP_TOS, headers + quoted, IPPROTO_ICMP, old->daddr, old->saddr);
	}
	*icmp = (struct icmphdr){ .type = type, .code = code };
	icmp->un.gateway = detail;
#pragma unroll
	for (i = 0; i < (sizeof(*icmp) + QUOTED_BYTES6) / SUM_BYTES + 1; i++) {
		if (i * SUM_BYTES < bytes)
			sum = bpf_csum_diff(NULL, 0, (void *)icmp + i * SUM_BYTES,
					    bytes - i * SUM_BYTES < SUM_BYTES ? bytes - i * SUM_BYTES : SUM_BYTES,
					    sum);
	}
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	icmp->checksum = ~sum;
	return count(verdict, XDP_TX);
}

/*
 * Answer a packet that is longer than `mtu`; its sender may be told. Even a packet that allows fragments is answered:
 * the balancer makes none, and silence helps no sender.
 */
static __always_inline int too_big(struct xdp_md *ctx, const struct packet *packet, u32 mtu)
{
	u32 row = 0, quoted = is_ipv6(packet) ? QUOTED_BYTES6 : QUOTED_BYTES;
	struct settings *set = settings.lookup(&row);

	if (!set || set->too_big != TOO_BIG_ANSWER || mtu < (is_ipv6(packet) ? MIN_MTU6 : MIN_MTU) ||
	    packet->ip_bytes < quoted)
		return drop(VERDICT_TOO_BIG);
	return answer(ctx, packet, is_ipv6(packet) ? ICMPV6_PKT_TOOBIG : ICMP_DEST_UNREACH,
		      is_ipv6(packet) ? 0 : ICMP_FRAG_NEEDED, bpf_htonl(mtu), quoted, VERDICT_TOO_BIG_ANSWERED);
}

/* Answer a packet whose TTL allows for no further hop: RFC 1812, section 5.3.1; RFC 4443, section 3.3. It is no error. */
static __always_inline int expired(struct xdp_md *ctx, const struct packet *packet)
{
	u32 quoted = ip_header_bytes(is_ipv6(packet)) + LEAST_QUOTED;

	if (!may_answer(packet) || packet->ip_bytes < quoted)
		return drop(VERDICT_TTL_EXPIRED);
	return answer(ctx, packet, is_ipv6(packet) ? ICMPV6_TIME_EXCEED : ICMP_TIME_EXCEEDED,
		      is_ipv6(packet) ? ICMPV6_EXC_HOPLIMIT : ICMP_EXC_TTL, 0, quoted, VERDICT_TTL_EXPIRED_ANSWERED);
}
