// SPDX-License-Identifier: GPL-2.0-only
/* echo.h for IPv6. The checksum covers both addresses, but a sum doesn't depend on their order. */

static __always_inline int reply_echo6(struct packet *packet)
{
	struct ipv6hdr *ip = packet->ip6;
	struct icmp6hdr *icmp = packet->icmp6;
	__be16 *type = (__be16 *)&icmp->icmp6_type;	/* and the code */
	__be16 before = *type;
	struct in6_addr source = ip->saddr;

	if (!may_answer6(packet->eth, &source) || is_same6(&source, &ip->daddr))
		return XDP_PASS;
	swap_macs(packet->eth);
	ip->saddr = ip->daddr;
	ip->daddr = source;
	ip->hop_limit = NEW_TTL;
	icmp->icmp6_type = ICMPV6_ECHO_REPLY;
	icmp->icmp6_cksum = checksum_update(icmp->icmp6_cksum, checksum_change16(before, *type));
	return count(VERDICT_ECHO_ANSWERED, XDP_TX);
}
