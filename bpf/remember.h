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
 *
 * Anybody can forge a SYN, so it must not move the connection that its addresses have. It gets a place of its own:
 * to the lower half of its fingerprint the upper half of its sequence number is added. Only a packet whose sequence
 * number follows takes it up (find_opening), and then it takes the place of what was there before.
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
#define CLOSING_IDLE 2		/* after a FIN or a RST, which may be forged: half a minute */

/* The states of a flow; 0 is an empty place. The higher, the better its claim to the place. */
enum remembered_state {
	REMEMBERED_OPENING = 1,		/* nothing but SYNs */
	REMEMBERED_CLOSING = 2,		/* a FIN or a RST came by; what follows still goes the same way */
	REMEMBERED_OPEN = 3,
};

#define NOT_OPENING 2	/* a bit of all states but that one */

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

/* The hash that a flow has while it opens with this sequence number. */
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
	u64 negative = -number;

	OPAQUE(negative);
	return (number | negative) >> 63;
}

/* All ones if `one` is less than `two`; both are below 2^63. */
static __always_inline u64 is_less(u64 one, u64 two)
{
	u64 mask = (s64)(one - two) >> 63;

	OPAQUE(mask);
	return mask;
}

/* The smaller one of two numbers below 2^63. */
static __always_inline u64 smaller(u64 one, u64 two)
{
	return two + ((one - two) & is_less(one, two));
}

/*
 * Where a flow is found in its bucket: the number of its place if it is opening, PLACES more if not, NOWHERE or more
 * if it is in none.
 */
#define NOWHERE (2 * PLACES)

/* Where the flow with this hash is that is not opening. */
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

/* Where the flow with this hash is, of which a packet has this sequence number. */
static __always_inline u64 find_flow(const struct bucket *bucket, u64 hash, u32 sequence)
{
	u64 found = find_settled(bucket, hash), opening = 0, place;

#pragma unroll
	for (place = 0; place < PLACES; place++)
		opening |= bucket->flows[place] & ~(bucket->flows[place] >> 1);
	if (!(opening & REMEMBERED_OPENING))
		return found;
	/*
	 * The number of its SYN is less than 2^17 behind that of the packet. So a forged SYN is taken for the right
	 * one with a probability of 2^-15.
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
 * Write what is known of a flow now, which is `found` in its bucket. One that was opening takes the place of another
 * one with the same addresses, which is forgotten.
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
 * How much a flow's claim to its place is worth. That of the lowest worth is given away: first what is over, then
 * SYNs that nothing followed yet, flows that are ending, and open flows; among equals the oldest.
 */
static __always_inline u64 worth(u64 flow, u32 now, u32 idle)
{
	u64 age = age_of(flow, now), state = state_of(flow);
	/* In ten bits for each state how long it may last. */
	u64 limits = OPENING_IDLE << 10 * REMEMBERED_OPENING | CLOSING_IDLE << 10 * REMEMBERED_CLOSING |
		     (u64)idle << 10 * REMEMBERED_OPEN;

	state &= ~is_less(limits >> 10 * state & 0x3ff, age);
	return state * (SEEN_MASK + 1) + SEEN_MASK - age;
}

/* Remember a flow: in its own place if it has one, otherwise in an empty one or the one that is worth least. */
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
