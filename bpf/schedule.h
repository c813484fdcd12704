// SPDX-License-Identifier: GPL-2.0-only
/* Which endpoint a new connection goes to. The ring has the order; a weight is how often an id is in it. */

/*
 * How many slots are tried. The ring holds only endpoints that may be used, so more than one try is needed
 * only while user space is writing, or where an address is taken.
 */
#define MAX_TRIES 4

#ifdef SOURCE_HASH
/*
 * The finalizer of MurmurHash3, in which each bit of the input flips half of the output's. It is over the
 * number that an address is, so that balancers of any byte order choose the same endpoint.
 */
static __always_inline u32 hash_address(__be32 address, u32 try)
{
	u32 hash = bpf_ntohl(address) + try * 0x9e3779b9;

	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}
#endif

/* A slot of the ring, counted from 0. Each further try is another turn, or another hash. */
static __always_inline u32 choose_slot(const struct service *service, __be32 client, u32 slots, u32 try)
{
#ifdef ROUND_ROBIN
	if (service->algorithm == ALGORITHM_ROUND_ROBIN) {
		u32 ring = service->ring;
		u64 *turns = ring_turns.lookup(&ring);

		return turns ? __sync_fetch_and_add(turns, 1) % slots : 0;
	}
#endif
#ifdef SOURCE_HASH
	if (service->algorithm == ALGORITHM_SOURCE_HASH)
		return hash_address(client, try) % slots;
#endif
	return 0;
}

/* The id of the endpoint whose turn it is, 0 if there is none. */
static __always_inline u32 choose_endpoint(const struct service *service, __be32 client, u32 try)
{
	u32 index = service->ring, element = 0;
	void *ring = rings.lookup(&index);
	u32 *value = ring ? bpf_map_lookup_elem(ring, &element) : NULL;
	u32 slots = value ? *value : 0;

	if (!slots)
		return 0;
	element = 1 + choose_slot(service, client, slots, try);
	value = bpf_map_lookup_elem(ring, &element);
	return value ? *value : 0;
}
