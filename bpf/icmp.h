// SPDX-License-Identifier: GPL-2.0-only
/*
 * ICMP errors to the senders of packets that go no further.
 *
 * An error goes to the IP address and the MAC that the packet came from, and never answers an ICMP error. The rate
 * of errors isn't limited, since each takes one packet in; a node that must not amplify anything can turn the long
 * ones off.
 */

#define ICMP_TOS 0xc0	/* internetwork control, RFC 1812, section 4.3.2.5 */

/* How much of the packet is quoted: RFC 1812 wants as much as fits into 576 bytes; kernels sum up to 512. */
#define QUOTED_BYTES 504

/* RFC 791, section 3.2 */
#define MIN_MTU 68

/*
 * Whether the sender may get an answer: not if its address is that of many hosts or of none (RFC 1812, section
 * 4.3.2.7), and not if the frame was for many.
 */
static __always_inline bool may_answer(const struct ethhdr *eth, __be32 source)
{
	u32 first = bpf_ntohl(source) >> 24;

	return first != 0 && first != 127 && first < 224 && !(eth->h_dest[0] & 1);
}

/*
 * Turn the frame into an ICMP error that quotes the first `quoted` bytes of its packet, and send it back. The packet
 * has at least so many bytes. `detail` is the second word of the ICMP header.
 */
static __always_inline int answer(struct xdp_md *ctx, u8 type, u8 code, __be32 detail, u32 quoted,
				  enum verdict verdict)
{
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct icmphdr icmp;
		struct iphdr quoted;
	} __attribute__((packed)) *frame;
	const int headers = sizeof(frame->ip) + sizeof(frame->icmp);
	struct ethhdr *former;
	void *data_end;
	u32 sum;	/* the helper returns 32 bits; kernels before 6.13 use all of them */

	/* The new headers stand before the old packet, which becomes the quote. */
	if (bpf_xdp_adjust_head(ctx, -headers))
		return drop(VERDICT_NO_HEADROOM);
	if (bpf_xdp_adjust_tail(ctx, (int)(ETH_HLEN + headers + quoted) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_NO_HEADROOM);
	frame = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	former = (void *)frame + headers;
	if ((void *)&frame->icmp + sizeof(frame->icmp) + quoted > data_end)
		return drop(VERDICT_NO_HEADROOM);

	__builtin_memcpy(frame->eth.h_dest, former->h_source, ETH_ALEN);
	__builtin_memcpy(frame->eth.h_source, former->h_dest, ETH_ALEN);
	frame->eth.h_proto = bpf_htons(ETH_P_IP);
	new_header(&frame->ip, ICMP_TOS, headers + quoted, IPPROTO_ICMP, frame->quoted.daddr, frame->quoted.saddr);
	frame->icmp = (struct icmphdr){ .type = type, .code = code };
	frame->icmp.un.gateway = detail;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&frame->icmp, sizeof(frame->icmp) + quoted, 0);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	frame->icmp.checksum = ~sum;
	return count(verdict, XDP_TX);
}

#ifdef DSR
/*
 * Answer a packet that is longer than `mtu`; its sender may be told. Even a packet that allows fragments is answered:
 * the balancer makes none, and silence helps no sender.
 */
static __always_inline int too_big(struct xdp_md *ctx, const struct packet *packet, u32 mtu)
{
	u32 row = 0;
	struct settings *set = settings.lookup(&row);

	if (!set || set->too_big != TOO_BIG_ANSWER || mtu < MIN_MTU || packet->ip_bytes < QUOTED_BYTES)
		return drop(VERDICT_TOO_BIG);
	return answer(ctx, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, bpf_htonl(mtu), QUOTED_BYTES,
		      VERDICT_TOO_BIG_ANSWERED);
}
#endif
