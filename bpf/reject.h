// SPDX-License-Identifier: GPL-2.0-only
/* Answers to packets that a VIP has no service for, or whose service turns them away: those of a host with a closed port. */

/* The offset of the protocol in the IPv6 header: a parameter problem points at it (RFC 8200, section 4). */
#define NEXT_HEADER_OFFSET 6

/* What a packet is counted as that is dropped for a reason while its sender is told. */
static __always_inline enum verdict answered(enum verdict reason)
{
	return HAS(ALLOWED_SOURCES) && reason == VERDICT_NOT_ALLOWED ? VERDICT_NOT_ALLOWED_ANSWERED : VERDICT_REJECTED;
}

/*
 * The reset for a segment that is no reset itself: RFC 9293, section 3.10.7.1. The segment has `bytes` with its
 * header. The checksum is missing.
 */
static __always_inline struct tcphdr reset_for(const struct tcphdr *tcp, u32 bytes)
{
	struct tcphdr reset = { .doff = sizeof(reset) / 4, .rst = 1, .source = tcp->dest, .dest = tcp->source };

	if (tcp->ack) {
		reset.seq = tcp->ack_seq;
	} else {
		reset.ack = 1;
		reset.ack_seq = bpf_htonl(bpf_ntohl(tcp->seq) + bytes - tcp->doff * 4 + tcp->syn + tcp->fin);
	}
	return reset;
}

static __always_inline int send_reset(struct xdp_md *ctx, const struct packet *packet, enum verdict reason)
{
	const u32 ip_bytes = ip_header_bytes(is_ipv6(packet)), bytes = sizeof(struct ethhdr) + ip_bytes + sizeof(struct tcphdr);
	struct address source = read_address(source_of(packet), is_ipv6(packet));
	struct address destination = read_address(destination_of(packet), is_ipv6(packet));
	struct ethhdr *eth;
	struct tcphdr reset;
	void *ip;
	u32 sum;

	if ((void *)(packet->tcp + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_UNDEFINED);
	reset = reset_for(packet->tcp, packet->ip_bytes - ip_bytes);
	sum = sum_words(source.words, sizeof(source.words)) + sum_words(destination.words, sizeof(destination.words)) +
	      bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(reset)) + sum_words(&reset, sizeof(reset));
	reset.check = checksum_update(0xffff, sum);
	if (!resize(ctx, bytes))
		return drop(reason);
	eth = (void *)(long)ctx->data;
	ip = eth + 1;
	if ((void *)eth + bytes > (void *)(long)ctx->data_end)
		return drop(reason);

	swap_macs(eth);
	if (is_ipv6(packet))
		new_header6(ip, 0, sizeof(reset), IPPROTO_TCP, destination.words, source.words);
	else
		new_header(ip, 0, ip_bytes + sizeof(reset), IPPROTO_TCP, destination.words[0], source.words[0]);
	*(struct tcphdr *)(ip + ip_bytes) = reset;
	return count(answered(reason), XDP_TX);
}

/* Reject a packet to a VIP, of a protocol other than ICMP, for a reason. If it can't be answered, it is dropped in silence. */
static __always_inline int reject(struct xdp_md *ctx, const struct packet *packet, enum packet_kind kind,
				  enum verdict reason)
{
	u8 protocol = is_ipv6(packet) ? packet->ip6->nexthdr : packet->ip->protocol;
	bool has_ports = protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
	u32 quoted = ip_header_bytes(is_ipv6(packet)) + LEAST_QUOTED;
	u8 type = ICMP_DEST_UNREACH, code = has_ports ? ICMP_PORT_UNREACH : ICMP_PROT_UNREACH;
	__be32 detail = 0;

	if (!may_answer(packet))
		return drop(reason);
	if (kind == PACKET_TRANSPORT && protocol == IPPROTO_TCP)
		return packet->flags & TCP_RST ? drop(reason) : send_reset(ctx, packet, reason);
	if (packet->ip_bytes < quoted)
		return drop(reason);
	if (is_ipv6(packet)) {
		type = has_ports ? ICMPV6_DEST_UNREACH : ICMPV6_PARAMPROB;
		code = has_ports ? ICMPV6_PORT_UNREACH : ICMPV6_UNK_NEXTHDR;
		detail = has_ports ? 0 : bpf_htonl(NEXT_HEADER_OFFSET);
	}
	return answer(ctx, packet, type, code, detail, quoted, answered(reason));
}
