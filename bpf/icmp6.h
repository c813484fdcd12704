// SPDX-License-Identifier: GPL-2.0-only
/* ICMPv6 errors to the senders of packets that go no further: RFC 4443. The rules of icmp.h apply. */

#define MIN_MTU6 1280

/* As many bytes of the packet as fit into the smallest MTU beside the headers: RFC 4443, section 2.4 (c). */
#define QUOTED_BYTES6 (MIN_MTU6 - 48)

/* The most that bpf_csum_diff() sums at a time (MAX_BPF_STACK). */
#define SUM_BYTES 512

/* As may_answer() in icmp.h: RFC 4443, section 2.4 (e). */
static __always_inline bool may_answer6(const struct ethhdr *eth, const struct in6_addr *source)
{
	bool is_special = !source->s6_addr32[0] && !source->s6_addr32[1] && !source->s6_addr32[2] &&
			  bpf_ntohl(source->s6_addr32[3]) <= 1;

	return source->s6_addr[0] != 0xff && !is_special && !(eth->h_dest[0] & 1);
}

/* As answer() in icmp.h. */
static __always_inline int answer6(struct xdp_md *ctx, u8 type, u8 code, __be32 detail, u32 quoted,
				   enum verdict verdict)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct icmp6hdr icmp;
		struct ipv6hdr quoted;
	} __attribute__((packed)) *frame;
	const int headers = sizeof(frame->ip) + sizeof(frame->icmp);
	const u32 bytes = sizeof(frame->icmp) + quoted;
	struct ethhdr *former;
	void *data_end;
	u32 sum = 0;	/* the helper returns 32 bits; kernels before 6.13 use all of them */
	u32 i;

	if (bpf_xdp_adjust_head(ctx, -headers))
		return drop(VERDICT_NO_HEADROOM);
	if (bpf_xdp_adjust_tail(ctx, (int)(ETH_HLEN + headers + quoted) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_NO_HEADROOM);
	frame = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	former = (void *)frame + headers;
	if ((void *)&frame->icmp + bytes > data_end)
		return drop(VERDICT_NO_HEADROOM);

	__builtin_memcpy(frame->eth.h_dest, former->h_source, ETH_ALEN);
	__builtin_memcpy(frame->eth.h_source, former->h_dest, ETH_ALEN);
	frame->eth.h_proto = bpf_htons(ETH_P_IPV6);
	__builtin_memset(&frame->ip, 0, 8);
	frame->ip.version = 6;
	frame->ip.payload_len = bpf_htons(bytes);
	frame->ip.nexthdr = IPPROTO_ICMPV6;
	frame->ip.hop_limit = NEW_TTL;
	frame->ip.saddr = frame->quoted.daddr;
	frame->ip.daddr = frame->quoted.saddr;
	__builtin_memset(&frame->icmp, 0, sizeof(frame->icmp));
	frame->icmp.icmp6_type = type;
	frame->icmp.icmp6_code = code;
	frame->icmp.icmp6_dataun.un_data32[0] = detail;

	/* The pseudo-header: both addresses (side by side in memory), the length, the protocol. */
	sum = bpf_csum_diff(NULL, 0, frame->ip.saddr.s6_addr32, 2 * sizeof(frame->ip.saddr),
			    bpf_htons(bytes) + bpf_htons(IPPROTO_ICMPV6));
#pragma unroll
	for (i = 0; i < (sizeof(frame->icmp) + QUOTED_BYTES6) / SUM_BYTES + 1; i++) {
		if (i * SUM_BYTES < bytes)
			sum = bpf_csum_diff(NULL, 0, (void *)&frame->icmp + i * SUM_BYTES,
					    bytes - i * SUM_BYTES < SUM_BYTES ? bytes - i * SUM_BYTES : SUM_BYTES,
					    sum);
	}
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	frame->icmp.icmp6_cksum = ~sum;
	return count(verdict, XDP_TX);
}

#ifdef DSR
/* As too_big() in icmp.h. */
static __always_inline int too_big6(struct xdp_md *ctx, const struct packet *packet, u32 mtu)
{
	u32 row = 0;
	struct settings *set = settings.lookup(&row);

	if (!set || set->too_big != TOO_BIG_ANSWER || mtu < MIN_MTU6 || packet->ip_bytes < QUOTED_BYTES6)
		return drop(VERDICT_TOO_BIG);
	return answer6(ctx, ICMPV6_PKT_TOOBIG, 0, bpf_htonl(mtu), QUOTED_BYTES6, VERDICT_TOO_BIG_ANSWERED);
}
#endif
