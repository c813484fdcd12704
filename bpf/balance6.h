// SPDX-License-Identifier: GPL-2.0-only
/* What becomes of an IPv6 packet. There is no NAT for IPv6. */

/* An IPv6 address as one number, to be hashed. A processor multiplies both halves at the same time. */
static __always_inline u32 fold_address(const struct in6_addr *address)
{
	u64 high = (u64)bpf_ntohl(address->s6_addr32[0]) << 32 | bpf_ntohl(address->s6_addr32[1]);
	u64 low = (u64)bpf_ntohl(address->s6_addr32[2]) << 32 | bpf_ntohl(address->s6_addr32[3]);

	high = (high ^ high >> 29) * 0xff51afd7ed558ccdULL;
	low = (low ^ low >> 29) * 0xc4ceb9fe1a85ec53ULL;
	return (high ^ low) >> 32;
}

#ifdef ECHO
static __always_inline int echo6(struct xdp_md *ctx, struct packet *packet)
{
	struct address6 address;
	struct vip *vip;

	__builtin_memcpy(&address, &packet->ip6->daddr, sizeof(address));
	vip = vips6.lookup(&address);
	if (!vip)
		return XDP_PASS;

	NOTE(vip, vip->undefined);
	if (vip->echo == ECHO_REPLY)
		return reply_echo6(packet);
#if defined(FORWARD_ECHO) && defined(DSR)
	if (vip->echo == ECHO_ENDPOINT) {
		struct service6_key asked = { .protocol = IPPROTO_ICMPV6 };
		struct client client = {
			.address = fold_address(&packet->ip6->saddr),
			.protocol = IPPROTO_ICMPV6,
			.address6 = &packet->ip6->saddr,
		};
		struct service *service;

		__builtin_memcpy(asked.vip, &address, sizeof(asked.vip));
		service = services6.lookup(&asked);
		if (service && is_dsr(service))
			return dsr(ctx, packet, true, PACKET_ECHO, service, &client);
		return drop(VERDICT_NO_ENDPOINT);
	}
#endif
	return drop(VERDICT_ECHO_DROPPED);
}
#endif

/* A packet that no service claims, as leftover() in balancer.c. */
static __always_inline int leftover6(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind)
{
	struct address6 address;
	struct vip *vip;

	__builtin_memcpy(&address, &packet->ip6->daddr, sizeof(address));
	vip = vips6.lookup(&address);
	if (!vip)
		return XDP_PASS;

	NOTE(vip, vip->undefined);
	/* The kernel gets pings, errors, and its own search for neighbours. */
#ifdef ECHO
	if (packet->ip6->nexthdr == IPPROTO_ICMPV6 && is_for_kernel(vip, kind))
#else
	if (packet->ip6->nexthdr == IPPROTO_ICMPV6)
#endif
		return XDP_PASS;

	switch (kind) {
	case PACKET_MALFORMED:
		return drop(VERDICT_MALFORMED);
	case PACKET_OPTIONS:
		return drop(VERDICT_IP_OPTIONS);
	case PACKET_FRAGMENT:
		return drop(VERDICT_FRAGMENT);
	default:
		break;
	}
	if (vip->undefined == UNDEFINED_PASS)
		return XDP_PASS;
#ifdef REJECT
	if (vip->undefined == UNDEFINED_REJECT)
		return reject6(ctx, packet, kind);
#endif
	return drop(VERDICT_UNDEFINED);
}

static __always_inline int balance6(struct xdp_md *ctx, struct packet *packet)
{
	enum packet_kind kind = parse6(ctx, packet);

#ifdef DSR_L3
	if (kind == PACKET_ICMP_ERROR && packet->quoted6->nexthdr == IPPROTO_IPV6)
		return relay_error(ctx, packet, true, true);
	if (kind == PACKET_ICMP_ERROR && packet->quoted6->nexthdr == IPPROTO_IPIP)
		return relay_error(ctx, packet, true, false);
#endif
	if (kind == PACKET_NOT_IP || !may_be_vip(fold_address(&packet->ip6->daddr)))
		return XDP_PASS;

#ifdef ECHO
	if (kind == PACKET_ECHO)
		return echo6(ctx, packet);
#endif
#ifdef DSR
	if (kind == PACKET_ICMP_ERROR) {
		struct service6_key asked = {
			.port = packet->ports->source,
			.protocol = packet->quoted_protocol,
		};
		struct service *service;

		__builtin_memcpy(asked.vip, &packet->quoted6->saddr, sizeof(asked.vip));
		service = services6.lookup(&asked);
		if (service && is_dsr(service)) {
			struct client client = {
				.address = fold_address(&packet->quoted6->daddr),
				.port = bpf_ntohs(packet->ports->destination),
				.protocol = asked.protocol,
				.address6 = &packet->quoted6->daddr,
			};

			return dsr(ctx, packet, true, kind, service, &client);
		}
	}
	if (kind == PACKET_TCP || kind == PACKET_DATAGRAM) {
		struct service6_key asked = {
			.port = packet->ports->destination,
			.protocol = packet->ip6->nexthdr,
		};
		struct service *service;

		__builtin_memcpy(asked.vip, &packet->ip6->daddr, sizeof(asked.vip));
		service = services6.lookup(&asked);
		if (service && is_dsr(service)) {
			struct client client = {
				.address = fold_address(&packet->ip6->saddr),
				.port = bpf_ntohs(packet->ports->source),
				.protocol = asked.protocol,
				.address6 = &packet->ip6->saddr,
			};

			return dsr(ctx, packet, true, kind, service, &client);
		}
	}
#endif
	return leftover6(ctx, packet, kind);
}
