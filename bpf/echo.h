// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pings of a VIP that the balancer answers: RFC 792, RFC 4443, section 4.2.
 *
 * The answer is the request with its addresses swapped, another type and a fresh TTL, as a host would send it. Sums are
 * updated, so damage stays damage; that of ICMPv6 covers both addresses, but no sum depends on their order. Fragments
 * and packets with options go to the kernel, to which every VIP is an address of its own.
 */

/*
 * Whether the kernel gets an ICMP packet to a VIP that doesn't look like a ping. Fragments and packets with options
 * may be pings, and the kernel would answer them, so it gets these only if the VIP answers pings.
 */
static __always_inline bool is_for_kernel(const struct vip *vip, enum packet_kind kind)
{
	return !HAS(ECHO) || vip->echo == ECHO_REPLY || kind == PACKET_OTHER || kind == PACKET_ICMP_ERROR;
}

static __always_inline int reply_echo(const struct packet *packet)
{
	u8 type = is_ipv6(packet) ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY;
	struct icmphdr *icmp = packet->icmp;

	/* The kernel judges pings from addresses that no host can have, or from the VIP itself. */
	if (!may_answer(packet) || is_from_destination(packet))
		return XDP_PASS;
	swap_macs(packet->eth);
	swap_addresses(packet);
	set_ttl(packet, NEW_TTL);
	icmp->checksum = checksum_update(icmp->checksum, checksum_change8(icmp->type, type));
	/* A sum of zero would be wrong if all the rest is zero, too; 0xffff is always right (RFC 1071). */
	if (!is_ipv6(packet))
		icmp->checksum = icmp->checksum ?: 0xffff;
	icmp->type = type;
	return count(VERDICT_ECHO_ANSWERED, XDP_TX);
}
