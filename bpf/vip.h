// SPDX-License-Identifier: GPL-2.0-only
/* The filter that spares packets for no VIP all further lookups. */

/* Whether an address may be a VIP. An IPv4 address is in host byte order; for IPv6 it is fold_address()'s number. */
static __always_inline bool may_be_vip(u32 address)
{
	u32 row = 0, bit = mix(address) >> 16;
	struct vip_filter *filter = vip_filter.lookup(&row);

	return filter && filter->bits[bit / 8] >> bit % 8 & 1;
}
