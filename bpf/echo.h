// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pings of a VIP that the balancer answers: RFC 792, RFC 4443, section 4.2.
 *
 * The answer is the request with its addresses swapped, another type and a fresh TTL, as a host would send it.
 * Both sums are updated, so damage stays damage. Fragments and packets with options go to the kernel, to which
 * every VIP is an address of its own.
 */

/*
 * Whether the kernel gets an ICMP packet to a VIP that doesn't look like a ping. Fragments and packets with options
 * may be pings, and the kernel would answer them, so it gets these only if the VIP answers pings.
 */
static __always_inline bool is_for_kernel(const struct vip *vip, enum packet_kind kind)
{
	return vip->echo == ECHO_REPLY || kind == PACKET_OTHER || kind == PACKET_ICMP_ERROR;
}

static __always_inline int reply_echo(struct packet *packet)
{
	struct iphdr *ip = packet->ip;
	struct icmphdr *icmp = packet->icmp;
	__be16 *ttl = (__be16 *)&ip->ttl;	/* and the protocol: sums are of 16-bit words */
	__be16 *type = (__be16 *)&icmp->type;	/* and the code */
	__be16 ttl_before = *ttl, type_before = *type;
	__be32 source = ip->saddr;

	/* The kernel judges pings from addresses that no host can have, or from the VIP itself. */
	if (!may_answer(packet->eth, source) || source == ip->daddr)
		return XDP_PASS;
	swap_macs(packet->eth);
	ip->saddr = ip->daddr;
	ip->daddr = source;
	ip->ttl = NEW_TTL;
	ip->check = checksum_update(ip->check, checksum_change16(ttl_before, *ttl));
	icmp->type = ICMP_ECHOREPLY;
	/* A sum of zero would be wrong if all the rest is zero, too; 0xffff is always right (RFC 1071). */
	icmp->checksum = checksum_update(icmp->checksum, checksum_change16(type_before, *type)) ?: 0xffff;
	return count(VERDICT_ECHO_ANSWERED, XDP_TX);
}
