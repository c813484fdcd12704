// SPDX-License-Identifier: GPL-2.0-only
/* Answers to packets that a VIP has no service for: those of a host with a closed port. */

/* The least that an ICMP error quotes: an IP header and the eight bytes with the ports (RFC 792). */
#define LEAST_QUOTED 28

/*
 * Write the reset for a segment that is no reset itself: RFC 9293, section 3.10.7.1. The segment has `bytes` with its
 * header. The caller adds the checksum.
 */
static __always_inline void new_reset(struct tcphdr *reset, const struct tcphdr *tcp, u32 bytes)
{
	*reset = (struct tcphdr){ .doff = sizeof(*reset) / 4, .rst = 1 };
	reset->source = tcp->dest;
	reset->dest = tcp->source;
	if (tcp->ack) {
		reset->seq = tcp->ack_seq;
	} else {
		reset->ack = 1;
		reset->ack_seq = bpf_htonl(bpf_ntohl(tcp->seq) + bytes - tcp->doff * 4 + tcp->syn + tcp->fin);
	}
}

/* The sum of whole 16-bit words. */
static __always_inline u32 sum_words(const void *data, u32 bytes)
{
	const __be16 *words = data;
	u32 sum = 0, i;

#pragma unroll
	for (i = 0; i < bytes / sizeof(*words); i++)
		sum += words[i];
	return sum;
}

static __always_inline int reset(struct xdp_md *ctx, const struct packet *packet)
{
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct tcphdr tcp;
	} __attribute__((packed)) *frame;
	__be32 source = packet->ip->saddr, destination = packet->ip->daddr;
	struct tcphdr reset;
	u32 sum;

	new_reset(&reset, packet->tcp, packet->ip_bytes - sizeof(struct iphdr));
	if (bpf_xdp_adjust_tail(ctx, (int)sizeof(*frame) - (int)(ctx->data_end - ctx->data)))
		return drop(VERDICT_UNDEFINED);
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_UNDEFINED);

	swap_macs(&frame->eth);
	new_header(&frame->ip, 0, sizeof(frame->ip) + sizeof(frame->tcp), IPPROTO_TCP, destination, source);
	sum = sum_words(&source, sizeof(source)) + sum_words(&destination, sizeof(destination)) +
	      bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(reset)) + sum_words(&reset, sizeof(reset));
	reset.check = checksum_update(0xffff, sum);
	frame->tcp = reset;
	return count(VERDICT_REJECTED, XDP_TX);
}

/* Reject a packet to a VIP, of a protocol other than ICMP. If it can't be answered, it is dropped in silence. */
static __always_inline int reject(struct xdp_md *ctx, const struct packet *packet, enum packet_kind kind)
{
	u8 protocol = packet->ip->protocol;
	bool has_ports = protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;

	if (!may_answer(packet->eth, packet->ip->saddr))
		return drop(VERDICT_UNDEFINED);
	if (kind == PACKET_TCP)
		return packet->tcp->rst ? drop(VERDICT_UNDEFINED) : reset(ctx, packet);
	if (packet->ip_bytes < LEAST_QUOTED)
		return drop(VERDICT_UNDEFINED);
	return answer(ctx, ICMP_DEST_UNREACH, has_ports ? ICMP_PORT_UNREACH : ICMP_PROT_UNREACH, 0, LEAST_QUOTED,
		      VERDICT_REJECTED);
}
