// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tables of NAT's connections, one for each version of IP; a stage knows one. One entry serves both directions:
 * requests and replies alike know the client's address and port, so these are what an entry is found by. A client may have
 * several connections from one port; a request then tells them apart by its service, a reply by its endpoint.
 *
 * An entry is two words (maps.h), over IPv6 with the client's address beside them, in any place of either of two buckets.
 * Words are changed by compare-and-swap only, so there is no lock; if somebody else changed a word meanwhile, the next
 * packet tries again. Who wants a place claims it by its `who`, and fills in the rest before `who` says whose it is.
 *
 * Once an entry was silent for longer than its state allows, it does not exist any more, and its place is free. A
 * connection that is open is never given up for a new one.
 */

/* The loader puts the number of buckets in the place of this number: reconciler/kernel/build.py. */
#define CONNECTION_BUCKETS 0x636f6e6e65637401ULL
#define CONNECTION6_BUCKETS 0x636f6e6e65637402ULL
#define BUCKET_PLACES 4
#define ALL_PLACES (2 * BUCKET_PLACES)

#define WHO_CLIENT_SHIFT 32
#define WHO_PORT_SHIFT 16
#define WHO_KEY_SHIFT 14	/* from the protocol on, `who` is what an entry is found by */
#define WHO_STATE_SHIFT 11
#define WHO_STATE_MASK 7
#define WHO_SEEN_MASK 0x7ff
#define WHERE_ENDPOINT_SHIFT 47
#define WHERE_SERVICE_SHIFT 29
#define WHERE_SERVICE_MASK 0x3ffff
#define WHERE_CLIENT_SHIFT 14
#define WHERE_NUMBERS_MASK 0x3fff

/* How `who` begins for each protocol: never with 0, so that an empty place is nobody's. */
#define PROTOCOL_TCP 1
#define PROTOCOL_UDP 2
#define PROTOCOL_SCTP 3

/* `who` of a place that somebody is filling in: nobody finds it, nobody takes it. */
#define CLAIMED ((u64)CONNECTION_OPEN << WHO_STATE_SHIFT)

/* "Seen" counts 2^33 ns, 8.6 seconds, and comes round after 4.9 hours. */
#define SEEN_SHIFT_NS 33

/*
 * How long an entry may be silent. TCP: RFC 5382, REQ-5 (2 hours 4 minutes; 4 minutes for all that is not open). UDP: RFC
 * 4787, REQ-5 (2 minutes; half a minute until the endpoint has answered). SCTP: as TCP, but for an open association ten
 * minutes, twenty heartbeats of RFC 9260, section 16.
 */
#define TRANSITORY 28
#define OVER_IDLE 3
#define TCP_IDLE 867
#define UDP_OPENING_IDLE 4
#define UDP_IDLE 14
#define SCTP_IDLE 70

/* An entry that is over lives again if a packet comes so much later that says nothing of an end: the end was forged. */
#define REVIVAL 2

/* The numbers of TCP count steps of 2^18 bytes. */
#define NUMBERS_SHIFT 18

/*
 * How many steps a FIN or a RST may be ahead of what its receiver acknowledged: 6 MB, the largest window that Linux gives
 * unasked (tcp_rmem).
 */
#define WINDOW_STEPS 24

static __always_inline u32 connection_now(void)
{
	return bpf_ktime_get_coarse_ns() >> SEEN_SHIFT_NS;
}

/* For how many units an entry was silent. Another CPU may have seen a packet a unit ahead of `now`. */
static __always_inline u32 silence_of(u64 who, u32 now)
{
	u64 age = (now + 1 - (u32)who) & WHO_SEEN_MASK;

	return age - is_some(age);
}

static __always_inline u32 connection_state_of(u64 who)
{
	return who >> WHO_STATE_SHIFT & WHO_STATE_MASK;
}

static __always_inline u32 connection_endpoint(u64 where)
{
	return where >> WHERE_ENDPOINT_SHIFT;
}

static __always_inline u32 connection_service(u64 where)
{
	return where >> WHERE_SERVICE_SHIFT & WHERE_SERVICE_MASK;
}

/* By state, twelve bits each: how long an entry may be silent, but for one that is open. */
#define TCP_PATIENCE ((u64)TRANSITORY << 12 * CONNECTION_OPENING | (u64)TRANSITORY << 12 * CONNECTION_CLIENT_CLOSED | \
		      (u64)TRANSITORY << 12 * CONNECTION_ENDPOINT_CLOSED | (u64)OVER_IDLE << 12 * CONNECTION_OVER)
#define UDP_PATIENCE ((u64)UDP_OPENING_IDLE << 12 * CONNECTION_OPENING)

/* Longer than anything is silent. */
#define FOREVER 0xfff

/* All ones if `who` is of UDP. */
static __always_inline u64 is_of_udp(u64 who)
{
	u64 mask = -((who >> 1 & ~who) >> WHO_KEY_SHIFT & 1);

	OPAQUE(mask);
	return mask;
}

/* By protocol, 16 bits each: how long an entry that is open may be silent, if its service doesn't say so. */
#define USUAL_IDLE ((u64)TCP_IDLE << 16 * PROTOCOL_TCP | (u64)UDP_IDLE << 16 * PROTOCOL_UDP | \
		    (u64)SCTP_IDLE << 16 * PROTOCOL_SCTP)

/* All ones if an entry was silent for too long. `idle` is how long one that is open may be. */
static __always_inline u64 is_due(u64 who, u64 idle, u32 now)
{
	u64 mask = is_of_udp(who);
	u64 patience = (UDP_PATIENCE & mask) | (TCP_PATIENCE & ~mask) | idle << 12 * CONNECTION_OPEN;

	return is_less(patience >> 12 * connection_state_of(who) & 0xfff, silence_of(who, now));
}

/* The same, as its service has it. */
static __always_inline u64 is_due_at(u64 who, const struct front *front, u32 now)
{
	u64 idle = front->idle, usual = USUAL_IDLE >> 16 * (who >> WHO_KEY_SHIFT & 3) & 0xffff;

	return is_due(who, idle + (usual & (is_some(idle) - 1)), now);
}

/* Whether an entry still exists. Only of an open one the service needs to be asked. */
static __always_inline bool is_live(u64 who, u64 where, u32 now)
{
	u32 service = connection_service(where);
	struct front *front;

	if (!silence_of(who, now))
		return true;
	if (connection_state_of(who) != CONNECTION_OPEN)
		return !is_due(who, FOREVER, now);
	front = fronts.lookup(&service);
	return front && !is_due_at(who, front, now);
}

/* What a packet of SCTP begins with; see association.h. */
struct chunk {
	u8 type;
	bool is_reflected;	/* the tag is its sender's own: it has lost the association, and so the other one */
	u32 tag;		/* as an entry has tags */
	u32 initiate;		/* INIT and INIT-ACK: the tag that its sender wants to see from now on */
};

/* What a packet says about the connection that it belongs to. */
struct sought {
	u64 key;		/* its client, as `who` begins; the lower bits are zero */
	const __be32 *client;	/* its address, of which the key has only a hash over IPv6 */
	const __be32 *address;	/* the other end: the VIP of a request, the endpoint of a reply */
	__be16 port;
	u8 protocol;
	bool is_request;
	u32 service;		/* requests only: the index */
	struct chunk chunk;	/* of SCTP, where no error is looked at */
};

static __always_inline u64 connection_key(u32 address, u16 port, bool is_datagram)
{
	u64 protocol = HAS(AS_SCTP) ? PROTOCOL_SCTP : is_datagram ? PROTOCOL_UDP : PROTOCOL_TCP;

	return (u64)address << WHO_CLIENT_SHIFT | (u64)port << WHO_PORT_SHIFT | protocol << WHO_KEY_SHIFT;
}

/* Both halves of the hash say a bucket each. */
static __always_inline u64 hash_connection(const struct sought *sought)
{
	const __be32 *words = sought->client;
	u32 row = 0;
	struct seed *secret = seed.lookup(&row);
	u64 hash;

	if (!secret)
		return 0;
	if (!HAS(AS_NAT6))
		return mix64(mix64(sought->key ^ secret->words[0]) + secret->words[1]);
	hash = mix64((u32)sought->key ^ secret->words[0]);
	hash = mix64(hash + ((u64)words[0] << 32 | words[1])) ^ secret->words[1];
	return mix64(hash + ((u64)words[2] << 32 | words[3]));
}

/* A bucket of either table: both begin alike. */
static __always_inline struct connections *find_bucket_of_connections(u32 index)
{
	if (HAS(AS_NAT6) && HAS(AS_FULLNAT))
		return (struct connections *)translated6.lookup(&index);
	if (HAS(AS_NAT6))
		return (struct connections *)connections6.lookup(&index);
	if (HAS(AS_FULLNAT))
		return (struct connections *)translated.lookup(&index);
	return connections.lookup(&index);
}

static __always_inline struct connections *find_connections(u32 half)
{
	u64 buckets = HAS(AS_NAT6) ? CONNECTION6_BUCKETS : CONNECTION_BUCKETS;
	u32 index;

	OPAQUE(buckets);
	index = half * buckets >> 32;
	return find_bucket_of_connections(index);
}

/* The client's address of a place. */
static __always_inline __be32 *client_at(const struct connections *bucket, u32 place)
{
	return ((struct connections6 *)bucket)->addresses + 4 * place;
}

/* Zero if a place is of this client: `who` agrees with the key, and the address, of which the key may have a hash only. */
static __always_inline u64 differs_at(const struct connections *bucket, u32 place, u64 who, const struct sought *sought)
{
	u64 differs = (who ^ sought->key) >> WHO_KEY_SHIFT;

	if (HAS(AS_NAT6)) {
		const __be32 *words = client_at(bucket, place), *client = sought->client;

		differs |= (words[0] ^ client[0]) | (words[1] ^ client[1]) | (words[2] ^ client[2]) | (words[3] ^ client[3]);
	}
	return differs;
}

/* Both buckets of a client, and the entry that was found in one of them, its words as they were read. */
struct connection {
	struct connections *first, *second;
	u32 place;		/* with BUCKET_PLACES added in the second bucket */
	bool is_there;		/* all below say nothing otherwise */
	bool lives;		/* else it does not exist any more, but its place is the one for a new entry */
	u64 who;
	u64 where;
};

/* The address of an endpoint in the version of IP that the stage is for; NULL if it has none. */
static __always_inline const __be32 *address_of(u32 id, const struct endpoint *endpoint)
{
	struct address6 *found;

	if (!HAS(AS_NAT6))
		return endpoint->address ? &endpoint->address : NULL;
	found = endpoints6.lookup(&id);
	return found && !endpoint->address ? found->words : NULL;
}

/* Whether two addresses of this version are the same. */
static __always_inline bool is_same_address(const __be32 *one, const __be32 *two)
{
	return HAS(AS_NAT6) ? is_same_words(one, two) : one[0] == two[0];
}

/* The port by which an endpoint is known to clients of a service. */
static __always_inline __be16 port_behind(const struct endpoint *endpoint, const struct front *front)
{
	return endpoint->port ?: front->target_port ?: front->port;
}

/*
 * Whether an entry of the client is the one that its packet belongs to: 2 if it is, 1 if it is unless there is a better
 * one. From one port a client may have talked to an endpoint by a VIP until a moment ago, and by another one since.
 */
static __always_inline u64 is_sought(const struct sought *sought, u64 who, u64 where)
{
	u32 service = connection_service(where), id = connection_endpoint(where);
	struct endpoint *endpoint;
	const __be32 *address;
	struct front *front;

	if (sought->is_request && service == sought->service)
		return 2;
	front = fronts.lookup(&service);
	if (!front || front->protocol != sought->protocol)
		return 0;
	/* The service has another index now, since its target port is another one. */
	if (sought->is_request)
		return is_same_address(sought->address, front->vip) && front->port == sought->port ? 2 : 0;
	endpoint = endpoints.lookup(&id);
	address = endpoint ? address_of(id, endpoint) : NULL;
	if (!address || !is_same_address(sought->address, address) || port_behind(endpoint, front) != sought->port)
		return 0;
	return 1 + is_some(connection_state_of(who) ^ CONNECTION_OVER);
}

/* Which places of a bucket a client has, a bit each. */
static __always_inline u64 places_of(const struct connections *bucket, const struct sought *sought)
{
	u64 found = 0, place;

#pragma unroll
	for (place = 0; place < BUCKET_PLACES; place++)
		found |= (is_some(differs_at(bucket, place, bucket->who[place], sought)) ^ 1) << place;
	return found;
}

/* Look for an entry in one of the buckets. Returns the same as is_sought(). */
static __always_inline u64 find_in(struct connections *bucket, u32 number, const struct sought *sought,
				   struct connection *found)
{
	u64 held = places_of(bucket, sought), best = 0, at;
	u32 place;

	if (!held)
		return 0;
#pragma unroll
	for (place = 0; place < BUCKET_PLACES; place++) {
		u64 who = bucket->who[place], fits = 0;

		if (held >> place & 1)
			fits = is_sought(sought, who, bucket->where[place]);
		fits = fits * BUCKET_PLACES + BUCKET_PLACES - 1 - place;
		best = forgotten(best + ((fits - best) & is_less(best, fits)), who);
	}
	at = BUCKET_PLACES - 1 - best % BUCKET_PLACES;
	best = best / BUCKET_PLACES & 3;
	if (!best)
		return 0;
	found->where = *(volatile u64 *)&bucket->where[at];
	found->who = *(volatile u64 *)&bucket->who[at];
	found->place = forgotten(number * BUCKET_PLACES + at, found->who);
	/* Another connection may have got the place just now. */
	found->is_there = !is_some(differs_at(bucket, at, found->who, sought));
	return best;
}

/* Find the entry that a packet belongs to; it may be one that doesn't exist any more. False if there is no table. */
static __always_inline bool find_connection(struct sought *sought, struct connection *found)
{
	u64 hash = hash_connection(sought);

	/* Whatever protocol it is: the verifier needn't follow each. */
	sought->key = forgotten(sought->key, hash);
	found->first = find_connections(hash >> 32);
	found->second = find_connections(hash);
	if (!found->first || !found->second)
		return false;
	if (find_in(found->first, 0, sought, found) < 2)
		find_in(found->second, 1, sought, found);
	if (found->is_there)
		found->lives = is_live(found->who, found->where, connection_now());
	/* Whatever was found: the verifier needn't follow each. */
	found->is_there = forgotten(found->is_there, hash) & 1;
	found->lives = forgotten(found->lives, hash) & 1;
	found->place = forgotten(found->place, hash);
	found->who = forgotten(found->who, hash);
	found->where = forgotten(found->where, hash);
	return true;
}

static __always_inline struct connections *bucket_of(const struct connection *found)
{
	return found->place & BUCKET_PLACES ? found->second : found->first;
}

/* Whether a packet may begin a connection where another one with the same addresses is over. */
static __always_inline bool may_begin(const struct packet *packet)
{
	return packet->opens || is_udp(packet->protocol);
}

static __always_inline u32 numbers_of(__be32 number)
{
	return bpf_ntohl(number) >> NUMBERS_SHIFT;
}

/*
 * Whether a FIN or a RST ends its connection: its sequence number must be one that the receiver waits for. The others are
 * forwarded, and change nothing here, as at their receiver (RFC 9293, section 3.10.7.4).
 */
static __always_inline bool is_end(const struct packet *packet, bool is_request, u32 state, u64 where)
{
	u32 number = numbers_of(packet->sequence), expected = where >> WHERE_CLIENT_SHIFT;

	/* The RST of an endpoint that refuses a connection acknowledges the SYN; no other number is known yet. */
	if (is_request || state == CONNECTION_OPENING)
		expected = where;
	if (!is_request && state == CONNECTION_OPENING)
		number = numbers_of(packet->acknowledged);
	return ((number - expected) & WHERE_NUMBERS_MASK) <= WINDOW_STEPS;
}

/* The state of a connection after a packet. */
static __always_inline u32 connection_state_after(const struct packet *packet, bool is_request,
						  const struct connection *found, u32 now)
{
	u32 state = connection_state_of(found->who);
	u32 own = is_request ? CONNECTION_CLIENT_CLOSED : CONNECTION_ENDPOINT_CLOSED;

	if (is_udp(packet->protocol))
		return is_request ? state : CONNECTION_OPEN;
	if (packet->closes) {
		if (!is_end(packet, is_request, state, found->where))
			return state;
		if (packet->flags & TCP_RST || (state >= CONNECTION_CLIENT_CLOSED && state != own))
			return CONNECTION_OVER;
		return own;
	}
	if (state == CONNECTION_OVER)
		return silence_of(found->who, now) >= REVIVAL ? CONNECTION_OPEN : state;
	if (is_request && packet->opens)
		return state >= CONNECTION_CLIENT_CLOSED ? CONNECTION_OPENING : state;
	return is_request && state == CONNECTION_OPENING ? CONNECTION_OPEN : state;
}

static __always_inline u64 with_state(u64 who, u32 state, u32 seen)
{
	return who >> WHO_KEY_SHIFT << WHO_KEY_SHIFT | (u64)state << WHO_STATE_SHIFT | (seen & WHO_SEEN_MASK);
}

/* Note in an entry what a packet tells about its connection. Most packets tell nothing new. */
static __always_inline void follow(const struct packet *packet, bool is_request, const struct connection *found)
{
	u32 now = connection_now(), state = connection_state_after(packet, is_request, found, now);
	struct connections *bucket = bucket_of(found);
	u32 place = found->place % BUCKET_PLACES;
	u64 who;

	state = forgotten(state, found->who);
	who = with_state(found->who, state, now);

	/* What comes after the end doesn't put it off, but for another end. */
	if (state == CONNECTION_OVER && connection_state_of(found->who) == CONNECTION_OVER && !packet->closes)
		who = found->who;
	if (who != found->who && __sync_val_compare_and_swap(&bucket->who[place], found->who, who) == found->who &&
	    HAS(LEAST_CONNECTIONS) && state == CONNECTION_OVER && connection_state_of(found->who) != CONNECTION_OVER)
		note_load(connection_endpoint(found->where), -1);
	if (packet->flags & TCP_ACK && !packet->closes) {
		u32 shift = is_request ? WHERE_CLIENT_SHIFT : 0;
		u64 numbers = numbers_of(packet->acknowledged);
		u64 where = (found->where & ~((u64)WHERE_NUMBERS_MASK << shift)) | numbers << shift;

		if (where != found->where)
			__sync_val_compare_and_swap(&bucket->where[place], found->where, where);
	}
}

/* Forget a connection. */
static __always_inline void forget(struct connection *found)
{
	u64 *who = &bucket_of(found)->who[found->place % BUCKET_PLACES];

	if (__sync_val_compare_and_swap(who, found->who, 0) == found->who && HAS(LEAST_CONNECTIONS) &&
	    connection_state_of(found->who) != CONNECTION_OVER)
		note_load(connection_endpoint(found->where), -1);
	found->is_there = false;
}

/*
 * Whether an endpoint's packet is no reply although a connection has its addresses: the client may now talk to the
 * endpoint directly, from the port of a former connection to the VIP. The endpoint's side of a direct connection begins
 * with a SYN, and a connection that is ending sends none.
 */
static __always_inline bool is_no_reply(const struct packet *packet, const struct connection *found)
{
	return packet->flags & TCP_SYN && connection_state_of(found->who) == CONNECTION_OVER;
}

/*
 * What a client's connections look like in replies, 0 for none: the endpoint's address and port. Two that look alike could
 * not be told apart.
 */
static __always_inline u64 look_of(const __be32 *words, __be16 port)
{
	u64 look = words[0];

	/* A number for it: should two endpoints of a client have the same, it is as if they looked alike. */
	if (HAS(AS_NAT6))
		look = mix64(mix64((u64)words[0] << 32 | words[1]) + ((u64)words[2] << 32 | words[3])) >> 17;
	return look << 16 | port;
}

/* Marks the look of an entry that is over, or doesn't exist any more. */
#define GONE (1ULL << 63)

/* What the replies of an entry look like. */
static __always_inline u64 look_of_entry(u64 who, u64 where, u32 now)
{
	u32 service = connection_service(where), id = connection_endpoint(where);
	struct endpoint *endpoint = endpoints.lookup(&id);
	struct front *front = fronts.lookup(&service);
	const __be32 *address;
	u64 is_gone;

	if (!front || !endpoint)
		return 0;
	/* A condition of its own: else the verifier of Linux 6.1 takes the address for a number. */
	address = address_of(id, endpoint);
	if (!address)
		return 0;
	is_gone = (is_due_at(who, front, now) & 1) | (is_some(connection_state_of(who) ^ CONNECTION_OVER) ^ 1);
	return look_of(address, port_behind(endpoint, front)) | is_gone * GONE;
}

static __always_inline void note_looks(const struct connections *bucket, u64 held, u32 now, u64 *places)
{
	u32 place;

#pragma unroll
	for (place = 0; place < BUCKET_PLACES; place++) {
		u64 look = 0;

		if (held >> place & 1)
			look = look_of_entry(bucket->who[place], bucket->where[place], now);
		places[place] = look;
	}
}

/* Note them of all connections of the client but this one; mostly there are none. */
static __always_inline struct looks *note_all_looks(const struct sought *sought, const struct connection *own, u32 now)
{
	u64 others = places_of(own->first, sought) | places_of(own->second, sought) << BUCKET_PLACES;
	u32 row = 0;
	struct looks *found = looks.lookup(&row);

	others &= ~((u64)own->is_there << own->place % ALL_PLACES);
	if (found) {
		note_looks(own->first, others, now, found->places);
		note_looks(own->second, others >> BUCKET_PLACES, now, found->places + BUCKET_PLACES);
	}
	return found;
}

/* Whether one of these is the same. */
static __always_inline bool is_among(const struct looks *looks, u64 look)
{
	u64 differs = 1, place;

#pragma unroll
	for (place = 0; place < ALL_PLACES; place++)
		differs &= is_some(looks->places[place] ^ look);
	return !differs;
}

/* Take away what replies of a new connection could be taken for: entries that are gone and look alike. */
static __always_inline void take_away(const struct connection *found, const struct sought *sought,
				      const struct looks *looks, u64 look)
{
	u64 place;

#pragma unroll
	for (place = 0; place < ALL_PLACES; place++) {
		struct connections *bucket = place < BUCKET_PLACES ? found->first : found->second;
		u64 who = bucket->who[place % BUCKET_PLACES];

		/* Somebody may have got the place meanwhile. */
		if (looks->places[place] == (look | GONE) && !(who >> WHO_KEY_SHIFT ^ sought->key >> WHO_KEY_SHIFT))
			__sync_val_compare_and_swap(&bucket->who[place % BUCKET_PLACES], who, 0);
	}
}

/* By state, four bits each: who has to go first, if all places are taken. Those that are open stay. */
#define CLASS_FREE 0ULL
#define CLASS_OPEN 4ULL
#define CLASSES (2ULL << 4 * CONNECTION_OPENING | CLASS_OPEN << 4 * CONNECTION_OPEN | \
		 3ULL << 4 * CONNECTION_CLIENT_CLOSED | 3ULL << 4 * CONNECTION_ENDPOINT_CLOSED | \
		 1ULL << 4 * CONNECTION_OVER)

/* The class of a place: CLASS_FREE if it is empty or its entry is over its time, as far as the entry itself tells. */
static __always_inline u64 class_of(u64 who, u32 now)
{
	return (CLASSES >> 4 * connection_state_of(who) & 0xf) * is_some(who) & ~is_due(who, FOREVER, now);
}

/* How many places of a bucket are not free. */
static __always_inline u32 taken_in(const struct connections *bucket, u32 now)
{
	u32 taken = 0, place;

#pragma unroll
	for (place = 0; place < BUCKET_PLACES; place++)
		taken += is_some(class_of(bucket->who[place], now));
	return taken;
}

/*
 * A place for a new entry: one that is free, in the second bucket if the first has at least two taken and the second has
 * fewer. (That second buckets are seldom looked at is worth much; that both fill up alike is worth more once they do.) If
 * none is free, the place of an entry of the lowest class, the oldest of these. Returns the number of the place, with
 * BUCKET_PLACES added in the second bucket, and its class above 3 bits.
 */
static __always_inline u64 choose_place(const struct connections *first, const struct connections *second, u32 now)
{
	u32 in_first = taken_in(first, now), in_second = taken_in(second, now);
	u64 is_second = -(u64)(in_first >= 2 && in_second < in_first), chosen = ~0ULL >> 1, place;

	OPAQUE(is_second);
#pragma unroll
	for (place = 0; place < ALL_PLACES; place++) {
		u64 who = (place < BUCKET_PLACES ? first : second)->who[place % BUCKET_PLACES];
		u64 is_other = (place < BUCKET_PLACES ? is_second : ~is_second) & 1;
		u64 candidate = class_of(who, now);

		is_other &= ~is_some(candidate);
		candidate = (candidate * 2 + is_other) << 11 | (WHO_SEEN_MASK - silence_of(who, now));
		chosen = smaller(candidate * ALL_PLACES + place, chosen);
	}
	return (chosen >> 15) << 3 | chosen % ALL_PLACES;
}

/* Claim a place whose entry was `held`, and have it say what a new entry is. False if somebody else was faster. */
static __always_inline bool fill_place(struct connections *bucket, u32 place, u64 held, const __be32 *client,
				       u64 who, u64 where)
{
	place %= BUCKET_PLACES;
	if (__sync_val_compare_and_swap(&bucket->who[place], held, CLAIMED) != held)
		return false;
	if (HAS(AS_NAT6))
		copy_address(client_at(bucket, place), client);
	*(volatile u64 *)&bucket->where[place] = where;
	__sync_val_compare_and_swap(&bucket->who[place], CLAIMED, who);
	return true;
}

/* The place of an entry that is open, but was silent for longer than its service allows. ALL_PLACES if there is none. */
static __always_inline u32 find_idle(const struct connections *first, const struct connections *second, u32 now)
{
	u32 place;

#pragma unroll
	for (place = 0; place < ALL_PLACES; place++) {
		const struct connections *bucket = place < BUCKET_PLACES ? first : second;
		u64 who = bucket->who[place % BUCKET_PLACES];

		if (who >> WHO_KEY_SHIFT && !is_live(who, bucket->where[place % BUCKET_PLACES], now))
			return forgotten(place, who);
	}
	return ALL_PLACES;
}

/*
 * Make an entry, in the place of one with the same addresses that doesn't exist any more, if there is one. False if there
 * is no place for it.
 */
static __always_inline bool store_connection(struct connection *former, const __be32 *client, u64 who, u64 where,
					     u32 now)
{
	struct connections *bucket;
	u64 chosen, held;

	if (!former->is_there) {
		chosen = choose_place(former->first, former->second, now);
		former->place = chosen % ALL_PLACES;
		if (chosen >> 3 == CLASS_OPEN) {
			former->place = find_idle(former->first, former->second, now);
			if (former->place >= ALL_PLACES)
				return false;
		}
		bucket = bucket_of(former);
		former->who = *(volatile u64 *)&bucket->who[former->place % BUCKET_PLACES];
		/* Somebody else may have been faster. */
		held = former->who;
		if (held == CLAIMED || (class_of(held, now) == CLASS_OPEN &&
					is_live(held, bucket->where[former->place % BUCKET_PLACES], now)))
			return false;
	}
	return fill_place(bucket_of(former), former->place, former->who, client, who, where);
}
