// SPDX-License-Identifier: GPL-2.0-only
/* reject.h for IPv6. */

/* An IP header and the eight bytes with the ports. */
#define LEAST_QUOTED6 48

/* The offset of the protocol in the IP header: a parameter problem points at it (RFC 8200, section 4). */
#define NEXT_HEADER_OFFSET 6

static __always_inline int reset6(struct xdp_md *ctx, const struct packet *packet)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct tcphdr tcp;
	} __attribute__((packed)) *frame;
	struct in6_addr source = packet->ip6->saddr, destination = packet->ip6->daddr;
	struct tcphdr reset;
	u32 sum;

	new_reset(&reset, packet->tcp, packet->ip_bytes - sizeof(struct ipv6hdr));
	if (bpf_xdp_adjust_tail(ctx, (int)sizeof(*frame) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_UNDEFINED);
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_UNDEFINED);

	swap_macs(&frame->eth);
	__builtin_memset(&frame->ip, 0, 8);
	frame->ip.version = 6;
	frame->ip.payload_len = bpf_htons(sizeof(reset));
	frame->ip.nexthdr = IPPROTO_TCP;
	frame->ip.hop_limit = NEW_TTL;
	frame->ip.saddr = destination;
	frame->ip.daddr = source;
	sum = sum_words(&source, sizeof(source)) + sum_words(&destination, sizeof(destination)) +
	      bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(reset)) + sum_words(&reset, sizeof(reset));
	reset.check = checksum_update(0xffff, sum);
	frame->tcp = reset;
	return count(VERDICT_REJECTED, XDP_TX);
}

/* As reject() in reject.h. */
static __always_inline int reject6(struct xdp_md *ctx, const struct packet *packet, enum packet_kind kind)
{
	u8 protocol = packet->ip6->nexthdr;

	if (!may_answer6(packet->eth, &packet->ip6->saddr))
		return drop(VERDICT_UNDEFINED);
	if (kind == PACKET_TCP)
		return packet->tcp->rst ? drop(VERDICT_UNDEFINED) : reset6(ctx, packet);
	if (packet->ip_bytes < LEAST_QUOTED6)
		return drop(VERDICT_UNDEFINED);
	if (protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP)
		return answer6(ctx, ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH, 0, LEAST_QUOTED6, VERDICT_REJECTED);
	return answer6(ctx, ICMPV6_PARAMPROB, ICMPV6_UNK_NEXTHDR, bpf_htonl(NEXT_HEADER_OFFSET), LEAST_QUOTED6,
		       VERDICT_REJECTED);
}
