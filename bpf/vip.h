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

/* The service of a VIP at this place, in the table of all. */
static __always_inline struct service *look_up_service(const __be32 *vip, bool is_ipv6, __be16 port, u8 protocol)
{
	struct service *service;

	if (!is_ipv6) {
		struct service_key asked = { .vip = *vip, .port = port, .protocol = protocol };

		service = services.lookup(&asked);
	} else {
		struct service6_key asked = { .port = port, .protocol = protocol };

		__builtin_memcpy(asked.vip, vip, sizeof(asked.vip));
		service = services6.lookup(&asked);
		OPAQUE(service);
	}
	return service;
}

/*
 * How long a CPU goes by what it has found: 32 ticks of the kernel's clock, which are 32 to 320 ms. Changes are seen at
 * once, by their count; the time is for the case that who made one was killed before it could count.
 */
#define KNOWN_SHIFT 5
#define FOUND (1U << 31)	/* in each stamp, so that a line of zeros is none */

/* The loader puts the number of rows that each CPU has in the place of this: reconciler/kernel/build.py. */
#define KNOWN_ROWS 0x6b6e6f776e737201ULL

/* The line in which this CPU keeps what is found for a VIP, a port and a protocol. */
static __always_inline struct known_service *find_known(const __be32 *vip, bool is_ipv6, u32 where)
{
	u64 rows = KNOWN_ROWS;
	u32 row;

	OPAQUE(rows);
	row = bpf_get_smp_processor_id() * rows + ((u64)mix(fold_address(vip, is_ipv6) * 0x9e3779b1 + where) * rows >> 32);
	return known_services.lookup(&row);
}

/* The stamp of what is found now; 0 if there is none. */
static __always_inline u64 stamp_now(void)
{
	u32 first = 0;
	volatile u64 *changes = service_changes.lookup(&first);

	return changes ? *changes << 32 | (u32)(bpf_jiffies64() >> KNOWN_SHIFT) | FOUND : 0;
}

/* Whether a line says something else than what was found with this stamp. */
static __always_inline u64 differs_from(const struct known_service *line, const __be32 *vip, bool is_ipv6, u32 where,
					u64 stamp)
{
	u64 differs = (line->stamp ^ stamp) | (line->vip[0] ^ vip[0]) | (*(u32 *)&line->port ^ where);

	if (is_ipv6)
		differs |= (line->vip[1] ^ vip[1]) | (line->vip[2] ^ vip[2]) | (line->vip[3] ^ vip[3]);
	return differs;
}

/* Have a line say what it is about; what was found is in it already. */
static __always_inline void note_known(struct known_service *line, const __be32 *vip, bool is_ipv6, u32 where, u64 stamp)
{
	line->vip[0] = vip[0];
	if (is_ipv6) {
		line->vip[1] = vip[1];
		line->vip[2] = vip[2];
		line->vip[3] = vip[3];
	}
	*(u32 *)&line->port = where;
	line->stamp = stamp;
}

/*
 * The service of a VIP at this place goes to `service`; false if there is none. A look-up in a hash table is two calls and
 * three lines of memory, and takes as long as all else up to here, so each CPU keeps what it has found.
 *
 * The changes are read before the table, so what is kept is never newer by its stamp than by its content.
 */
static __always_inline bool find_service(const void *at, bool is_ipv6, __be16 port, u8 protocol, struct service *service)
{
	const __be32 *vip = at;
	u32 where = (u32)is_ipv6 << 24 | (u32)protocol << 16 | port;
	u64 stamp = stamp_now();
	struct known_service *line;
	struct service *found;

	if (!stamp)
		return false;
	line = find_known(vip, is_ipv6, where);
	if (!line)
		return false;
	if (!differs_from(line, vip, is_ipv6, where, stamp)) {
		*service = *(struct service *)&line->index;
		return true;
	}
	found = look_up_service(vip, is_ipv6, port, protocol);
	if (!found)
		return false;
	*service = *found;
	*(struct service *)&line->index = *service;
	note_known(line, vip, is_ipv6, where, stamp);
	return true;
}

/* The VIP that a packet is for, in the table of all. NULL if its destination is none. */
static __always_inline struct vip *look_up_vip(const void *at, bool is_ipv6)
{
	struct address address = read_address(at, is_ipv6);
	struct vip *vip;

	if (!address.is_ipv6) {
		vip = vips.lookup(address.words);
	} else {
		vip = vips6.lookup((struct address6 *)address.words);
		OPAQUE(vip);	/* as above */
	}
	return vip;
}

/* As the protocol of a line that says what a VIP does, and not one of its services: no packet has it. */
#define OF_VIP 255

/* The same as find_service() finds services. */
static __always_inline struct vip *find_vip(const struct packet *packet)
{
	const __be32 *at = destination_of(packet);
	bool has_ipv6 = is_ipv6(packet);
	u32 where = (u32)has_ipv6 << 24 | OF_VIP << 16;
	struct known_service *line = NULL;
	u64 stamp = 0;
	struct vip *vip;

	if (HAS(NAT) || HAS_DSR)
		stamp = stamp_now();
	if (stamp)
		line = find_known(at, has_ipv6, where);
	if (line && !differs_from(line, at, has_ipv6, where, stamp)) {
		vip = (struct vip *)&line->index;
	} else {
		vip = look_up_vip(at, has_ipv6);
		if (vip && line) {
			*(struct vip *)&line->index = *vip;
			note_known(line, at, has_ipv6, where, stamp);
		}
	}
	if (vip)
		NOTE(vip, vip->undefined);
	return vip;
}
