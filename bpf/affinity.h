// SPDX-License-Identifier: GPL-2.0-only
/*
 * Affinity of services of NAT and fullnat: a client that had an endpoint gets it again for a new connection, unless it has
 * opened none for too long, or the endpoint gets no new connections any more.
 *
 * Whom a client had is a hint: who loses it loses no connection. So it is one 64-bit number, written at once, in any place
 * of a line of a processor's cache that a hash of the client's address says; there is no lock and no list:
 *
 *   63            32 31        15 14        0
 *   | fingerprint   | endpoint   | last seen |
 *
 * What is held is never believed but where `members` says that the endpoint is one of the ring's. An endpoint that is
 * drained, dead or another pool's is none. The fingerprint depends on the ring's number in `members`, so nothing is found
 * that was written for an earlier owner of the ring's index.
 */

/* The loader puts the number of buckets less one in the place of this number: reconciler/kernel/build.py. */
#define BOUND_MASK 0x626f756e64000001ULL

/* "Last seen" counts 2^32 ns, 4.3 seconds, and comes round after 39 hours. */
#define BOUND_TIME_SHIFT 32
#define BOUND_TIME_MASK 0x7fff

/* What is known of a client that opens a connection. No pointers: the verifier would follow all that comes for each. */
struct bond {
	u64 hash;		/* of the client; 0: the service has no affinity */
	u64 endpoint;		/* the one to have again, 0 if there is none */
};

static __always_inline u64 bound_now(void)
{
	return bpf_ktime_get_coarse_ns() >> BOUND_TIME_SHIFT;
}

static __always_inline struct bucket *find_bound(u64 hash)
{
	u64 mask = BOUND_MASK;
	u32 index;

	OPAQUE(mask);
	index = hash & mask;
	return bound.lookup(&index);
}

static __always_inline u64 hash_bond(u32 number, const struct client *client)
{
	u32 row = 0;
	struct seed *secret = seed.lookup(&row);
	u64 hash;

	if (!secret)
		return 0;
	hash = mix64(number ^ secret->words[0]);
	if (!client->is_ipv6)
		return mix64((hash + client->address) ^ secret->words[1]);
	hash = mix64(hash + ((u64)client->words[0] << 32 | client->words[1])) ^ secret->words[1];
	return mix64(hash + ((u64)client->words[2] << 32 | client->words[3]));
}

static __always_inline u64 bond_age(u64 held, u64 now)
{
	return (now - held) & BOUND_TIME_MASK;
}

/* What a bucket holds of a client, 0 if nothing. */
static __always_inline u64 held_of(const struct bucket *bucket, u64 hash)
{
	u64 held = 0, place;

#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 word = bucket->flows[place];

		held |= word & (is_some((word ^ hash) >> FINGERPRINT_SHIFT) - 1);
	}
	return held;
}

/* The endpoint that a client had, if it may have it again; else 0. */
static __always_inline u32 find_bound_endpoint(u64 hash, u32 ring, u64 patience)
{
	struct member member = { .ring = ring };
	struct bucket *bucket = find_bound(hash);
	u64 held = bucket ? held_of(bucket, hash) : 0;
	u32 id = endpoint_of(held);
	struct endpoint *endpoint = endpoints.lookup(&id);

	member.endpoint = id;
	if (bond_age(held, bound_now()) > patience || !endpoint || endpoint->state != ENDPOINT_USABLE)
		return 0;
	return members.lookup(&member) ? id : 0;
}

static __always_inline void look_up_bond(const struct service *service, const struct client *client, struct bond *bond)
{
	struct member member = { .ring = service->ring };
	u32 index = service->index, *number;
	struct front *front = fronts.lookup(&index);

	if (!front || !front->affinity_s)
		return;
	number = members.lookup(&member);
	if (!number)
		return;
	bond->hash = hash_bond(*number, client);
	/* A unit may be over in no time. */
	bond->endpoint = find_bound_endpoint(bond->hash, service->ring,
					     ((u64)front->affinity_s * 1000000000 >> BOUND_TIME_SHIFT) + 1);
}

static __always_inline void find_bond(const struct service *service, const struct client *client, struct bond *bond)
{
	u64 any = bpf_ktime_get_coarse_ns();

	if (!HAS(AFFINITY))
		return;
	look_up_bond(service, client, bond);
	if (bond->endpoint)
		NOTE(memory, MEMORY_AFFINITY);
	/* Whatever was found: the verifier needn't follow each. */
	bond->hash = forgotten(bond->hash, any);
	bond->endpoint = forgotten(bond->endpoint, any);
}

/* The endpoint for a new connection of a client at a further try: the one that it had, then those that the ring says. */
static __always_inline u32 choose_bound(const struct service *service, const struct client *client, u32 try,
					const struct bond *bond)
{
	u64 id;

	if (!HAS(AFFINITY))
		return choose_endpoint(service, client, try);
	id = !try && bond->endpoint ? bond->endpoint : choose_endpoint(service, client, try);
	return forgotten(id, bond->hash);
}

/*
 * Note which endpoint a client got, in its own place if it has one, otherwise in an empty place or that of who was seen
 * last the longest ago. If the client had another one that was of no use for this very connection, it keeps that.
 */
static __always_inline void note_bond(const struct bond *bond, u32 endpoint)
{
	u64 chosen = ~0ULL >> 1, now = bound_now(), place, word;
	struct bucket *bucket;

	if (!HAS(AFFINITY) || !bond->hash || (bond->endpoint && bond->endpoint != endpoint))
		return;
	bucket = find_bound(bond->hash);
	if (!bucket)
		return;
	word = bond->hash >> FINGERPRINT_SHIFT << FINGERPRINT_SHIFT | (u64)endpoint << ENDPOINT_SHIFT |
	       (now & BOUND_TIME_MASK);
#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 held = bucket->flows[place];
		u64 claim = 1 + is_some(held) * (1 + BOUND_TIME_MASK - bond_age(held, now));

		claim *= is_some((held ^ word) >> FINGERPRINT_SHIFT);
		chosen = smaller(claim * PLACES + place, chosen);
	}
	/* Most connections of a client tell nothing new. */
	if (bucket->flows[chosen % PLACES] != word)
		bucket->flows[chosen % PLACES] = word;
}
