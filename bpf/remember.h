// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory of flows that began, or were seen, while their slot was in transition: the endpoint of each.
 *
 * A flow is one 64-bit number in one of the eight places of its bucket, read and written as a whole, so there is
 * no lock and nothing is ever half written. Two CPUs that write the same place at the same instant lose one flow.
 *
 *   63            32 31        15 14        2 1     0
 *   | fingerprint   | endpoint   | last seen | state |
 *
 * A flow is taken for another one if both fall into the same bucket and have the same fingerprint. This takes 49
 * equal bits of a hash with a secret seed: an unknown flow that meets eight remembered ones is mistaken with a
 * probability of 8 / 2^32, about 2e-9.
 *
 * Anybody can forge a SYN, so a SYN must not move an open connection with the same addresses. It gets a place of its
 * own: the upper half of its sequence number is added to the lower half of its fingerprint. Once a packet with a
 * sequence number that follows the SYN's finds this place (find_flow), the older connection is forgotten (write_flow).
 */

/* The loader puts the number of buckets less one in the place of this number: reconciler/kernel/build.py. */
#define BUCKET_MASK 0x6275636b65740001ULL
#define PLACES 8

#define FINGERPRINT_SHIFT 32
#define ENDPOINT_SHIFT 15
#define ENDPOINT_MASK 0x1ffff
#define SEEN_SHIFT 2
#define SEEN_MASK 0x1fff
#define STATE_MASK 3

/* "Last seen", and the `now` of all functions, count 2^34 ns, 17 seconds. "Last seen" comes round after 39 hours. */

/* How long a silent flow is remembered. */
#define STREAM_IDLE 434		/* 2 hours 4 minutes: RFC 5382, REQ-5 */
#define DATAGRAM_IDLE 18	/* 5 minutes: RFC 4787, REQ-5 */
#define OPENING_IDLE 4		/* a minute, after nothing but SYNs */
#define CLOSING_IDLE 2		/* half a minute, after a FIN or a RST, which may be forged */

/* The states of a flow; 0 is an empty place. A flow in a higher state has the better claim to its place. */
enum remembered_state {
	REMEMBERED_OPENING = 1,		/* nothing but SYNs */
	REMEMBERED_CLOSING = 2,		/* after a FIN or a RST; later packets still go to the same endpoint */
	REMEMBERED_OPEN = 3,
};

#define NOT_OPENING 2	/* the bit that all states but REMEMBERED_OPENING have */

/* The finalizer of MurmurHash3 for 64 bits: a bijection. Each bit of the input flips half the bits of the output. */
static __always_inline u64 mix64(u64 hash)
{
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	return hash ^ hash >> 33;
}

/* The hash of a flow's client and service. The service's index stands for the VIP, the port and the protocol. */
static __always_inline u64 hash_flow(const struct service *service, const struct client *client)
{
	u32 row = 0;
	struct seed *secret = seed.lookup(&row);
	u64 hash = (u64)client->port << 32 | service->index;

	if (!secret)
		return 0;
	if (!client->is_ipv6)
		return mix64(mix64((u64)client->address ^ secret->words[0]) + hash ^ secret->words[1]);
	hash = mix64(hash ^ secret->words[0]);
	hash = mix64(hash + ((u64)client->words[0] << 32 | client->words[1]));
	hash ^= secret->words[1];
	return mix64(hash + ((u64)client->words[2] << 32 | client->words[3]));
}

static __always_inline struct bucket *find_bucket(u64 hash)
{
	u64 mask = BUCKET_MASK;
	u32 index;

	OPAQUE(mask);
	index = hash & mask;
	return remembered.lookup(&index);
}

static __always_inline u64 new_flow(u64 hash, u32 endpoint, u32 now, enum remembered_state state)
{
	return hash >> FINGERPRINT_SHIFT << FINGERPRINT_SHIFT | (u64)endpoint << ENDPOINT_SHIFT |
	       (u64)(now & SEEN_MASK) << SEEN_SHIFT | state;
}

/* The hash of a flow whose SYN has this sequence number. */
static __always_inline u64 hash_opening(u64 hash, u32 sequence)
{
	u16 lower = (hash >> FINGERPRINT_SHIFT) + (sequence >> 16);

	return hash >> 48 << 48 | (u64)lower << FINGERPRINT_SHIFT;
}

static __always_inline u32 endpoint_of(u64 flow)
{
	return flow >> ENDPOINT_SHIFT & ENDPOINT_MASK;
}

static __always_inline enum remembered_state state_of(u64 flow)
{
	return flow & STATE_MASK;
}

/* For how many units a flow was not seen. */
static __always_inline u32 age_of(u64 flow, u32 now)
{
	return (now - (u32)(flow >> SEEN_SHIFT)) & SEEN_MASK;
}

/*
 * How the functions below say where a flow is in its bucket: the number of its place if the flow is opening, PLACES
 * more if it is not, NOWHERE or more if it has no place.
 */
#define NOWHERE (2 * PLACES)

/* Where a flow with this hash is that is closing or open. */
static __always_inline u64 find_settled(const struct bucket *bucket, u64 hash)
{
	u64 found = NOWHERE, place;

#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 held = bucket->flows[place];
		u64 differs = (held ^ hash) >> FINGERPRINT_SHIFT | (~held & NOT_OPENING);

		found = smaller(is_some(differs) * PLACES + PLACES + place, found);
	}
	return found;
}

/* Where the flow is that a packet with this hash and sequence number belongs to. */
static __always_inline u64 find_flow(const struct bucket *bucket, u64 hash, u32 sequence)
{
	u64 found = find_settled(bucket, hash), opening = 0, place;

#pragma unroll
	for (place = 0; place < PLACES; place++)
		opening |= bucket->flows[place] & ~(bucket->flows[place] >> 1);
	if (!(opening & REMEMBERED_OPENING))
		return found;
	/*
	 * The SYN's sequence number is less than 2^17 behind the packet's. So a forged SYN is taken for the right one
	 * with a probability of 2^-15.
	 */
	opening = hash_opening(hash, sequence) >> FINGERPRINT_SHIFT;
#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 held = bucket->flows[place];
		u64 differs = (held ^ hash) >> 48 | ((opening - (held >> FINGERPRINT_SHIFT)) & 0xfffe) |
			      (held & NOT_OPENING);

		found = smaller(is_some(differs) * NOWHERE + place, found);
	}
	return found;
}

/*
 * Write the new state of a flow over the place in its bucket that `found` tells. If the flow was opening, an older flow
 * with the same addresses is forgotten.
 */
static __always_inline void write_flow(struct bucket *bucket, u64 found, u64 hash, u64 flow)
{
	if (found < PLACES) {
		u64 former = find_settled(bucket, hash);

		if (former < NOWHERE)
			bucket->flows[former % PLACES] = 0;
	}
	bucket->flows[found % PLACES] = flow;
}

/*
 * How much a flow's claim to its place is worth. A new flow takes the place of the lowest worth: first flows that are
 * over, then flows with nothing but SYNs, flows that are ending, and open flows; among equals the oldest.
 */
static __always_inline u64 worth(u64 flow, u32 now, u32 idle)
{
	u64 age = age_of(flow, now), state = state_of(flow);
	/* Ten bits for each state: how long a flow in it may be silent. */
	u64 limits = OPENING_IDLE << 10 * REMEMBERED_OPENING | CLOSING_IDLE << 10 * REMEMBERED_CLOSING |
		     (u64)idle << 10 * REMEMBERED_OPEN;

	state &= ~is_less(limits >> 10 * state & 0x3ff, age);
	return state * (SEEN_MASK + 1) + SEEN_MASK - age;
}

/* Remember a flow: in its own place if it has one, otherwise in an empty place or that of the lowest worth. */
static __always_inline void remember(struct bucket *bucket, u64 flow, u32 now, u32 idle)
{
	u64 chosen = ~0ULL >> 1, place;

#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 held = bucket->flows[place];
		u64 is_other = is_some((held ^ flow) >> FINGERPRINT_SHIFT | ((held ^ flow) & NOT_OPENING));
		u64 candidate = (worth(held, now, idle) + 1) * is_some(held) * is_other * 2 + is_other;

		candidate = candidate * PLACES + place;
		chosen += (candidate - chosen) & is_less(candidate, chosen);
	}
	bucket->flows[chosen % PLACES] = flow;
}
