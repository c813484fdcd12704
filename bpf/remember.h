// SPDX-License-Identifier: GPL-2.0-only
/*
 * The flow table: which endpoint a flow has that began, or was seen, while its slot was in transition.
 *
 * A flow is one 64-bit number in one of the eight places of its bucket, read and written as a whole, so there is
 * no lock and nothing is ever half written. Two CPUs that write the same place at the same instant lose one flow.
 *
 *   63            32 31        15 14        2 1     0
 *   | fingerprint   | endpoint   | last seen | state |
 *
 * A flow is taken for another one if both fall into the same bucket and have the same fingerprint. That needs 49
 * equal bits of a hash with a secret seed: an unknown flow that meets eight remembered ones is mistaken with a
 * probability of 8 / 2^32, about 2e-9.
 */

#define BUCKETS 131072
#define PLACES 8

#define FINGERPRINT_SHIFT 32
#define ENDPOINT_SHIFT 15
#define ENDPOINT_MASK 0x1ffff
#define SEEN_SHIFT 2
#define SEEN_MASK 0x1fff
#define STATE_MASK 3

/* Of a clock in units of 2^30 ns: 16 of them, 17 seconds. The clock comes round after 39 hours. */
#define SEEN_UNIT_SHIFT 4

/* How long a silent flow is remembered, in these units. */
#define STREAM_IDLE 434		/* 2 hours 4 minutes: RFC 5382, REQ-5 */
#define DATAGRAM_IDLE 18	/* 5 minutes: RFC 4787, REQ-5 */
#define OPENING_IDLE 4		/* a minute: SYNs that nothing followed */

/* The states of a flow; 0 is an empty place. The higher, the better its claim to the place. */
enum remembered_state {
	REMEMBERED_CLOSING = 1,		/* a FIN or a RST came by; what follows still goes the same way */
	REMEMBERED_OPENING = 2,		/* nothing but SYNs */
	REMEMBERED_OPEN = 3,
};

/* The finalizer of MurmurHash3 for 64 bits: a bijection in which each bit of the input flips half of the output's. */
static __always_inline u64 mix64(u64 hash)
{
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	return hash ^ hash >> 33;
}

/* The hash of a flow: of the client and the service, whose index stands for the VIP, the port and the protocol. */
static __always_inline u64 hash_flow(const struct service *service, const struct client *client)
{
	u32 row = 0;
	struct seed *secret = seed.lookup(&row);
	u64 hash = (u64)client->port << 32 | service->index;

	if (!secret)
		return 0;
	if (!client->address6)
		return mix64(mix64((u64)client->address ^ secret->words[0]) + hash ^ secret->words[1]);
	hash = mix64(hash ^ secret->words[0]);
	hash = mix64(hash + ((u64)client->address6->s6_addr32[0] << 32 | client->address6->s6_addr32[1]));
	hash ^= secret->words[1];
	return mix64(hash + ((u64)client->address6->s6_addr32[2] << 32 | client->address6->s6_addr32[3]));
}

static __always_inline struct bucket *find_bucket(u64 hash)
{
	u32 index = hash % BUCKETS;

	return remembered.lookup(&index);
}

static __always_inline u64 new_flow(u64 hash, u32 endpoint, u32 now, enum remembered_state state)
{
	return hash >> FINGERPRINT_SHIFT << FINGERPRINT_SHIFT | (u64)endpoint << ENDPOINT_SHIFT |
	       (u64)(now >> SEEN_UNIT_SHIFT & SEEN_MASK) << SEEN_SHIFT | state;
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
	return ((now >> SEEN_UNIT_SHIFT) - (u32)(flow >> SEEN_SHIFT)) & SEEN_MASK;
}

/*
 * The rest has no branches: the verifier follows each way through a program by itself, and eight places with two
 * ways each are too many. The empty assembly keeps the compiler from making branches of the arithmetic.
 */
#define OPAQUE(value) asm volatile("" : "+r"(value))

/* 1 if a number is not zero. */
static __always_inline u64 is_some(u64 number)
{
	number = (number | -number) >> 63;
	OPAQUE(number);
	return number;
}

/* All ones if `one` is less than `two`; both are below 2^63. */
static __always_inline u64 is_less(u64 one, u64 two)
{
	u64 mask = (s64)(one - two) >> 63;

	OPAQUE(mask);
	return mask;
}

/* The place of the flow with this fingerprint in its bucket, PLACES or more if it is in none. */
static __always_inline u32 find_place(const struct bucket *bucket, u64 flow)
{
	u64 found = PLACES, place;

#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 candidate = is_some((bucket->flows[place] ^ flow) >> FINGERPRINT_SHIFT) * PLACES + place;

		found += (candidate - found) & is_less(candidate, found);
	}
	return found;
}

/*
 * How much a flow's claim to its place is worth. That of the lowest worth is given away: first what is over, then
 * flows that are ending, SYNs that nothing followed, and open flows; among equals the oldest.
 */
static __always_inline u64 worth(u64 flow, u32 now, u32 idle)
{
	u64 age = age_of(flow, now), state = state_of(flow);
	u64 limit = idle - (idle - OPENING_IDLE) * (state & 1 ^ 1);	/* REMEMBERED_OPENING is the even one */

	state &= ~is_less(limit, age);
	return state * (SEEN_MASK + 1) + SEEN_MASK - age;
}

/* Remember a flow: in its own place if it has one, otherwise in an empty one or the one that is worth least. */
static __always_inline void remember(struct bucket *bucket, u64 flow, u32 now, u32 idle)
{
	u64 chosen = ~0ULL >> 1, place;

#pragma unroll
	for (place = 0; place < PLACES; place++) {
		u64 held = bucket->flows[place];
		u64 is_other = is_some((held ^ flow) >> FINGERPRINT_SHIFT);
		u64 candidate = (worth(held, now, idle) + 1) * is_some(held) * is_other * 2 + is_other;

		candidate = candidate * PLACES + place;
		chosen += (candidate - chosen) & is_less(candidate, chosen);
	}
	bucket->flows[chosen % PLACES] = flow;
}
