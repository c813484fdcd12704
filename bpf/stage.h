// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stages: parts of the way of a packet that are programs of their own. So the kernel's verifier looks at each alone, and
 * who doesn't need one pays nothing for it.
 *
 * A stage is this text, compiled with a feature AS_… and without what it has no use for
 * (reconciler/dataplane/stages.py). The main program hands over what only a stage can tell, by a tail call with a constant
 * index, of which the kernel makes a jump (commit 428d5df1fa4f), and the stage brings the packet to its end. What the main
 * program knows about the packet by then is in the one row of `handed_over`.
 *
 * Each main program has an array `stages` of its own, filled before it is attached, so a main program and its stages are
 * swapped as one. The other program of a takeover asks a stage, not its main program; such a stage asks nobody again.
 */

/* Whether a packet, or the one that it quotes, is of SCTP, and so of a stage of its own: there is one for NAT over IPv4. */
static __always_inline bool is_translated_sctp(const struct packet *packet)
{
	return HAS(NAT) && HAS(SCTP) && packet->protocol == IPPROTO_SCTP && !is_ipv6(packet);
}

/* Whether a packet can belong to a connection of NAT, or be an error about one. */
static __always_inline bool can_translate(const struct packet *packet, enum packet_kind kind)
{
	bool has_ports = packet->protocol == IPPROTO_TCP || is_udp(packet->protocol);

	if (HAS(AS_SCTP))
		has_ports = is_translated_sctp(packet);
	else if (!IS_STAGE)
		has_ports |= is_translated_sctp(packet);
	if (!HAS_TRANSLATION || !has_ports || (is_ipv6(packet) && !HAS(NAT6) && !HAS(FULLNAT6)))
		return false;
	return kind == PACKET_TRANSPORT || kind == PACKET_ICMP_ERROR;
}

/* Whether NAT knows fragments of such packets: datagrams over IPv4. TCP sends none where it can help it. */
static __always_inline bool can_translate_parts(const struct packet *packet)
{
	return HAS(FRAGMENTS) && HAS(NAT) && is_udp(packet->protocol) && !is_ipv6(packet);
}

/* Whether a packet that is for no VIP may be a reply, or an error about a request: both are about an endpoint's address. */
static __always_inline bool may_be_reply(const struct packet *packet, enum packet_kind kind)
{
	const void *address = source_of(packet);
	bool is_part = kind == PACKET_FRAGMENT && can_translate_parts(packet);

	if (!HAS(NAT) || (!is_part && !can_translate(packet, kind)))
		return false;
	if (kind == PACKET_ICMP_ERROR)
		address = is_ipv6(packet) ? (void *)&packet->quoted6->daddr : (void *)&packet->quoted->daddr;
	return may_be_endpoint(address, is_ipv6(packet));
}

/*
 * Whether a packet is for a source of fullnat, so that it may be a reply, or an error about a request. Over IPv6, the
 * stage finds out: to compare so many addresses here would make packets of other modes wait.
 */
static __always_inline bool is_for_source(const struct packet *packet, bool is_for_vip)
{
	u32 row = 0, place;
	u64 differs = 1;
	struct snat *set;

	if (!is_for_vip || is_ipv6(packet))
		return is_for_vip && HAS(FULLNAT6);
	set = snat.lookup(&row);
	if (!set)
		return false;
#pragma unroll
	for (place = 0; place < MOST_SOURCES; place++)
		differs &= is_some(set->sources[place] ^ packet->ip->daddr);
	return !differs;
}

static __always_inline struct service *service_handed(struct handed *handed)
{
	return (void *)&handed->index;
}

/* In the main program: hand a packet to the stage. It comes back only if there is none. */
static __always_inline int hand_over(struct xdp_md *ctx, const struct packet *packet, const struct service *service,
				     bool is_refused, bool is_full)
{
	u32 row = 0;
	struct handed *handed = handed_over.lookup(&row);

	if (!handed)
		return drop(VERDICT_STAGE_MISSING);
	*service_handed(handed) = *service;
	handed->ingress = packet->ingress;
	handed->tci = packet->tci;
	handed->is_refused = is_refused;
	handed->is_from_main = 1;
	if (HAS(AS_FRAGMENTS)) {
		stages.call(ctx, STAGE_FIRST4);
		APART;
	} else if (is_translated_sctp(packet)) {
		stages.call(ctx, STAGE_SCTP4);
		APART;
	} else if (HAS(FULLNAT6) && is_full && is_ipv6(packet)) {
		stages.call(ctx, STAGE_FULLNAT6);
		APART;
	} else if (HAS(FULLNAT) && is_full) {
		stages.call(ctx, STAGE_FULLNAT4);
		APART;
	} else if (HAS(NAT6) && is_ipv6(packet)) {
		stages.call(ctx, STAGE_NAT6);
		APART;
	} else if (HAS(NAT)) {
		stages.call(ctx, STAGE_NAT4);
	}
	handed->is_from_main = 0;
	return drop(VERDICT_STAGE_MISSING);
}
