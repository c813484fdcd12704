// SPDX-License-Identifier: GPL-2.0-only
/* Which endpoint a new connection goes to. The ring has the order; a weight is how often an id is in it. */

/*
 * How many slots are tried. The ring holds only endpoints that may be used, so more than one try is needed
 * only while user space is writing, or where an address is taken.
 */
#define MAX_TRIES 4

/* Whose packet it is. Numbers are in host byte order, so that all balancers hash the same ones. */
struct client {
	u32 address;		/* of IPv6: a hash of it */
	u16 port;
	u8 protocol;
	const struct in6_addr *address6;	/* of IPv6 only */
};

/* The finalizer of MurmurHash3, in which each bit of the input flips half of the output's. */
static __always_inline u32 mix(u32 hash)
{
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/*
 * The hash that stands for a client: of its address or, by Maglev, of its address, port and protocol. Each
 * further try is another hash.
 */
static __always_inline u32 hash_client(const struct service *service, const struct client *client, u32 try)
{
	u32 hash = mix(client->address + try * 0x9e3779b9);

#ifdef MAGLEV
	if (service->algorithm == ALGORITHM_MAGLEV)
		return mix(hash + ((u32)client->port << 8 | client->protocol));
#endif
	return hash;
}

/* A slot of the ring, counted from 0. Each further try is another turn, or another hash. */
static __always_inline u32 choose_slot(const struct service *service, const struct client *client, u32 slots,
				       u32 try)
{
#ifdef ROUND_ROBIN
	if (service->algorithm == ALGORITHM_ROUND_ROBIN) {
		u32 ring = service->ring;
		u64 *turns = ring_turns.lookup(&ring);

		return turns ? __sync_fetch_and_add(turns, 1) % slots : 0;
	}
#endif
	/* As a fraction of all hashes, which spares the division. */
	return (u64)hash_client(service, client, try) * slots >> 32;
}

/* A slot: the index of the array of rows for transitions, and its number. */
struct slot {
	u32 rows;
	u32 number;
};

/* What is in the slot that is chosen: SLOT_… of maps.h, 0 if there is none. */
static __always_inline u32 read_slot(const struct service *service, const struct client *client, u32 try,
				     struct slot *slot)
{
	u32 index = service->ring, element = 0;
	void *ring = rings.lookup(&index);
	u32 *head = ring_heads.lookup(&index), *value = NULL;

	NOTE(rings, index);
	NOTE(slots, 0);
	if (!ring)
		return 0;
	if (head && HEAD_SLOTS(*head)) {
		slot->number = choose_slot(service, client, HEAD_SLOTS(*head), try);
		element = 1 + slot->number;
		value = bpf_map_lookup_elem(ring, &element);
	}
	if (!value || SLOT_GENERATION(*value) != HEAD_GENERATION(*head)) {
		element = 0;
		head = bpf_map_lookup_elem(ring, &element);
		if (!head || !HEAD_SLOTS(*head))
			return 0;
		slot->number = choose_slot(service, client, HEAD_SLOTS(*head), try);
		element = 1 + slot->number;
		value = bpf_map_lookup_elem(ring, &element);
	}
	NOTE(slots, HEAD_SLOTS(*head));
	NOTE(slot, slot->number);
	slot->rows = index + (HEAD_GENERATION(*head) & 1 ? RINGS : 0);
	return value ? *value : 0;
}

/* The id of the endpoint whose turn it is, 0 if there is none. */
static __always_inline u32 choose_endpoint(const struct service *service, const struct client *client, u32 try)
{
	struct slot slot;

	return read_slot(service, client, try, &slot) & SLOT_ID_MASK;
}
