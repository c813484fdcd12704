// SPDX-License-Identifier: GPL-2.0-only
/* VIPs and services: what a packet is for. */

/* The finalizer of MurmurHash3. Each bit of the input flips half the bits of the output. */
static __always_inline u32 mix(u32 hash)
{
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* The filter that spares packets for no VIP all further lookups: whether a packet's destination may be a VIP. */
static __always_inline bool may_be_for_vip(const struct packet *packet)
{
	u32 row = 0, bit = mix(fold_address(destination_of(packet), is_ipv6(packet))) >> 16;
	struct vip_filter *filter = vip_filter.lookup(&row);

	return filter && filter->bits[bit / 8] >> bit % 8 & 1;
}

/* The VIP that a packet is for. NULL if its destination is none. */
static __always_inline struct vip *find_vip(const struct packet *packet)
{
	struct address address = read_address(destination_of(packet), is_ipv6(packet));
	struct vip *vip;

	if (!address.is_ipv6) {
		vip = vips.lookup(address.words);
	} else {
		vip = vips6.lookup((struct address6 *)address.words);
		OPAQUE(vip);	/* each look-up stays one of its own: the kernel is slower where it has to find out which map */
	}
	if (vip)
		NOTE(vip, vip->undefined);
	return vip;
}

/* The service of a VIP at this place. */
static __always_inline struct service *find_service(const void *vip, bool is_ipv6, __be16 port, u8 protocol)
{
	struct service *service;

	if (!is_ipv6) {
		struct service_key asked = { .vip = *(const __be32 *)vip, .port = port, .protocol = protocol };

		service = services.lookup(&asked);
	} else {
		struct service6_key asked = { .port = port, .protocol = protocol };

		__builtin_memcpy(asked.vip, vip, sizeof(asked.vip));
		service = services6.lookup(&asked);
		OPAQUE(service);
	}
	return service;
}
