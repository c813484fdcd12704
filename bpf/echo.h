// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pings of a VIP that are answered here: RFC 792, RFC 4443, section 4.2.
 *
 * The answer is the request with its addresses swapped, another type and a fresh TTL, as a host would send it.
 * Both sums are updated, so damage stays damage. What is a fragment, or carries options, goes to the kernel, to
 * which every VIP is an address of its own.
 */

/*
 * Whether ICMP to a VIP that is no ping, as far as can be seen, is for the kernel. It would answer fragments and
 * packets with options, too, where pings aren't its business.
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

	/* What claims to come from nobody, or from the VIP itself, the kernel may judge. */
	if (!may_answer(packet->eth, source) || source == ip->daddr)
		return XDP_PASS;
	swap_macs(packet->eth);
	ip->saddr = ip->daddr;
	ip->daddr = source;
	ip->ttl = NEW_TTL;
	ip->check = checksum_update(ip->check, checksum_change16(ttl_before, *ttl));
	icmp->type = ICMP_ECHOREPLY;
	/* Zero would be wrong where all the rest is zero, too; its other form is right everywhere (RFC 1071). */
	icmp->checksum = checksum_update(icmp->checksum, checksum_change16(type_before, *type)) ?: 0xffff;
	return count(VERDICT_ECHO_ANSWERED, XDP_TX);
}
