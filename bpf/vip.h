// SPDX-License-Identifier: GPL-2.0-only
/* What spares packets that are for no VIP all further lookups. */

/* Whether a VIP may have this address: in host byte order, of IPv6 as fold_address() gives it. */
static __always_inline bool may_be_vip(u32 address)
{
	u32 row = 0, bit = mix(address) >> 16;
	struct vip_filter *filter = vip_filter.lookup(&row);

	return filter && filter->bits[bit / 8] >> bit % 8 & 1;
}
