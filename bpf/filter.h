// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whose packets are none of the balancer's business: those to no VIP and, where NAT may have to translate replies, from no
 * endpoint. Two filters say so before anything else is looked up; see also vip.h.
 */

/* The loader puts the number of lines in the place of this: reconciler/kernel/build.py. */
#define ENDPOINT_FILTER_LINES 0x66696c7465726501ULL
#define FILTER_WORDS 8

/* Whether this may be the address of an endpoint. */
static __always_inline bool may_be_endpoint(const void *address, bool is_ipv6)
{
	u32 hash = mix(fold_address(address, is_ipv6)), row;
	u64 lines = ENDPOINT_FILTER_LINES;
	struct endpoint_filter *line;

	OPAQUE(lines);
	row = hash * lines >> 32;
	line = endpoint_filter.lookup(&row);
	return line && line->bits[hash / 64 % FILTER_WORDS] >> hash % 64 & 1;
}

/*
 * Whether a packet may concern the balancer, by its IP header alone. Those of ICMP may be errors about a packet that left in
 * a tunnel or was translated, and whoever checks endpoints through VIPs has addresses of its own.
 */
static __always_inline bool may_concern_us(const struct packet *packet)
{
	u32 row = 0;
	struct prober *who;

	if (may_be_for_vip(packet) || is_icmp(packet))
		return true;
	if (HAS(NAT) && may_be_endpoint(source_of(packet), is_ipv6(packet)))
		return true;
	if (!HAS(CHECKS) || !HAS_DSR)
		return false;
	who = prober.lookup(&row);
	return who && who->ifindex;
}
