// SPDX-License-Identifier: GPL-2.0-only
/* The choice of an endpoint for a new connection. An endpoint's id is in the ring as often as its weight says. */

/*
 * How many slots are tried. The ring holds only usable endpoints, so more than one try is needed only while user
 * space is writing, or if an endpoint already talks to the client's address and port (NAT).
 */
#define MAX_TRIES 4

/* The client's end of a flow. Numbers are in host byte order, so that all balancers hash the same ones. */
struct client {
	u32 address;		/* the number that fold_address() gives */
	u16 port;		/* 0 for pings */
	u8 protocol;
	bool is_ipv6;
	const __be32 *words;	/* of the address, where it lies in the packet */
};

/*
 * The hash of a client's address or, for Maglev, of its address, port and protocol. Each further try gives another
 * hash.
 */
static __always_inline u32 hash_client(const struct service *service, const struct client *client, u32 try)
{
	u32 hash = mix(client->address + try * 0x9e3779b9);

	if (HAS(MAGLEV) && service->algorithm == ALGORITHM_MAGLEV)
		return mix(hash + ((u32)client->port << 8 | client->protocol));
	return hash;
}

/* A slot of the ring, counted from 0. Each further try takes another turn, another hash, or is drawn anew. */
static __always_inline u32 choose_slot(const struct service *service, const struct client *client, u32 slots,
				       u32 try)
{
	if (HAS(ROUND_ROBIN) && service->algorithm == ALGORITHM_ROUND_ROBIN) {
		u32 ring = service->ring;
		u64 *turns = ring_turns.lookup(&ring);

		return turns ? __sync_fetch_and_add(turns, 1) % slots : 0;
	}
	if (HAS(LEAST_CONNECTIONS) && service->algorithm == ALGORITHM_LEAST_CONNECTIONS)
		return (u64)bpf_get_prandom_u32() * slots >> 32;
	/* The hash as a fraction of 2^32, times the slots: this needs no division. */
	return (u64)hash_client(service, client, try) * slots >> 32;
}

/* Where a slot is: the head of its ring, its chunk and line, and its number. */
struct slot {
	u64 ring;
	void *chunk;
	struct line *line;
	u32 number;
};

/* What a slot holds, of the word that it is in: SLOT_… of maps.h. */
static __always_inline u32 slot_of(u32 word, u32 number, u64 ring)
{
	u32 shift = RING_SHIFT(ring), bits = 32 >> shift;
	u32 content = word >> (number & ((1 << shift) - 1)) * bits << (32 - bits);
	u32 above = content << 1 >> 1 >> (32 - bits);

	return (content & SLOT_IN_TRANSITION) | (above + (RING_BASE(ring) & -(u32)is_some(above)));
}

/* Choose a slot and return its content: SLOT_… of maps.h, 0 if there is none. */
static __always_inline u32 read_slot(const struct service *service, const struct client *client, u32 try,
				     struct slot *slot)
{
	u32 index = service->ring, chunk, slots, word, line, shift;
	volatile u64 *place = rings.lookup(&index);
	u64 ring = place ? *place : 0;

	NOTE(rings, index);
	slots = RING_SLOTS(ring);
	NOTE(slots, slots);
	if (!slots)
		return 0;
	slot->number = choose_slot(service, client, slots, try);
	NOTE(slot, slot->number);
	slot->ring = ring;
	word = slot->number >> RING_SHIFT(ring);
	chunk = RING_CHUNK(ring);
	NOTE(ring_chunks, chunk);
	slot->chunk = ring_chunks.lookup(&chunk);
	if (!slot->chunk)
		return 0;
	shift = WORDS_A_LINE_SHIFT - RING_SHARES_ROWS(ring);
	line = RING_LINE(ring) + (word >> shift);
	slot->line = bpf_map_lookup_elem(slot->chunk, &line);
	if (!slot->line)
		return 0;
	word &= (1 << shift) - 1;
	OPAQUE(word);	/* else the compiler knows that the remainder changes nothing, and the verifier doesn't */
	return slot_of(((volatile u32 *)slot->line->words)[word % WORDS_A_LINE], slot->number, ring);
}

/* The id of the endpoint whose turn it is, 0 if there is none. */
static __always_inline u32 choose_endpoint(const struct service *service, const struct client *client, u32 try)
{
	struct slot slot;
	u32 id = read_slot(service, client, try, &slot) & SLOT_ID_MASK;

	if (HAS(LEAST_CONNECTIONS) && service->algorithm == ALGORITHM_LEAST_CONNECTIONS && id)
		id = less_loaded(id, read_slot(service, client, try, &slot) & SLOT_ID_MASK);
	return HAS(LEAST_CONNECTIONS) ? forgotten(id, client->address) : id;
}

/* The row of an endpoint that may still get packets of open connections, NULL if it may not. */
static __always_inline struct endpoint *find_alive(u32 id)
{
	struct endpoint *endpoint = endpoints.lookup(&id);

	if (!endpoint || (endpoint->state != ENDPOINT_USABLE && endpoint->state != ENDPOINT_RETIRED &&
			  endpoint->state != ENDPOINT_DEAD))
		return NULL;
	return endpoint;
}
